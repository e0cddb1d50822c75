"""`docs/reference/errors.md` explains every error and warning of the package."""

import ast
import re

import pytest

from documents import ROOT

pytestmark = pytest.mark.any_backend
PACKAGE = ROOT / "keras_logits"
PAGE = ROOT / "docs" / "reference" / "errors.md"


def text_of(node):
    """What a literal says, with ... where a value stands; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (text_of(part) or "..." for part in node.values)
        return "".join(parts)
    return None


def beginning(message):
    """What is said before what was received, which tells errors apart."""
    return " ".join(re.split(r" ?Received:|: \.\.\.", message)[0].split())


def messages_of(tree):
    """The literals that are messages: they say what was received, or warn."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node)
    }
    formatted = [n for n in ast.walk(tree) if isinstance(n, ast.JoinedStr)]
    parts = {part for whole in formatted for part in [*ast.walk(whole)][1:]}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
            yield text_of(node.args[0])
        elif node not in docstrings | parts and "Received:" in (text_of(node) or ""):
            yield text_of(node)


def trees():
    return [ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))]


def in_the_code():
    return {beginning(text) for tree in trees() for text in messages_of(tree)}


def on_the_page():
    terms = re.findall(r"^(.+)\n:   ", PAGE.read_text(), re.MULTILINE)
    return [" ".join(term.split()) for term in terms]


def test_every_message_is_explained_once_and_nothing_else_is():
    assert len(in_the_code()) > 50
    assert sorted(on_the_page()) == sorted(in_the_code())


def test_every_message_has_lines_for_what_was_received_and_for_the_fix():
    messages = [text for tree in trees() for text in messages_of(tree)]
    received = [text for text in messages if "Received:" in text]
    assert len(received) > 50
    for text in received:
        lines = re.fullmatch(r"(?s)[^\n]+\.\nReceived: [^\n]+\nFix: .+", text)
        assert lines, f"not in lines: {text}"
