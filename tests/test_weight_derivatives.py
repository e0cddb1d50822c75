"""The derivative by a weight of 0 is the loss behind it, as by any other weight.

Weights that are learned may start at 0. What is not finite, a mask or an ignored label
hides; it stays out of all that is computed.
"""

import importlib

import numpy as np
import pytest
from keras import ops

from gradients import (
    BACKEND,
    MODES,
    derived_again,
    gradients,
    numpy_of,
    value_and_gradients,
)
from keras_logits import (
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    linear_softmax_cross_entropy,
)

pytestmark = pytest.mark.compiled_fast
RNG = np.random.default_rng(0)
ROWS, CLASSES, SIZE = 7, 5, 3
IDS = RNG.integers(0, CLASSES, ROWS).astype("int32")
UNITS = (RNG.random((ROWS, CLASSES)) < 0.4).astype("float32")
LOGITS = 2 * RNG.normal(size=(ROWS, CLASSES)).astype("float32")
FEATURES = RNG.normal(size=(ROWS, SIZE)).astype("float32")
KERNEL = RNG.normal(size=(SIZE, CLASSES)).astype("float32")
WEIGHTS = np.array([0, 1, 0, 2, 0.5, 0, 1], "float32")
UPSTREAM = np.array([1, 2, 3, 1, 2, 3, 1], "float32")
OPTIONS = {"label_smoothing": 0.1, "focal_gamma": 1.5, "class_weight": [2, 1, 0, 1, 3]}
MEAN = "mean_with_sample_weight"


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax_losses(z):
    return -log_softmax(np.asarray(z, "float64"))[np.arange(ROWS), IDS]


def sigmoid_losses(z):
    z = np.asarray(z, "float64")
    return (np.logaddexp(0, z) - UNITS * z).mean(-1)


def fused(x, k, w, labels=IDS, reduction="sum", **options):
    return linear_softmax_cross_entropy(
        x, k, labels, sample_weight=w, reduction=reduction, **options
    )


PLAIN = {
    "softmax": (SoftmaxCrossEntropy, IDS, softmax_losses),
    "sigmoid": (SigmoidCrossEntropy, UNITS, sigmoid_losses),
}
each_mode = pytest.mark.parametrize("mode", MODES)
each_kind = pytest.mark.parametrize("kind", PLAIN)


@each_mode
@each_kind
def test_a_sum_has_the_losses_as_derivatives_by_its_weights(kind, mode):
    cls, labels, losses = PLAIN[kind]
    loss = cls(True, reduction="sum")
    value, (found,) = value_and_gradients(
        lambda w: loss(labels, LOGITS, w), [WEIGHTS], mode
    )
    expected = losses(LOGITS)
    np.testing.assert_allclose(value, np.sum(WEIGHTS * expected), rtol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@each_mode
@pytest.mark.parametrize("reduction", ["sum", MEAN, None])
def test_so_has_a_fused_one(reduction, mode):
    def total(x, k, w):
        value = fused(x, k, w, reduction=reduction)
        return ops.sum(value if reduction else ops.multiply(UPSTREAM, value))

    *_, found = gradients(total, [FEATURES, KERNEL, WEIGHTS], mode)
    losses = softmax_losses(FEATURES @ KERNEL)
    expected = losses if reduction else UPSTREAM * losses
    if reduction == MEAN:
        whole = WEIGHTS.sum()
        expected = (losses - WEIGHTS @ losses / whole) / whole
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["ids", "distributions", "units", "fused"])
def test_with_every_option_a_sum_is_linear_in_its_weights(form):
    """Its derivatives are the same wherever the weights are, and so at 0."""
    units = {**OPTIONS, "pos_weight": 3.0}
    losses = {
        "ids": (SoftmaxCrossEntropy, OPTIONS, IDS),
        "distributions": (SoftmaxCrossEntropy, OPTIONS, UNITS + 0.1),
        "units": (SigmoidCrossEntropy, units, UNITS),
    }

    def total(w):
        if form == "fused":
            return fused(FEATURES, KERNEL, w, z_loss=0.1, **OPTIONS)
        cls, options, labels = losses[form]
        return cls(True, reduction="sum", **options)(labels, LOGITS, w)

    (at_zero,) = gradients(total, [0 * WEIGHTS])
    (at_one,) = gradients(total, [1 + 0 * WEIGHTS])
    np.testing.assert_allclose(at_zero, at_one, rtol=2e-6)
    assert np.abs(at_one).min() > 0.01


HIDDEN = np.array([0, 2])  # of the positions whose weight is 0


def with_hidden(values, fill):
    values = values.copy()
    values[HIDDEN] = fill
    return values


