"""The files of other projects that the site carries are what those published."""

import hashlib
from pathlib import Path

from documents import ROOT

VENDORED = ROOT / "docs" / "assets" / "vendor"
SUMS = Path(__file__).with_name("vendored.sha256")  # as sha256sum writes it


def test_every_vendored_file_has_its_sum():
    files = (p for p in VENDORED.rglob("*") if p.is_file() and p.name != "README.txt")
    found = {
        str(p.relative_to(VENDORED)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
    }
    lines = SUMS.read_text().splitlines()
    assert found == {name: value for value, name in map(str.split, lines)}
