"""The pages work when they are opened as files."""

import pytest

from documents import PAGES, ROOT

DOCS = ROOT / "docs"


@pytest.fixture
def page(browser, built):
    context = browser.new_context()
    context.set_default_timeout(10_000)
    page = context.new_page()
    page.wrong = []
    page.on("request", lambda r: page.wrong.append(r.url) if is_far(r.url) else None)
    page.on("requestfailed", lambda r: page.wrong.append(f"{r.failure}: {r.url}"))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.goto((built / "index.html").as_uri(), wait_until="networkidle")
    yield page
    assert page.wrong == []
    context.close()


def is_far(url):
    return not url.startswith(("file:", "data:", "blob:", "about:"))


def test_formulas_are_drawn(page, built):
    page.goto((built / "reference" / "mathematics.html").as_uri())
    assert page.locator(".katex").count() > 20
    assert page.locator(".arithmatex:not(:has(.katex))").count() == 0


def test_links_of_the_menu_lead_to_files(page, built):
    links = page.locator("nav.md-nav--primary a.md-nav__link[href]")
    found = {link.evaluate("a => a.href.split('#')[0]") for link in links.all()}
    pages = {str(p.relative_to(DOCS).with_suffix(".html")) for p in PAGES}
    assert found == {(built / name).as_uri() for name in pages}


def test_search_finds_something(page):
    page.keyboard.press("/")
    query = page.get_by_role("textbox", name="Search")
    query.fill("LogitsHead")
    query.press("End")  # the theme listens to keys
    page.locator(
        '.md-search-result a[href*="#keras_logits.LogitsHead"]'
    ).first.wait_for(state="attached")