@each_mode
@pytest.mark.parametrize("fill", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [*PLAIN, "fused"])
def test_what_is_not_finite_behind_it_reaches_nothing(kind, fill, mode):
    """Not the value, and no gradient: not by other weights, of a mean, either."""

    if kind == "fused":
        rows, others = FEATURES, [KERNEL, WEIGHTS]

        def total(rows, kernel, w):
            return fused(rows, kernel, w, reduction=MEAN)

    else:
        cls, labels, _ = PLAIN[kind]
        rows, others = LOGITS, [WEIGHTS]

        def total(rows, w):
            return cls(True)(labels, rows, w)

    safe, bad = ([with_hidden(rows, value), *others] for value in (0.0, fill))
    expected_value, expected = value_and_gradients(total, safe, mode)
    value, found = value_and_gradients(total, bad, mode)
    expected[-1][HIDDEN] = -value / WEIGHTS.sum()  # of the denominator alone
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("by", ["mask", "ignored label"])
@pytest.mark.parametrize("kind", [*PLAIN, "fused"])
def test_a_position_that_does_not_count_has_no_derivative(kind, by):
    options = {"ignore_index": -1} if by == "ignored label" else {}
    labels = PLAIN["softmax" if kind == "fused" else kind][1]
    labels = with_hidden(labels, -1) if options else labels

    def total(w):
        if by == "mask" and kind != "fused":
            logits = ops.convert_to_tensor(LOGITS)
            logits._keras_mask = ops.convert_to_tensor(~np.isin(range(ROWS), HIDDEN))
        else:
            logits = LOGITS
        if kind == "fused":
            return fused(FEATURES, KERNEL, w, labels, **options)
        return PLAIN[kind][0](True, reduction="sum", **options)(labels, logits, w)

    if by == "mask" and kind == "fused":
        pytest.skip("the function takes no mask")
    (found,) = gradients(total, [1 + 0 * WEIGHTS])
    assert not found[HIDDEN].any()
    assert np.delete(found, HIDDEN).all()


@each_mode
@each_kind
def test_a_gradient_by_logits_has_a_derivative_by_a_weight_of_zero(kind, mode):
    """Softmax or sigmoid, less the target; whichever is first."""
    cls, labels, _ = PLAIN[kind]
    loss, vector = cls(True, reduction="sum"), RNG.normal(size=LOGITS.shape)
    vector = vector.astype("float32")
    if kind == "softmax":
        slopes = np.exp(log_softmax(LOGITS.astype("float64"))) - np.eye(CLASSES)[IDS]
    else:
        slopes = (1 / (1 + np.exp(-LOGITS.astype("float64"))) - UNITS) / CLASSES

    def total(z, w):
        return loss(labels, z, w)

    arrays = [LOGITS, WEIGHTS]
    found = derived_again(total, arrays, 0, 1, vector, mode)
    np.testing.assert_allclose(found, (slopes * vector).sum(-1), atol=1e-5)
    found = derived_again(total, arrays, 1, 0, vector[:, 0], mode)
    np.testing.assert_allclose(found, slopes * vector[:, :1], atol=1e-5)


@each_mode
@each_kind
def test_second_derivatives_are_zero_where_something_hides(kind, mode):
    cls, labels, _ = PLAIN[kind]
    loss = cls(True, label_smoothing=0.1, focal_gamma=1.0)
    arrays = [with_hidden(LOGITS, np.nan), WEIGHTS]
    for by, vector in ((0, np.ones_like(LOGITS) + LOGITS), (1, UPSTREAM)):
        along = derived_again(
            lambda z, w: loss(labels, z, w), arrays, by, 0, vector, mode
        )
        assert not along[HIDDEN].any()
        assert np.isfinite(along).all()
        assert along.any()


def test_no_token_is_passed_over_twice_unless_weights_are_differentiated(monkeypatch):
    body = importlib.import_module(f"keras_logits.kernels.{BACKEND}")
    name = {"tensorflow": "_compiled_rest", "jax": "_all_losses", "torch": "left_out"}
    name, times = name[BACKEND], []
    before = getattr(body, name)
    monkeypatch.setattr(
        body, name, lambda *given: times.append(1) or before(*given), raising=True
    )
    other = 1 + WEIGHTS
    gradients(lambda x, k: fused(x, k, other, z_loss=0.3), [FEATURES, KERNEL])
    assert not times
    gradients(lambda w: fused(FEATURES, KERNEL, w, z_loss=0.3), [other])
    assert times == [1]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others know what is asked for")
def test_a_graph_drops_that_second_pass():
    """It is no operation with effects, and nothing that is returned depends on it."""
    import tensorflow as tf

    @tf.function
    def step(x, k, w):
        with tf.GradientTape() as tape:
            tape.watch([x, k])
            value = fused(x, k, w)
        return value, tape.gradient(value, [x, k])

    arrays = [tf.constant(array) for array in (FEATURES, KERNEL, WEIGHTS)]
    graph = step.get_concrete_function(*arrays).graph
    assert not graph.control_outputs
    passes = [op for op in graph.get_operations() if "Call" in op.type]
    needed, stack = set(), [output.op for output in graph.outputs]
    while stack:
        op = stack.pop()
        if op.name not in needed:
            needed.add(op.name)
            stack += [x.op for x in op.inputs] + op.control_inputs
    assert len([op for op in passes if op.name in needed]) == 1
    assert numpy_of(step(*arrays)[0]) > 0
