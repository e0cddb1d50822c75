"""Every page, wide and narrow, light and dark, in a browser."""

import re
from pathlib import Path

import axe_playwright_python
import pytest

from documents import PAGES, ROOT

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
DOCS = ROOT / "docs"
ADDRESSES = [str(p.relative_to(DOCS).with_suffix(".html")) for p in PAGES]

each_page = pytest.mark.parametrize("path", ADDRESSES)


@each_page
def test_a_page_is_whole_and_fit_for_everybody(look, path):
    page = look.open(path)
    assert_formulas_are_drawn(page)
    assert_pictures_are_there(page)
    assert_nothing_sticks_out(page)
    page.wait_for_timeout(150)  # until what scrolls has been made reachable
    page.evaluate(AXE)
    assert violations(page, {"runOnly": RULES}) == []
    look.darken()
    assert_pictures_are_there(page)
    assert violations(page, {"runOnly": ["color-contrast"]}) == []
    assert look.wrong == []


def assert_formulas_are_drawn(page):
    formulas = page.locator(".arithmatex")
    assert formulas.count() == page.locator(".arithmatex:has(.katex)").count()
    assert page.locator(".katex-error, mtext[mathcolor]").all_text_contents() == []
    text = page.locator("article").evaluate(
        """article => {
          const copy = article.cloneNode(true);
          copy.querySelectorAll("pre, code, .katex").forEach(e => e.remove());
          return copy.textContent;
        }"""
    )
    assert not re.findall(r".*(?:[$]|\\\(|\\\[).*", text)


def assert_pictures_are_there(page):
    shown = "img => img.complete && (img.naturalWidth > 0 || !img.checkVisibility())"
    for picture in page.locator("article img").all():
        picture.scroll_into_view_if_needed() if picture.is_visible() else None
        assert picture.get_attribute("alt"), picture.get_attribute("src")
        assert picture.evaluate(shown), picture.get_attribute("src")


def assert_nothing_sticks_out(page):
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def violations(page, options):
    found = page.evaluate("options => axe.run(document, options)", options)
    return [
        (rule["id"], node["html"][:150], node["failureSummary"][:300])
        for rule in found["violations"]
        for node in rule["nodes"][:3]
    ]


def test_a_page_is_dark_on_a_machine_that_is(browser, address):
    page = browser.new_page(color_scheme="dark")
    page.goto(f"{address}/index.html")
    assert page.locator("body").get_attribute("data-md-color-scheme") == "slate"
    page.close()
