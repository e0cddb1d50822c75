"""How mkdocstrings reads our docstrings.

The classes that users meet take their docstring from a body without a Keras, by an
assignment to `__doc__`, which is not seen without running it. And some headings of ours
are not among those that the Google style knows.
"""

import re
from typing import Any

import griffe

FOLLOWED = re.compile(r"^(Source|See also):\n((?:    .*\n?|\n)+)", re.MULTILINE)
NAME = re.compile(
    r"`(\w*(?:Logits|LogitsHead|CrossEntropy|_entropy|logit|probabilities))`"
)


class Docstrings(griffe.Extension):
    """Gives the doors' classes their docstrings, and ours the headings of Google's."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        bodies = pkg["objects"]
        for door in ("keras3", "tf_keras"):
            for name, made in pkg[door].classes.items():
                if name in bodies.members and bodies[name].docstring:
                    made.docstring = bodies[name].docstring
        objects = ("objects.head", "objects.losses", "objects.mark")
        for name in ("functions", "maths.links", *objects):
            self._headings(pkg[name])

    def _headings(self, module: griffe.Module) -> None:
        for member in [*module.functions.values(), *module.classes.values()]:
            if member.docstring:
                member.docstring.value = with_known_headings(member.docstring.value)


def with_known_headings(text: str) -> str:
    text = text.replace("\nExample:\n", "\nExamples:\n")
    text = text.replace("\nCall arguments:\n", "\nArgs: Call arguments:\n")
    return FOLLOWED.sub(as_paragraph, text)


def as_paragraph(found: re.Match[str]) -> str:
    words = " ".join(found[2].split())
    if found[1] == "See also":
        words = NAME.sub(r"[`\1`][keras_logits.\1]", words)
    return f"**{found[1]}:** {words}\n\n"
