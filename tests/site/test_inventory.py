"""No code that a reader sees escapes the runner of `tests/test_documents.py`."""

import re

import markdown
import pytest
from mkdocs.config import load_config

from documents import PAGES, README, ROOT, blocks_of

DOCS = ROOT / "docs"
CODE = re.compile(r'<div class="[^"]*\blanguage-([\w-]+)')
# Examples of docstrings, which are run where the docstrings are.
OF_DOCSTRINGS = {"reference/api.html"}


def languages_in(html):
    return [language for language in CODE.findall(html) if language != "text"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_every_block_of_python_in_a_page_is_run(built, page):
    address = str(page.relative_to(DOCS).with_suffix(".html"))
    found = languages_in((built / address).read_text())
    if address in OF_DOCSTRINGS:
        found = [language for language in found if language not in ("python", "pycon")]
    assert found.count("python") == len([*blocks_of(page)])
    assert set(found) <= {"python", "bash"}


def test_every_block_of_python_in_the_readme_is_run():
    config = load_config(str(ROOT / "mkdocs.yml"))
    html = markdown.markdown(
        README.read_text(),
        extensions=config.markdown_extensions,
        extension_configs=config.mdx_configs,
    )
    assert languages_in(html).count("python") == len([*blocks_of(README)]) > 1
