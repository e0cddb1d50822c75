"""Each row of docs/migrate.md: both cells are run, values and gradients compared.

The page is the list of cases: a row that is added to it is tested, and none is tested
that it does not have. Its one block of Python makes the data of the rows.
"""

import re
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import MarkLogits

pytestmark = pytest.mark.compiled_fast
PAGE = Path(__file__).parents[1] / "docs" / "migrate.md"
TEXT = PAGE.read_text()
BACKEND = keras.config.backend()
SECTIONS = {  # which backends run its rows
    "From Keras": ("tensorflow", "jax", "torch"),
    "From tf.nn": ("tensorflow",),
    "From PyTorch": ("torch",),
    "From optax": ("jax",),
    "Back again": ("tensorflow", "jax", "torch"),
}
CELLS = re.compile(r"^\| `([^`]+)` \| `([^`]+)`(?:<br>.*)? \|$", re.MULTILINE)


class Row(NamedTuple):
    """Two expressions of the same number."""

    one: str
    other: str


def section(title):
    start = rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)"
    return re.search(start, TEXT, re.MULTILINE | re.DOTALL)[1]


def rows_of(title):
    return [Row(*row) for row in CELLS.findall(section(title))]


ROWS = [
    row for title, runs in SECTIONS.items() if BACKEND in runs for row in rows_of(title)
]


def names_of_the_page():
    names = {}
    exec(re.search(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[1], names)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return {**names, "tf": tf}
    if BACKEND == "torch":
        import torch

        return {**names, "torch": torch}
    import optax

    return {**names, "optax": optax}


NAMES = names_of_the_page()


def evaluated(cell, scores):
    """What a cell gives for other scores than those of the page."""
    made = {
        "z": MarkLogits("softmax")(scores),
        "s": MarkLogits("sigmoid")(scores),
        "p": ops.softmax(scores),
        "q": ops.sigmoid(scores),
        "x": scores,
    }
    return eval(cell, {**NAMES, **made})


def gradient(function, scores):
    if BACKEND == "jax":
        import jax

        return jax.grad(function)(scores)
    if BACKEND == "tensorflow":
        with NAMES["tf"].GradientTape() as tape:
            tape.watch(scores)
            value = function(scores)
        return tape.gradient(value, scores)
    scores = scores.detach().requires_grad_()
    return NAMES["torch"].autograd.grad(function(scores), scores)[0]


def solved(cell):
    """The value of a cell, and the gradient of its sum under weights that differ."""

    def total(scores):
        value = evaluated(cell, scores)
        upstream = np.linspace(1.0, 2.0, int(np.prod(value.shape)), dtype="float32")
        return ops.sum(value * ops.reshape(upstream, tuple(value.shape)))

    value = evaluated(cell, NAMES["scores"])
    return [ops.convert_to_numpy(v) for v in (value, gradient(total, NAMES["scores"]))]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.one} is {row.other}")
def test_both_cells_of_a_row_give_one_number_and_one_gradient(row):
    for one, other in zip(solved(row.one), solved(row.other), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


REDUCTION = re.compile(r',? ?reduction="sum_over_batch_size"')


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if REDUCTION.search(row.other)],
    ids=lambda row: f"{row.one} is {row.other}",
)
def test_a_row_that_names_a_reduction_needs_it(row):
    with_default = solved(REDUCTION.sub("", row.other))[0]
    assert abs(with_default - solved(row.one)[0]) > 1e-3


def test_no_table_of_the_page_escapes():
    told = [
        title
        for title in re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
        if re.match(r"From |Back ", title)
    ]
    assert told == list(SECTIONS)
    for title in SECTIONS:
        tables = re.findall(r"^\|.*$", section(title), re.MULTILINE)
        headings = 2 * sum(line.startswith("| --- ") for line in tables)
        assert len(rows_of(title)) == len(tables) - headings > 0


def test_each_side_of_a_row_is_of_its_own_library():
    ours = re.compile(r"\b(SoftmaxCross|SigmoidCross|\w+_cross_entropy\(|prob|logit\()")
    theirs = re.compile(r"\b(losses|ops|tf|torch|optax)\.")
    for title in SECTIONS:
        for row in rows_of(title):
            here, there = row if title == "Back again" else reversed(row)
            assert ours.search(here), here
            assert theirs.search(there), there
            assert "CrossEntropy(" not in there.replace("torch.nn.", ""), there


PEERS = {
    "tensorflow": {
        "tf.nn": r".*cross_entropy.*|nce_loss|sampled_softmax_loss",
        "tf.compat.v1.losses": r".*cross_entropy",
    },
    "torch": {"torch.nn.functional": r".*cross_entropy.*|nll_loss"},
    "jax": {"optax.losses": r".*cross_entropy.*|.*focal.*"},
}
KERAS = {"losses": r".*[Cc]ross_?[Ee]ntropy", "ops": r".*crossentropy"}


@pytest.mark.parametrize("module", {**KERAS, **PEERS[BACKEND]})
def test_every_cross_entropy_of_a_library_is_on_the_page(module):
    pattern = re.compile({**KERAS, **PEERS[BACKEND]}[module])
    there = {name for name in dir(eval(module, NAMES)) if pattern.fullmatch(name)}
    assert there, "the pattern finds nothing"
    words = set(re.findall(r"\w+", TEXT))
    assert there <= words, there - words
