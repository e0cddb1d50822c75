"""Build the package, then install and use the wheel where nothing else is.

    python tools/check_wheel.py

The wheel is built from the sdist, so that both are known to be complete.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"

# One loss with the smallest backend: log(1 + 2 / e**2), from logits that a head marked.
USE = """
import numpy as np
import keras_logits
from keras_logits import LogitsHead, SoftmaxCrossEntropy

head = LogitsHead(3, kernel_initializer="identity")
logits = head(np.array([[0.0, 2.0, 0.0]], "float32"))
loss = SoftmaxCrossEntropy()(np.array([1]), logits)
assert abs(float(loss) - 0.23954484) < 1e-6, loss
print("keras_logits", keras_logits.__version__, "from", keras_logits.__file__)
"""


def main() -> None:
    wheel = built()
    check_contents(wheel)
    check_description(wheel)
    with tempfile.TemporaryDirectory() as folder:
        use(wheel, Path(folder))


def built() -> Path:
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    (wheel,) = DIST.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names}
    strangers = {f for f in folders if f != "keras_logits" and ".dist-info" not in f}
    assert not strangers, f"the wheel holds more than the package: {strangers}"
    assert "keras_logits/py.typed" in names, "the wheel lacks py.typed"
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size // 1024} KB")


def check_description(wheel: Path) -> None:
    """A package index renders it, and finds what it links to."""
    run(sys.executable, "-m", "twine", "check", "--strict", *DIST.iterdir())
    (name,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA"))
    description = zipfile.ZipFile(wheel).read(name).decode()
    targets = re.findall(r"\]\(([^)\s]+)\)", description)
    assert len(targets) > 10, "the description is not the README"
    lost = [t for t in targets if not t.startswith(("https://", "#"))]
    assert not lost, f"links that only a clone has: {lost}"


def use(wheel: Path, folder: Path) -> None:
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", folder / "venv")
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[jax]")
    empty = folder / "empty"
    empty.mkdir()
    # Isolated (-I): neither this folder nor PYTHONPATH can stand in for the wheel.
    run(python, "-I", "-c", USE, cwd=empty, env={**os.environ, "KERAS_BACKEND": "jax"})


def run(
    *command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> None:
    subprocess.run(list(map(str, command)), cwd=cwd, env=env, check=True)


if __name__ == "__main__":
    main()
