"""What the site shows and nobody writes: plots, and the reports of the benchmarks.

MkDocs calls the functions that begin with `on_`. A page says where a report belongs by a
line `<!-- report: NAME -->`, for `benchmarks/results/NAME.md`. Plots are SVG files in
`plots/`, drawn anew by each build.
"""

import re
import runpy
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REPORT = re.compile(r"^<!-- report: (\w+) -->$", re.MULTILINE)
NOT_MEASURED = (
    "This was not measured yet in the tree that these pages were built from; "
    "`make bench` measures it."
)


def on_files(files: Files, config: Any) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("docs_plots.py", "docs_bench_plots.py"):
            # Run, not imported: a server that watches would import it once.
            script = runpy.run_path(str(ROOT / "tools" / name))
            script["write_plots"](Path(folder))
        for plot in sorted(Path(folder).iterdir()):
            name = f"plots/{plot.name}"
            files.append(File.generated(config, name, content=plot.read_bytes()))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    return REPORT.sub(lambda found: report(found[1]), markdown)


def report(name: str) -> str:
    """The report, a level of headings further down, without its title."""
    path = RESULTS / f"{name}.md"
    if not path.exists():
        return NOT_MEASURED
    text = path.read_text(encoding="utf-8").partition("\n")[2]
    return re.sub(r"^#+ ", r"#\g<0>", text, flags=re.MULTILINE)
