"""NaN features at a step that does not count leave the head's weights finite.

The kernel's gradient is a product with the features, and 0 times NaN is NaN. At a step
that counts NaN stays loud.
"""

import numpy as np
import pytest
from keras import ops

from gradients import MODES, value_and_gradients
from keras_logits import LogitsHead, SigmoidCrossEntropy, SoftmaxCrossEntropy
from keras_logits._keras_private import set_keras_mask
from keras_logits.kernels import logits_of
from keras_logits.kernels.contract import Linear, LinearLogits
from keras_logits.maths.squash import Squash
from keras_logits.provenance import Mark, mark

RNG = np.random.default_rng(0)
ROWS, SIZE, CLASSES, HIDDEN = 5, 3, 4, 2
X = RNG.normal(size=(ROWS, SIZE)).astype("float32")
KERNEL = RNG.normal(size=(SIZE, CLASSES)).astype("float32")
IDS = RNG.integers(0, CLASSES, ROWS)
UNITS = np.eye(CLASSES, dtype="float32")[IDS]
COUNTS = np.arange(ROWS) != HIDDEN


def weighted(loss, labels, logits):
    return loss(labels, logits, COUNTS.astype("float32"))


def masked(loss, labels, logits):
    set_keras_mask(logits, ops.convert_to_tensor(COUNTS))
    return loss(labels, logits)


def ignored(loss, labels, logits):
    hidden = COUNTS if labels.ndim == 1 else COUNTS[:, None]
    return loss(np.where(hidden, labels, -1), logits)


WAYS = [weighted, masked, ignored]
LOSSES = {
    "softmax": (SoftmaxCrossEntropy(ignore_index=-1, fused=False), IDS),
    "sigmoid": (SigmoidCrossEntropy(ignore_index=-1), UNITS),
}


def solved(name, way, x, mode="eager"):
    loss, labels = LOSSES[name]

    def value(x, kernel):
        logits = logits_of(LinearLogits(Linear(x, kernel, None), Squash()))
        mark(logits, Mark(name))
        return way(loss, labels, logits)

    return value_and_gradients(value, [x, KERNEL], mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_of_0_hides_them(name, bad, mode):
    x = np.where(COUNTS[:, None], X, np.float32(bad))
    value, (by_x, by_kernel) = solved(name, weighted, x, mode)
    expected, (by_good_x, by_good_kernel) = solved(name, weighted, X)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(by_kernel, by_good_kernel, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(by_x[COUNTS], by_good_x[COUNTS], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(by_x[HIDDEN], 0.0)


@pytest.mark.parametrize("way", [masked, ignored])
@pytest.mark.parametrize("name", LOSSES)
def test_so_do_a_mask_and_an_ignored_label(name, way):
    x = np.where(COUNTS[:, None], X, np.float32("nan"))
    _, (by_x, by_kernel) = solved(name, way, x)
    _, (_, by_good_kernel) = solved(name, weighted, X)
    np.testing.assert_allclose(by_kernel, by_good_kernel, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(by_x[HIDDEN], 0.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOSSES)
def test_at_a_step_that_counts_they_are_loud(name, mode):
    x = np.where(COUNTS[:, None], np.float32("nan"), X)
    value, (_, by_kernel) = solved(name, weighted, x, mode)
    assert np.isnan(value)
    assert np.isnan(by_kernel).all()


def test_the_product_of_finite_features_is_the_plain_product():
    head = LogitsHead(CLASSES, use_bias=False)
    found = ops.convert_to_numpy(head(X))
    kernel = ops.convert_to_numpy(head.kernel)
    np.testing.assert_allclose(found, X @ kernel, rtol=1e-5, atol=1e-6)
