"""The guides as notebooks, made of their pages by the build: `site/notebooks/`.

A notebook has the text and the code of its page, for the backend of that page, and
shows what the page shows as output. Its first cell installs what it needs. The quick
start is one cell: the README's example.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import join, normpath

import nbformat
from nbformat import NotebookNode, v4

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"
SITE = "https://keras-logits.github.io/keras-logits/"
SOURCE = "git+https://github.com/keras-logits/keras-logits"
PAGES = [DOCS / "get-started.md", *sorted((DOCS / "guides").glob("*.md"))]

FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)\.md(#[^)]*)?\)")
SET_UP = re.compile(r"# (?:KERAS_BACKEND=(\w+)|(tf-keras))\n")


def write_notebooks(folder: Path) -> None:
    nbformat.write(quick_start(), folder / "quick-start.ipynb")
    for page in PAGES:
        nbformat.write(notebook_of(page), folder / f"{page.stem}.ipynb")


def notebook_of(page: Path) -> NotebookNode:
    text = page.read_text(encoding="utf-8")
    front = FRONT_MATTER.match(text)
    backend = re.search(r"backend: (\w+)", front[1]) if front else None
    cells = [_set_up(backend[1] if backend else "tensorflow")]
    for language, piece in _pieces(text[front.end() if front else 0 :]):
        if language == "python":
            cells.append(v4.new_code_cell(piece.rstrip("\n")))
        elif language == "text" and cells[-1].cell_type == "code":
            cells[-1].outputs = [v4.new_output("stream", name="stdout", text=piece)]
        else:
            cells.append(v4.new_markdown_cell(_with_whole_links(piece, page)))
    cells = [cell for cell in cells if _fits(cell, cells[0].metadata["backend"])]
    return _notebook(cells)


def quick_start() -> NotebookNode:
    pieces = _pieces(README.read_text(encoding="utf-8"))
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
    install = f'%pip install --quiet "keras-logits[{backend}] @ {SOURCE}" scikit-learn'
    if backend == "tensorflow":
        install += " tf-keras"
    code = f'{install}\nimport os\n\nos.environ["KERAS_BACKEND"] = "{backend}"'
    return v4.new_code_cell(code, metadata={"tags": ["install"], "backend": backend})


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Markdown, code and outputs in their order; commands stay with the markdown."""
    begin = 0
    for fence in FENCE.finditer(text):
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
    marked = SET_UP.match(cell.source + "\n") if cell.cell_type == "code" else None
    return marked is None or (marked[1] or "tensorflow") == backend


def _with_whole_links(markdown: str, page: Path) -> str:
    folder = page.parent.relative_to(DOCS).as_posix()

    def whole(link: re.Match[str]) -> str:
        return f"]({SITE}{normpath(join(folder, link[1]))}.html{link[2] or ''})"

    return LINK.sub(whole, markdown)
