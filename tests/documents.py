"""The documents, and the blocks of code in them, as they are to be run.

A ```python block runs in the order of its document, in one namespace. One that fits
a single set-up says so in its first line, `# KERAS_BACKEND=jax` or `# tf-keras`. A
```text block after it is what it prints. A page that fits one backend says so on top:

    ---
    backend: tensorflow
    ---
"""

import re
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WITH_CODE = [README, *PAGES]
PAPERS = [*WITH_CODE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n", re.MULTILINE | re.DOTALL)
SET_UP = re.compile(r"# (?:KERAS_BACKEND=(tensorflow|jax|torch)|(tf-keras))\n")
NUMBER = re.compile(r"\d+\.\d+")


class Block(NamedTuple):
    """A block of Python, what it prints, and the one backend that it is for, if any."""

    code: str
    output: str | None
    line: int
    backend: str | None


def blocks_of(path):
    text = path.read_text()
    fences = [*FENCE.finditer(text)]
    for fence, following in zip_longest(fences, fences[1:]):
        language, code = fence.groups()
        if language != "python":
            continue
        is_output = (
            following is not None
            and following[1] == "text"
            and not text[fence.end() : following.start()].strip()
        )
        line = text.count("\n", 0, fence.start()) + 2
        output = following[2] if is_output else None
        yield Block(code, output, line, backend_of_code(code))


def backend_of_code(code):
    """The one backend that a block says it is for, if any."""
    marked = SET_UP.match(code)
    return marked and (marked[1] or "tensorflow")


def backend_of(path):
    """The one backend that a whole page is for, if any."""
    front = FRONT_MATTER.match(path.read_text())
    if front is None:
        return None
    told = dict(
        line.partition(":")[::2] for line in front[1].splitlines() if line[0] != " "
    )
    assert told.keys() <= {"backend", "lang", "search"}, f"{path}: {told}"
    backend = told.get("backend", "").strip() or None
    assert backend in (None, "tensorflow", "jax", "torch"), f"{path}: {backend}"
    return backend


def assert_shown(printed, shown):
    """Words as shown, and numbers within three units of the last digit."""
    got, wanted = " ".join(printed.split()), " ".join(shown.split())
    assert NUMBER.sub("#", got) == NUMBER.sub("#", wanted)
    for one, other in zip(NUMBER.findall(got), NUMBER.findall(wanted), strict=True):
        places = len(other.partition(".")[2])
        assert abs(float(one) - float(other)) <= 3.01 * 10**-places, (got, wanted)
