"""The rank of a label, found from the highest logit of each block of classes."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits.kernels.kept import Kept, Label, rank_of
from keras_logits.maths.figures import FIRST

TORCH = keras.config.backend() == "torch"
pytestmark = pytest.mark.skipif(TORCH, reason="torch has a loop of its own")
COLUMNS, TOKENS = 4, 64
if keras.config.backend() == "jax":
    import jax

    RANK_OF = jax.jit(rank_of)  # which would compile each operation at each size
else:
    RANK_OF = rank_of


def ranks(z, labels):
    """As `argmax` and a stable sort have it: the first of equal logits comes first."""
    order = np.argsort(-z, axis=1, kind="stable")
    return np.argmax(order == labels[:, None], axis=1)


def found(z, labels):
    whole = z.shape[1] // COLUMNS
    blocks = z[:, : whole * COLUMNS].reshape(len(z), whole, COLUMNS)
    rest = z[:, whole * COLUMNS :]
    kept = Kept(
        ops.convert_to_tensor(np.ascontiguousarray(blocks.transpose(1, 0, 2))),
        ops.convert_to_tensor(rest) if rest.size else None,
        ops.convert_to_tensor(blocks.max(axis=2)),
    )
    own = np.take_along_axis(z, labels[:, None], axis=1)
    label = Label(ops.convert_to_tensor(own), ops.convert_to_tensor(labels[:, None]))
    return ops.convert_to_numpy(RANK_OF(label, kept))[:, 0]


def assert_ranked(z, labels):
    z, labels = z.astype("float32"), labels.astype("int32")
    np.testing.assert_array_equal(
        np.minimum(found(z, labels), FIRST), np.minimum(ranks(z, labels), FIRST)
    )


@pytest.mark.parametrize("classes", [4, 7, 8, 20, 23, 24, 27, 40, 81])
def test_it_is_that_of_a_sort(classes):
    rng = np.random.default_rng(classes)
    z = rng.normal(size=(TOKENS, classes))
    labels = rng.integers(0, classes, TOKENS)
    # Half of the labels are among the first, where the rank is exact.
    rows = np.arange(TOKENS // 2)
    z[rows, labels[rows]] += 1.5
    assert_ranked(z, labels)


@pytest.mark.parametrize("values", [1, 2, 5])
@pytest.mark.parametrize("classes", [8, 40, 81])
def test_the_first_of_equal_logits_comes_first(classes, values):
    rng = np.random.default_rng(values)
    z = rng.integers(0, values, (TOKENS, classes))
    assert_ranked(z, rng.integers(0, classes, TOKENS))


@pytest.mark.parametrize("ahead", range(FIRST + 2))
def test_classes_ahead_each_in_a_block_of_its_own(ahead):
    """The label's own block holds none, and is one of those that are read."""
    z = np.zeros((1, 10 * COLUMNS))
    labels = np.array([9 * COLUMNS + 1])
    z[0, labels] = 1
    z[0, np.arange(ahead) * COLUMNS + 2] = 2
    assert_ranked(z, labels)


@pytest.mark.parametrize("ahead", range(COLUMNS))
def test_classes_ahead_after_the_blocks(ahead):
    z = np.zeros((1, 3 * COLUMNS + COLUMNS - 1))
    z[0, 0] = 1
    z[0, 3 * COLUMNS : 3 * COLUMNS + ahead] = 2
    assert_ranked(z, np.array([0]))


def test_masked_and_infinite_logits():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(TOKENS, 42))
    z[rng.random(z.shape) < 0.4] = -np.inf
    assert_ranked(z, rng.integers(0, 42, TOKENS))


@pytest.mark.parametrize("own", [np.nan, np.inf])
def test_a_label_that_is_no_number_is_not_among_the_first(own):
    z = np.zeros((1, 40), "float32")
    z[0, 17] = own
    assert found(z, np.array([17], "int32")) >= FIRST


def test_a_class_that_is_no_number_comes_before_the_label():
    z = np.zeros((1, 40), "float32")
    z[0, 17], z[0, 30] = 1, np.nan
    assert found(z, np.array([17], "int32")) == 1
