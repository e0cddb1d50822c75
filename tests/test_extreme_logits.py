"""Logits at the end of what floats reach, and classes that a bias masks.

Two such logits lie further apart than float32 can say. A loss is what float64 gives,
rounded; +inf where float32 ends before. Gradients are finite, always.
"""

import itertools

import numpy as np
import pytest
from keras import ops

from keras_logits import (
    LogitsHead,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    kernels,
    linear_softmax_cross_entropy,
)
from strategies import MODES, derived
from test_linear import derived as derived_by

BIG, INF = 3e38, np.inf
ROWS = np.array(
    [
        [BIG, -BIG, 0.0, 1.0],
        [-BIG, BIG, BIG, 0.0],
        [-BIG, -BIG, -BIG, -BIG],
        [0.0, 1.0, -BIG, -INF],
        [-BIG, BIG, -INF, 7.0],
    ],
    "float32",
)
CLASS_WEIGHT = [0.05, 0.1, 0.2, 0.1]
OPTIONS = [
    {"label_smoothing": smoothing, "focal_gamma": gamma}
    for smoothing, gamma in itertools.product((0.0, 0.1), (0.0, 0.5, 2.0))
]
LABELS = {
    "ids": np.array([0, 0, 1, 2, 0]),
    "distributions": np.array([[0.05, 0.02, 0.01, 0.0]] * 5, "float32"),
}
modes = pytest.mark.parametrize("mode", MODES)
options = pytest.mark.parametrize("options", OPTIONS, ids=str)


def by_float64(labels, label_smoothing, focal_gamma):
    """The losses of the rows, and their gradients."""
    z, c = ROWS.astype("float64"), np.array(CLASS_WEIGHT)
    y = np.eye(4)[labels] if labels.ndim == 1 else labels.astype("float64")
    is_open = z > -INF
    count = is_open.sum(-1, keepdims=True)
    t = (1 - label_smoothing) * y
    t = c * (t + label_smoothing * y.sum(-1, keepdims=True) * is_open / count)
    shifted = z - z.max(-1, keepdims=True)
    exp = np.exp(shifted)
    total = exp.sum(-1, keepdims=True)
    log_p, p = np.where(is_open, shifted - np.log(total), 0.0), exp / total
    rest = -np.expm1(log_p)
    factor = np.where(is_open, rest**focal_gamma, 1.0)
    safe = np.where(rest > 0, rest, 1.0)
    slope = factor - focal_gamma * factor * p * log_p / safe
    loss = -(t * factor * log_p).sum(-1)
    loss = np.where((~is_open & (t > 0)).any(-1), INF, loss)
    pulled = np.where(is_open, t * slope, 0.0)
    return loss, p * (t * slope).sum(-1, keepdims=True) - pulled


def close_in_float32(found, expected):
    with np.errstate(over="ignore"):
        expected = expected.astype("float32")
    np.testing.assert_allclose(found, expected, 1e-5, 1e-8)


@modes
@options
@pytest.mark.parametrize("form", LABELS)
def test_losses_and_gradients_are_those_of_float64(form, options, mode):
    """Smoothing and a focal factor together gave NaN, and a small target 0."""
    loss = SoftmaxCrossEntropy(
        True, reduction=None, class_weight=CLASS_WEIGHT, **options
    )

    def value_and_total(z):
        value = loss(LABELS[form], z)
        return value, ops.sum(value)

    value, gradient = derived(value_and_total, ROWS, mode)
    expected = by_float64(LABELS[form], **options)
    close_in_float32(value, expected[0])
    close_in_float32(gradient, expected[1])


@options
def test_a_fused_loss_has_the_same(options):
    """The bias makes the logits: of features that are 0, a row of them at a time."""
    for row, label in zip(ROWS, LABELS["ids"], strict=True):
        arrays = {
            "features": np.zeros((1, 3), "float32"),
            "kernel": np.zeros((3, 4), "float32"),
            "bias": row,
        }

        def run(features, kernel, bias, label=label):
            return linear_softmax_cross_entropy(
                features,
                kernel,
                np.array([label]),
                bias=bias,
                class_weight=CLASS_WEIGHT,
                reduction="sum",
                **options,
            )

        value, gradients = derived_by(run, arrays, asked=("bias",))
        index = int(np.flatnonzero((row == ROWS).all(-1))[0])
        expected = by_float64(LABELS["ids"], **options)
        close_in_float32(value, expected[0][index])
        close_in_float32(gradients["bias"], 3.0 * expected[1][index])


