"""What the site shows and nobody writes: plots, and the reports of the benchmarks.

MkDocs calls the functions that begin with `on_`. In a page, `<!-- report: NAME -->` is
where `benchmarks/results/NAME.md` belongs, and `<!-- plot: NAME | caption | what there
is to see -->` a plot that may be missing. Plots are SVG files in `plots/`, drawn anew
by each build, one for light pages and one for dark ones.
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
PLOT = re.compile(r"^<!-- plot: ([\w-]+) \| (.+) \| (.+) -->$", re.MULTILINE)
TITLE = re.compile(r"^# .+$", re.MULTILINE)
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
        _append_all(files, config, "plots", Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        script = runpy.run_path(str(ROOT / "tools" / "docs_notebooks.py"))
        script["write_notebooks"](Path(folder))
        _append_all(files, config, "notebooks", Path(folder))
    return files


def _append_all(files: Files, config: Any, name: str, folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        address = f"{name}/{path.name}"
        files.append(File.generated(config, address, content=path.read_bytes()))


def on_page_markdown(markdown: str, page: Any, files: Files, **kwargs: Any) -> str:
    to_root = "../" * page.file.src_uri.count("/")

    def picture(found: re.Match[str]) -> str:
        if f"plots/{found[1]}-light.svg" not in files.src_uris:
            return ""
        plot = f"![{found[3]}]({to_root}plots/{found[1]}"
        pair = f"{plot}-light.svg#only-light)\n{plot}-dark.svg#only-dark)"
        return f"{pair}\n\n*{found[2]}*"

    notebook = f"notebooks/{Path(page.file.src_uri).stem}.ipynb"
    if notebook in files.src_uris and page.meta.get("lang") is None:
        link = f"[Download this page as a notebook]({to_root}{notebook})"
        markdown = TITLE.sub(rf"\g<0>\n\n{link}", markdown, count=1)
    markdown = PLOT.sub(picture, markdown)
    return REPORT.sub(lambda found: report(found[1]), markdown)


def on_post_page(output: str, page: Any, **kwargs: Any) -> str:
    """A page says its own language, if it is not that of the site."""
    language = page.meta.get("lang")
    if language is None:
        return output
    return re.sub(r'(<html\b[^>]* lang=")\w+', rf"\1{language}", output, count=1)


def report(name: str) -> str:
    """The report, a level of headings further down, without its title."""
    path = RESULTS / f"{name}.md"
    if not path.exists():
        return NOT_MEASURED
    text = path.read_text(encoding="utf-8").partition("\n")[2]
    return re.sub(r"^#+ ", r"#\g<0>", text, flags=re.MULTILINE)
