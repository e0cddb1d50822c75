"""The reference has every public name, and no other."""

import re

import keras_logits

PUBLIC = {f"keras_logits.{n}" for n in keras_logits.__all__ if n != "__version__"}


def html_of_the_reference(built):
    return (built / "reference" / "api.html").read_text()


def test_every_public_name_is_documented_and_nothing_else_is(built):
    headings = re.findall(r'<h\d id="([^"]+)"', html_of_the_reference(built))
    assert {name for name in headings if name.startswith("keras_logits.")} == PUBLIC


def test_every_name_has_its_docstring_with_arguments_and_an_example(built):
    parts = re.split(r'<h\d id="(keras_logits\.\w+)"', html_of_the_reference(built))
    for name, part in zip(parts[1::2], parts[2::2], strict=True):
        for title in ("Parameters", "Returns", "Examples"):
            is_loss = name.endswith("Entropy")
            assert f">{title}:<" in part or (title == "Returns" and is_loss), name
        assert "See also:" in part, name


def test_search_finds_every_public_name(desk):
    page = desk.open("index.html")
    page.keyboard.press("/")
    query = page.get_by_role("textbox", name="Search")
    for name in sorted(PUBLIC):
        query.fill(name.removeprefix("keras_logits."))
        query.press("End")  # the theme listens to keys
        page.locator(f'.md-search-result a[href*="#{name}"]').first.wait_for(
            state="attached"
        )
    assert desk.wrong == []