@modes
@pytest.mark.parametrize("focal_gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_units_have_finite_gradients_too(focal_gamma, label_smoothing, mode):
    z = np.array([[BIG, -BIG, BIG, -BIG]], "float32")
    y = np.array([[1.0, 0.0, 0.0, 1.0]], "float32")
    loss = SigmoidCrossEntropy(
        True,
        reduction="sum",
        class_weight=[0.1, 0.2, 0.1, 0.1],
        pos_weight=0.5,
        focal_gamma=focal_gamma,
        label_smoothing=label_smoothing,
    )

    def value_and_total(z):
        value = loss(y, z)
        return value, value

    value, gradient = derived(value_and_total, z, mode)
    t, c = (1 - label_smoothing) * y + label_smoothing / 2, [0.1, 0.2, 0.1, 0.1]
    yes, no = np.where(z > 0, 0.0, BIG), np.where(z > 0, BIG, 0.0)
    np.testing.assert_allclose(
        value, (c * (0.5 * t * yes + (1 - t) * no)).sum() / np.sum(c), 1e-5
    )
    expected = c * np.where(z > 0, 1 - t, -0.5 * t) / np.sum(c)
    np.testing.assert_allclose(gradient, expected, 1e-5)


def test_a_z_loss_that_overflows_leaves_finite_gradients():
    z = np.array([[BIG, -BIG, 0.0]], "float32")
    loss = SoftmaxCrossEntropy(True, z_loss=1.0)

    def value_and_total(z):
        value = loss(np.array([1]), z)
        return value, value

    value, gradient = derived(value_and_total, z, MODES[0])
    assert value == INF
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0, 2], 0.0)


# A bias of -inf


@modes
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_bias_of_minus_infinity_masks_a_class_behind_a_softcap(
    smoothing, fused, mode
):
    rng = np.random.default_rng(0)
    arrays = {
        "features": rng.normal(size=(3, 4)).astype("float32"),
        "kernel": rng.normal(size=(4, 5)).astype("float32"),
        "bias": np.array([0.5, -INF, 0.0, 1.0, -INF], "float32"),
    }
    kept = [0, 2, 3]

    def capped(a):
        return 2.0 * ops.tanh(a / 2.0) / 1.5

    def with_all(features, kernel, bias):
        if fused:
            return linear_softmax_cross_entropy(
                features,
                kernel,
                np.array([0, 2, 3]),
                bias=bias,
                softcap=2.0,
                temperature=1.5,
                label_smoothing=smoothing,
            )
        recipe = kernels.contract.LinearLogits(
            kernels.Linear(features, kernel, bias),
            kernels.contract.Squash(2.0, 1.5),
        )
        logits = kernels.logits_of(recipe)
        loss = SoftmaxCrossEntropy(True, label_smoothing=smoothing)
        return loss(np.array([0, 2, 3]), logits)

    def without(features, kernel, bias):
        loss = SoftmaxCrossEntropy(True, label_smoothing=smoothing)
        return loss(np.array([0, 1, 2]), capped(ops.matmul(features, kernel) + bias))

    fewer = {name: array[..., kept] for name, array in arrays.items()}
    fewer["features"] = arrays["features"]
    value, found = derived_by(with_all, arrays, mode=mode)
    other, expected = derived_by(without, fewer, mode=mode)
    np.testing.assert_allclose(value, other, 1e-6)
    np.testing.assert_allclose(found["features"], expected["features"], 1e-4, 1e-6)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(found[name][..., kept], expected[name], 1e-4, 1e-6)
        np.testing.assert_array_equal(found[name][..., [1, 4]], 0.0)


def test_a_head_masks_and_caps():
    head = LogitsHead(3, softcap=2.0)
    head.build((None, 2))
    head.bias.assign([0.0, -INF, 100.0])
    logits = ops.convert_to_numpy(head(np.zeros((1, 2), "float32")))
    np.testing.assert_allclose(logits, [[0.0, -INF, 2.0]])
