"""The losses against their formulas, written out in NumPy with more digits.

The error of a loss and of its gradient may be that of the same formulas in the dtype of
the logits, plus a few roundings. Logits have every scale, and shapes that nothing
divides.
"""

from typing import NamedTuple

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from keras_logits import (
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from keras_logits.maths.sums import BLOCK

BACKEND = keras.config.backend()
WIDER = {"float32": "float64", "float64": "longdouble"}
ROUNDINGS = 8  # of numbers of the scale of a value: a sum, a logarithm, a division
SCALES = (1.0, 30.0, 1e4)


# The formulas


class Answer(NamedTuple):
    """Values, their gradients, and the size of what a gradient is a difference of."""

    values: np.ndarray
    gradient: np.ndarray
    pull: np.ndarray
    mass: np.ndarray


def softmax_by_hand(
    y, z, class_weight=None, label_smoothing=0.0, focal_gamma=0.0, z_loss=0.0
):
    """Of distributions, with the classes last, in the dtype of the logits."""
    y = y.astype(z.dtype)
    c = per_class(class_weight, z)
    masked = np.isneginf(z)
    mass = y.sum(-1, keepdims=True)
    share = mass / np.maximum(np.sum(~masked, -1, keepdims=True), 1)
    t = (1 - label_smoothing) * y + label_smoothing * share * ~masked
    d = np.where(mass == 0, 1, (c * y).sum(-1, keepdims=True) / np.where(mass, mass, 1))

    # The largest term of the sum is 1 and stays apart: what is lost beside a 1 counts.
    top = np.arange(z.shape[-1]) == z.argmax(-1)[..., None]
    highest = np.where(masked.all(-1), 0, z.max(-1))[..., None]
    e = np.exp(z - highest)
    others = np.where(top, 0, e).sum(-1, keepdims=True)
    tail = np.log1p(others)
    p = e / (1 + others)
    log_p = np.where(top & ~masked, -tail, z - highest - tail)
    rest = np.where(top & ~masked, others / (1 + others), 1 - p)

    factor = rest**focal_gamma
    terms = np.where(t * c > 0, -c * t * factor * log_p, 0)
    lse = highest + tail
    values = terms.sum(-1, keepdims=True) + z_loss * d * lse**2
    # (1 - p)^gamma log p, derived by log p: log p / (1 - p) is -1 where p is 1.
    ratio = np.where(rest > 0, log_p / np.where(rest > 0, rest, 1), -1)
    slopes = c * t * (factor - focal_gamma * factor * np.where(p > 0, p * ratio, 0))
    pull = slopes.sum(-1, keepdims=True) + 2 * z_loss * d * lse
    gradient = np.where(masked, 0, p * pull - slopes)
    size = np.abs(slopes).sum(-1, keepdims=True) + 2 * z_loss * d * np.abs(lse)
    return Answer(values[..., 0], gradient, size[..., 0], d[..., 0])


def sigmoid_by_hand(
    y, z, class_weight=None, pos_weight=1.0, label_smoothing=0.0, focal_gamma=0.0
):
    """One value for each unit, with the units last, in the dtype of the logits."""
    y, c = y.astype(z.dtype), per_class(class_weight, z)
    pos_weight = np.asarray(pos_weight, z.dtype)
    t = (1 - label_smoothing) * y + label_smoothing / 2
    tail = np.log1p(np.exp(-np.abs(z)))
    log_s, log_r = np.minimum(z, 0) - tail, np.minimum(-z, 0) - tail
    s, r = np.exp(log_s), np.exp(log_r)
    m1, m0 = np.exp(focal_gamma * log_r), np.exp(focal_gamma * log_s)

    def product(factor, log):
        return np.where(factor > 0, factor * log, 0)

    values = -c * (product(pos_weight * t * m1, log_s) + product((1 - t) * m0, log_r))
    by_s = m1 * (r - focal_gamma * product(s, log_s))
    by_r = m0 * (s - focal_gamma * product(r, log_r))
    gradient = c * ((1 - t) * by_r - pos_weight * t * by_s)
    size = c * ((1 - t) * by_r + pos_weight * t * by_s)
    return Answer(values, gradient, size, c + np.zeros_like(z))


def per_class(weights, z):
    if isinstance(weights, dict):
        weights = [weights.get(k, 1.0) for k in range(z.shape[-1])]
    return (
        np.ones(z.shape[-1], z.dtype) if weights is None else np.array(weights, z.dtype)
    )


# The problems


class Family(NamedTuple):
    function: object
    loss: object
    by_hand: object
    options: dict


CLASS_WEIGHT = {0: 0.0, 2: 3.0, 5: 0.25}
SOFTMAX = Family(
    softmax_cross_entropy,
    SoftmaxCrossEntropy,
    softmax_by_hand,
    {
        "plain": {},
        "class_weight": {"class_weight": CLASS_WEIGHT},
        "label_smoothing": {"label_smoothing": 0.1},
        "focal_gamma": {"focal_gamma": 2.0},
        "flat focal_gamma": {"focal_gamma": 0.5},
        "z_loss": {"z_loss": 1e-3},
        "all": {
            "class_weight": CLASS_WEIGHT,
            "label_smoothing": 0.2,
            "focal_gamma": 1.5,
            "z_loss": 1e-4,
        },
    },
)
SIGMOID = Family(
    sigmoid_cross_entropy,
    SigmoidCrossEntropy,
    sigmoid_by_hand,
    {
        "plain": {},
        "class_weight": {"class_weight": CLASS_WEIGHT},
        "pos_weight": {"pos_weight": 5.0},
        "label_smoothing": {"label_smoothing": 0.1},
        "focal_gamma": {"focal_gamma": 2.0},
        "flat focal_gamma": {"focal_gamma": 0.5},
        "all": {
            "class_weight": CLASS_WEIGHT,
            "pos_weight": [0.0, 0.5, *range(9)],
            "label_smoothing": 0.2,
            "focal_gamma": 1.5,
        },
    },
)
WHAT = {
    "ids": (SOFTMAX, "ids"),
    "distributions": (SOFTMAX, "distributions"),
    "units": (SIGMOID, "units"),
}
ALL = [(what, name) for what, (family, _) in WHAT.items() for name in family.options]
WEIGHTED = [(what, name) for what in WHAT for name in ("plain", "class_weight", "all")]
FEW = [(what, name) for what in WHAT for name in ("plain", "all")]
SHAPES = {
    "ids": ((7, 11), -1),
    "distributions": ((3, 13, 5), 1),
    "units": ((3, 11, 5), 1),
}


class Problem:
    """Logits of every scale, with their labels and options."""

    def __init__(self, what, name, dtype="float32"):
        self.family, form = WHAT[what]
        self.options, self.dtype = self.family.options[name], dtype
        shape, self.axis = SHAPES[what]
        rng = np.random.default_rng(0)
        scale = np.resize(SCALES, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        self.logits = as_dtype(scale * rng.normal(size=shape), dtype)
        last = self.last(self.logits)
        ids = rng.integers(0, last.shape[-1], last.shape[:-1])
        # Few distributions sum to 1, some to 0, and some are certain.
        self.dense = rng.random(last.shape) * (rng.random(last.shape) < 0.5)
        self.dense[..., 0] = self.dense[..., 0] > 0
        self.dense[1] = 0.0
        self.dense = self.dense.astype("float32")
        if form == "ids":
            self.labels, self.dense = ids, np.eye(last.shape[-1], dtype="float32")[ids]
        else:
            self.labels = np.moveaxis(self.dense, -1, self.axis)
        # Of few digits, so that these are the same in half precision.
        self.upstream = rng.choice([0.5, 0.75, 2.0], last.shape[:-1]).astype("float32")
        self.weights = rng.choice([0.0, 0.5, 2.0], last.shape[:-1]).astype("float32")

    def last(self, array):
        return np.moveaxis(array, self.axis, -1)

    def by_hand(self, dtype):
        return self.family.by_hand(
            self.dense, self.last(self.logits).astype(dtype), **self.options
        )

    def computed_in(self):
        return "float64" if self.dtype == "float64" else "float32"


def as_dtype(array, dtype):
    return array.astype(getattr(ml_dtypes, dtype, dtype))


def solve(function, problem):
    """The first result of a function, and the gradient of the second by the logits."""
    z = problem.logits
    if BACKEND == "tensorflow":
        import tensorflow as tf

        z = tf.constant(z)
        with tf.GradientTape() as tape:
            tape.watch(z)
            values, total = function(z)
        gradient = tape.gradient(total, z)
    elif BACKEND == "jax":
        import jax

        run = jax.jit(jax.grad(lambda z: function(z)[::-1], has_aux=True))
        gradient, values = run(jax.numpy.asarray(z))
    else:
        import torch

        z = torch.tensor(z.astype("float64")).to(getattr(torch, problem.dtype))
        z.requires_grad_()
        values, total = function(z)
        (gradient,) = torch.autograd.grad(total, z)
    assert keras.backend.standardize_dtype(values.dtype) == problem.computed_in()
    assert keras.backend.standardize_dtype(gradient.dtype) == problem.dtype
    values, gradient = (
        ops.convert_to_numpy(ops.cast(x, problem.computed_in()))
        for x in (ops.stop_gradient(values), gradient)
    )
    return values, problem.last(gradient)


def assert_as_good(found, name, exact, obvious, scale, dtype, problem=None):
    """Its error is at most that of the obvious code, plus a few roundings."""
    with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf
        rounding = np.finfo(dtype).eps * scale + np.finfo(dtype).tiny
        bound = np.abs(obvious - exact) + ROUNDINGS * rounding
        if problem is not None and problem.dtype != dtype:
            stored = ml_dtypes.finfo(as_dtype(np.zeros(0), problem.dtype).dtype)
            bound = bound + float(stored.eps) * np.abs(exact) + float(stored.tiny)
        good = (found == exact) | (np.abs(found - exact) <= bound)
        worst = np.max(np.where(good, 0, np.abs(found - exact) / bound))
    assert found.shape == exact.shape
    assert good.all(), f"{name}: {worst:.3g} times what is allowed"


def assert_values_and_gradient(problem, found, weights, reduce):
    """By hand: `weights` times the values, of which the gradient is the sum's."""
    dtype = problem.computed_in()
    exact, obvious = problem.by_hand(WIDER[dtype]), problem.by_hand(dtype)

    def weighted(answer, values, gradient):
        w = weights(answer).astype(answer.values.dtype)
        wide = w if answer.values.ndim == gradient.ndim else w[..., None]
        return reduce(answer, values), wide * gradient

    value, gradient = weighted(exact, exact.values, exact.gradient)
    plain_value, plain_gradient = weighted(obvious, obvious.values, obvious.gradient)
    pull = exact.pull if exact.pull.ndim == gradient.ndim else exact.pull[..., None]
    scale, slope = weighted(exact, np.abs(exact.values) + exact.pull, pull)
    assert_as_good(found[0], "value", value, plain_value, scale, dtype)
    assert_as_good(
        found[1], "gradient", gradient, plain_gradient, slope, dtype, problem
    )


def assert_the_function_is_right(problem):
    """One value for each position, with an upstream gradient that is not 1."""
    upstream = problem.upstream
    if problem.family is SIGMOID:
        upstream = np.repeat(upstream[..., None], problem.dense.shape[-1], -1)
    moved = upstream
    if problem.family is SIGMOID:
        moved = np.moveaxis(upstream, -1, problem.axis)

    def function(z):
        values = problem.family.function(
            problem.labels, z, axis=problem.axis, **problem.options
        )
        return values, ops.sum(values * ops.cast(moved, values.dtype))

    values, gradient = solve(function, problem)
    if problem.family is SIGMOID:
        values = problem.last(values)
    assert_values_and_gradient(
        problem, (values, gradient), lambda answer: upstream, lambda answer, v: v
    )


def assert_the_loss_is_right(problem):
    """The mean with weights, of everything at once."""
    loss = problem.family.loss(True, axis=problem.axis, **problem.options)

    def function(z):
        value = loss(problem.labels, z, problem.weights)
        return value, value

    def share(answer):
        w = problem.weights.astype(answer.values.dtype)
        w = w[..., None] if problem.family is SIGMOID else w
        return w / np.sum(w * answer.mass)

    def mean(answer, values):
        return np.sum(share(answer) * values)

    assert_values_and_gradient(problem, solve(function, problem), share, mean)


# The tests


@pytest.mark.parametrize(("what", "name"), ALL)
def test_a_function_is_as_accurate_as_the_obvious_code(what, name):
    assert_the_function_is_right(Problem(what, name))


@pytest.mark.parametrize(("what", "name"), WEIGHTED)
def test_a_loss_is_as_accurate_as_the_obvious_code(what, name):
    assert_the_loss_is_right(Problem(what, name))


def test_smoothing_over_more_classes_than_are_summed_at_a_time():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 30, (5, 2 * BLOCK + 3)).astype("float32")
    z[:, ::7] = -np.inf
    ids = 1 + 7 * np.arange(5)
    weight = rng.uniform(0, 2, z.shape[-1])
    options = {"class_weight": weight, "label_smoothing": 0.3}
    found = ops.convert_to_numpy(softmax_cross_entropy(ids, z, **options))
    hot = np.arange(z.shape[-1]) == ids[:, None]
    with np.errstate(invalid="ignore"):  # 0 * inf, selected out
        answer = softmax_by_hand(hot, z.astype("float64"), **options)
    np.testing.assert_allclose(found, answer.values, rtol=1e-6)


@pytest.mark.parametrize(("what", "name"), FEW)
def test_half_precision_is_computed_in_float32(what, name):
    assert_the_function_is_right(Problem(what, name, "bfloat16"))
    assert_the_loss_is_right(Problem(what, name, "float16"))


@pytest.mark.parametrize(("what", "name"), FEW)
def test_float64_keeps_its_digits(double, what, name):
    assert_the_function_is_right(Problem(what, name, "float64"))
    assert_the_loss_is_right(Problem(what, name, "float64"))


@pytest.mark.parametrize(("what", "name"), ALL)
def test_a_gradient_by_hand_is_the_derivative_of_the_value_by_hand(what, name):
    """What the others rely on: one class moved at a time, at logits near 1."""
    problem = Problem(what, name, "float64")
    z, step = problem.last(problem.logits), 1e-6
    z = z / np.abs(z).max(-1, keepdims=True)
    found, ways = [], np.eye(z.shape[-1])
    for way in ways:
        up, down = (
            problem.family.by_hand(problem.dense, z + side * way, **problem.options)
            for side in (step, -step)
        )
        slope = (up.values - down.values) / (2 * step)
        found.append(slope if slope.ndim < z.ndim else slope.sum(-1))
    expected = problem.family.by_hand(problem.dense, z, **problem.options).gradient
    np.testing.assert_allclose(np.stack(found, -1), expected, atol=1e-8)


# What nobody may choose

MASKED = np.array(
    [[0.5, -np.inf, 2.0, -1.0], [-np.inf] * 4, [-np.inf, 3.0, -np.inf, 1.0]], "float32"
)


def softmax_with_holes(labels, **options):
    """Values and gradients of a softmax some of whose logits are -inf."""

    def function(z):
        values = softmax_cross_entropy(labels, z, **options)
        return values, ops.sum(values)

    problem = Problem("ids", "plain")
    problem.logits = MASKED
    return solve(function, problem)


@pytest.mark.parametrize(
    "options", [{}, {"focal_gamma": 2.0}, {"label_smoothing": 0.2}]
)
@pytest.mark.parametrize("form", ["ids", "distributions"])
def test_a_masked_class_contributes_nothing(form, options):
    ids = np.array([2, 0, 3])
    labels = ids if form == "ids" else np.eye(4, dtype="float32")[ids]
    values, gradient = softmax_with_holes(labels, **options)

    for row, k in ((0, 2), (2, 3)):  # the others are as if it were not there
        there = np.isfinite(MASKED[row])
        y, z = np.eye(4)[k][None, there], MASKED[None, row, there].astype("float64")
        expected = softmax_by_hand(y, z, **options)
        np.testing.assert_allclose(values[row], expected.values[0], rtol=1e-6)
        np.testing.assert_allclose(
            gradient[row, there], expected.gradient[0], atol=1e-6
        )
        assert not gradient[row, ~there].any()
    assert values[1] == np.inf
    assert not gradient[1].any()


@pytest.mark.parametrize(
    "options", [{}, {"focal_gamma": 2.0}, {"label_smoothing": 0.2}]
)
@pytest.mark.parametrize("form", ["ids", "distributions"])
def test_a_masked_true_class_costs_infinitely_and_pulls_by_softmax_less_target(
    form, options
):
    ids = np.array([1, 1, 2])
    labels = ids if form == "ids" else np.eye(4, dtype="float32")[ids]
    values, gradient = softmax_with_holes(labels, **options)
    np.testing.assert_array_equal(values, np.inf)

    there = np.isfinite(MASKED)
    p = np.exp(np.where(there, MASKED, -np.inf).astype("float64"))
    p = p / np.maximum(p.sum(-1, keepdims=True), 1e-9)
    eps = options.get("label_smoothing", 0.0)
    t = eps / np.maximum(there.sum(-1, keepdims=True), 1) * there
    expected = np.where(there, p - t, 0.0)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"focal_gamma": 2.0}])
