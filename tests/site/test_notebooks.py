"""Each guide is a notebook as well, with the code that the tests of its page run."""

import nbformat
import pytest
from nbclient import NotebookClient

from documents import PAGES, assert_shown, backend_of, blocks_of

GUIDES = [p for p in PAGES if p.parent.name == "guides" or p.stem == "get-started"]


def notebook_of(built, name):
    notebook = nbformat.read(built / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_notebook_has_the_code_of_its_page(built, page):
    install, *cells = [
        cell for cell in notebook_of(built, page.stem).cells if cell.cell_type == "code"
    ]
    backend = backend_of(page) or "tensorflow"
    assert f'os.environ["KERAS_BACKEND"] = "{backend}"' in install.source
    wanted = [b for b in blocks_of(page) if b.backend in (None, backend)]
    assert [cell.source + "\n" for cell in cells] == [block.code for block in wanted]
    for cell, block in zip(cells, wanted, strict=True):
        shown = cell.outputs[0].text if cell.outputs else None
        assert shown == block.output


@pytest.mark.parametrize("name", ["quick-start", "get-started"])
def test_a_notebook_runs_and_prints_what_it_shows(built, tmp_path, name):
    notebook = notebook_of(built, name)
    for cell in notebook.cells:  # all is installed here
        lines = cell.source.splitlines(keepends=True)
        cell.source = "".join(x for x in lines if not x.startswith("%pip"))
    shown = [printed_by(cell) for cell in notebook.cells]
    NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    for cell, before in zip(notebook.cells, shown, strict=True):
        if name != "quick-start":  # which shows nothing before it is run
            assert_shown(printed_by(cell), before)
    assert any(map(printed_by, notebook.cells))


def printed_by(cell):
    outputs = cell.get("outputs", [])
    return "".join(each.text for each in outputs if each.get("name") == "stdout")


def test_a_page_leads_to_its_notebook(built):
    page = (built / "guides" / "classify.html").read_text()
    assert 'href="../notebooks/classify.ipynb"' in page


def test_links_in_a_notebook_are_whole(built):
    assert len(GUIDES) > 10
    for page in GUIDES:
        for cell in notebook_of(built, page.stem).cells:
            assert cell.cell_type == "code" or ".md)" not in cell.source, page
