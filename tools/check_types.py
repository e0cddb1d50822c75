"""Check that type checkers find each mistake a user may make, and nothing else.

    python tools/check_types.py

`tests/typing/` holds what has to pass, and one mistake in each line that ends in
`# wrong`. Editors use pyright's rules, of which basedpyright is a copy that brings all
it needs.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tests" / "typing").glob("*.py"))
Places = set[tuple[str, int]]


def main() -> int:
    planted = {
        (path.name, number)
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith("# wrong")
    }
    failed = False
    for checker, found in (("mypy", found_by_mypy()), ("pyright", found_by_pyright())):
        for title, places in (("missed", planted - found), ("false", found - planted)):
            for name, line in sorted(places):
                failed = True
                print(f"{title} by {checker}: tests/typing/{name}:{line}")
        print(f"{checker}: {len(found & planted)} of {len(planted)} found")
    return int(failed)


def found_by_mypy() -> Places:
    command = [sys.executable, "-m", "mypy", *map(str, FILES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = re.findall(r"^tests/typing/(\w+\.py):(\d+): error", done.stdout, re.M)
    return {(name, int(line)) for name, line in errors}


def found_by_pyright() -> Places:
    command = [sys.executable, "-m", "basedpyright", "--outputjson", *map(str, FILES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = json.loads(done.stdout)["generalDiagnostics"]
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
        for each in errors
        if each["severity"] == "error"
    }


if __name__ == "__main__":
    sys.exit(main())
