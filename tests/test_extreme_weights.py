"""A mean divides by its weights, whatever size they have."""

import numpy as np
import pytest
from keras import ops

from gradients import value_and_gradients
from keras_logits import (
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    linear_softmax_cross_entropy,
)

Z = np.array([[0.0, 2.0], [0.0, 2.0], [1.0, -1.0], [3.0, 3.1]], "float32")
IDS = np.array([0, 1, 1, 0])
RATIOS = np.array([1.0, 0.5, 1.0, 1.0])


def log_softmax(z):
    return z - np.logaddexp.reduce(z, -1, keepdims=True)


def of_softmax(weights, mass=1.0):
    losses = -log_softmax(Z.astype("float64"))[np.arange(4), IDS]
    shares = weights * mass
    return (shares * losses).sum() / shares.sum(), losses


CLASS_WEIGHT = np.array([0.5, 2.0])
CASES = {
    "softmax": (lambda w: SoftmaxCrossEntropy(True)(IDS, Z, w), 1.0),
    "class weights": (
        lambda w: SoftmaxCrossEntropy(True, class_weight=[0.5, 2.0])(IDS, Z, w),
        CLASS_WEIGHT[IDS],
    ),
    "fused": (
        lambda w: linear_softmax_cross_entropy(
            Z, np.eye(2, dtype="float32"), IDS, sample_weight=w
        ),
        1.0,
    ),
}


@pytest.mark.parametrize("size", [1.0, 1e38, 3e38, 1e-37])
@pytest.mark.parametrize("case", CASES)
def test_a_mean_is_that_of_the_ratios(case, size):
    loss, mass = CASES[case]
    expected, losses = of_softmax(RATIOS, mass)
    weights = (RATIOS * size).astype("float32")
    value, (by_weights,) = value_and_gradients(loss, [weights])
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    slopes = mass * (losses - expected) / (RATIOS * mass).sum()
    # By weights of such sizes a derivative may be more than the largest float, or so
    # small that XLA makes it 0.
    said = (np.abs(slopes / size) < 1e38) & (np.abs(slopes / size) > 2e-38)
    found = by_weights.astype("float64") * size
    np.testing.assert_allclose(found[said], slopes[said], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1e38, 1e-37])
def test_so_is_that_of_a_sigmoid(size):
    units = np.eye(2, dtype="float32")[IDS]
    weights = (RATIOS * size).astype("float32")
    found = SigmoidCrossEntropy(True)(units, Z, weights)
    losses = (np.logaddexp(0, Z.astype("float64")) - units * Z).mean(-1)
    expected = (RATIOS * losses).sum() / RATIOS.sum()
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=2e-6)


@pytest.mark.parametrize("rows", [4, 0])
def test_a_mean_over_nothing_is_0(rows):
    weights = np.zeros(rows, "float32")
    found = SoftmaxCrossEntropy(True)(IDS[:rows], Z[:rows], weights)
    assert float(ops.convert_to_numpy(found)) == 0.0