def test_a_unit_at_minus_infinity_is_certainly_negative(options):
    def function(z):
        values = sigmoid_cross_entropy([0, 1], z, **options)
        return values, values[0]

    problem = Problem("ids", "plain")
    problem.logits = np.full(2, -np.inf, "float32")
    values, gradient = solve(function, problem)
    np.testing.assert_array_equal(values, [0.0, np.inf])
    np.testing.assert_array_equal(gradient, [0.0, 0.0])


# What is small


def test_a_scaled_loss_lifts_the_gradients_that_float16_cannot_hold():
    """As under a LossScaleOptimizer: the scale comes before any rounding."""
    problem, rows = Problem("ids", "plain", "float16"), 4099
    rng = np.random.default_rng(0)
    ids, scale = rng.integers(0, 11, rows), 2.0**17  # the largest float16 is 65504
    problem.logits = rng.normal(size=(rows, 11)).astype("float16")
    loss = SoftmaxCrossEntropy(True)

    def scaled(z):
        value = loss(ids, z)
        return value, value * scale

    _, gradient = solve(scaled, problem)
    exact = softmax_by_hand(np.eye(11)[ids], problem.logits.astype("float64"))
    np.testing.assert_allclose(gradient, scale / rows * exact.gradient, rtol=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("label", [0, 1])
def test_a_unit_that_is_nearly_right_keeps_the_digits_of_its_gradient(label, gamma):
    """As relative errors: beside a 1 these gradients would be nothing."""

    def function(z):
        labels = np.full(len(problem.logits), label)
        values = sigmoid_cross_entropy(labels, z, focal_gamma=gamma)
        return values, ops.sum(values)

    problem = Problem("ids", "plain")
    problem.logits = np.linspace(-25, 25, 51).astype("float32")
    values, gradient = solve(function, problem)
    z = problem.logits[:, None].astype("float64")
    exact = sigmoid_by_hand(np.full_like(z, label), z, focal_gamma=gamma)
    # A power and an exponential of up to 75 multiply what was rounded before.
    np.testing.assert_allclose(values, exact.values[:, 0], rtol=1e-5)
    np.testing.assert_allclose(gradient, exact.gradient[:, 0], rtol=1e-5)


def test_a_class_that_is_nearly_impossible_keeps_the_digits_of_its_gradient():
    def function(z):
        values = softmax_cross_entropy([0], z)
        return values, ops.sum(values)

    problem = Problem("ids", "plain")
    problem.logits = np.array([[40.0, 0.0, -20.0, 13.5]], "float32")
    _, gradient = solve(function, problem)
    exact = np.exp(problem.logits.astype("float64") - 40)[0, 1:]
    np.testing.assert_allclose(gradient[0, 1:], exact, rtol=1e-6)
