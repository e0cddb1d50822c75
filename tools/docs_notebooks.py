"""The guides as notebooks, made of their pages by the build: `site/notebooks/`.

A notebook has the text and the code of its page, for the backend of that page, and
shows what the page shows as output. Its first cell installs what it needs. The quick
start is one cell: the README's example.
"""

import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from posixpath import join, normpath

import nbformat
from nbformat import NotebookNode, v4

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [DOCS / "get-started.md", *sorted((DOCS / "guides").glob("*.md"))]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
# How a page is read is said where its code is run.
DOCUMENTS = runpy.run_path(str(ROOT / "tests" / "documents.py"))

LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)\.md(#[^)]*)?\)")


def write_notebooks(folder: Path) -> None:
    nbformat.write(quick_start(), folder / "quick-start.ipynb")
    for page in PAGES:
        nbformat.write(notebook_of(page), folder / f"{page.stem}.ipynb")


def notebook_of(page: Path) -> NotebookNode:
    text = page.read_text(encoding="utf-8")
    backend = DOCUMENTS["backend_of"](page) or "tensorflow"
    cells = [_set_up(backend)]
    for language, piece in _pieces(DOCUMENTS["FRONT_MATTER"].sub("", text)):
        if language == "python":
            cells.append(v4.new_code_cell(piece.rstrip("\n")))
        elif language == "text" and cells[-1].cell_type == "code":
            cells[-1].outputs = [v4.new_output("stream", name="stdout", text=piece)]
        else:
            cells.append(v4.new_markdown_cell(_with_whole_links(piece, page)))
    return _notebook([cell for cell in cells if _fits(cell, backend)])


def quick_start() -> NotebookNode:
    pieces = _pieces((ROOT / "README.md").read_text(encoding="utf-8"))
    example = next(code for _, code in pieces if "load_digits" in code)
    cell = _set_up("tensorflow")
    cell.source += f"\n\n{example}".rstrip("\n")
    return _notebook([cell])


def _notebook(cells: list[NotebookNode]) -> NotebookNode:
    notebook = v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # not drawn by chance: a build is repeatable
    return notebook


def _set_up(backend: str) -> NotebookNode:
    package = f"keras-logits[{backend}] @ git+{URLS['Source']}"
    install = f'%pip install --quiet "{package}" scikit-learn'
    if backend == "tensorflow":
        install += " tf-keras"
    code = f'{install}\nimport os\n\nos.environ["KERAS_BACKEND"] = "{backend}"'
    return v4.new_code_cell(code, metadata={"tags": ["install"]})


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Markdown, code and outputs in their order; commands stay with the markdown."""
    begin = 0
    for fence in DOCUMENTS["FENCE"].finditer(text):
        language, code = fence.groups()
        if language == "bash":
            continue
        if text[begin : fence.start()].strip():
            yield "markdown", text[begin : fence.start()].strip()
        yield language, code
        begin = fence.end()
    if text[begin:].strip():
        yield "markdown", text[begin:].strip()


def _fits(cell: NotebookNode, backend: str) -> bool:
    if cell.cell_type == "markdown":
        return True
    return DOCUMENTS["backend_of_code"](f"{cell.source}\n") in (None, backend)


def _with_whole_links(markdown: str, page: Path) -> str:
    folder = page.parent.relative_to(DOCS).as_posix()

    def whole(link: re.Match[str]) -> str:
        address = normpath(join(folder, link[1]))
        return f"]({URLS['Documentation']}{address}.html{link[2] or ''})"

    return LINK.sub(whole, markdown)
