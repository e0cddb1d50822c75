"""What Keras 3.15 gets wrong on one backend or more.

Each docstring says what Keras gives, and each test what is right, by hand or by NumPy
in float64.
"""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from strategies import BACKEND, MODES, by_rows, derived

COMPILED = {"tensorflow": ("graph", "jit"), "jax": ("jit",), "torch": ()}[BACKEND]
Z = np.array([[3.0, -1.0, 0.0], [0.5, 2.0, -1.0]], "float32")
Y = np.array([0, 2])
NAMES = {"softmax": SoftmaxCrossEntropy, "sigmoid": SigmoidCrossEntropy}

modes = pytest.mark.parametrize("mode", MODES)
forms = pytest.mark.parametrize("form", ["ids", "one-hot"])


def solved(loss, labels, logits, weights=None, activation="softmax", mode="eager"):
    """The value of a loss, and its gradient by marked logits."""

    def value_and_total(z):
        value = loss(labels, MarkLogits(activation)(z), weights)
        return value, ops.sum(value)

    return derived(value_and_total, np.asarray(logits, "float32"), mode)


def log_softmax(z):
    z = np.asarray(z, "float64")
    return z - np.logaddexp.reduce(z, -1, keepdims=True)


def softmax(z):
    return np.exp(log_softmax(z))


def sigmoid(z):
    return np.exp(-np.logaddexp(0.0, -np.asarray(z, "float64")))


def cross_entropies(z, ids):
    """One for each position."""
    return -np.take_along_axis(log_softmax(z), ids[..., None], -1)[..., 0]


def labels_as(form, ids, classes=3):
    return ids if form == "ids" else np.eye(classes, dtype="float32")[ids]


def number(tensor):
    return float(ops.convert_to_numpy(tensor))


def linear(last, width=3):
    return keras.Sequential([keras.Input((width,)), last])


def dense(activation=None):
    """Whose output is its input, activated."""
    return keras.layers.Dense(3, activation, kernel_initializer="identity")


def head(*args, **options):
    """Whose logits are its input."""
    return LogitsHead(3, *args, kernel_initializer="identity", **options)


def compiled(model, loss, mode, optimizer=None):
    how = {
        "eager": {"run_eagerly": True},
        "graph": {"jit_compile": False},
        "jit": {"jit_compile": True},
    }[mode]
    model.compile(optimizer or keras.optimizers.SGD(0.0), loss=loss, **how)
    return model


def fitted_loss(model, x, y, **options):
    """What `fit` reports of its first batch."""
    return model.fit(x, y, verbose=0, **options).history["loss"][0]


# Logits or probabilities


@modes
def test_logits_are_refused_until_they_are_marked_and_then_taken_as_logits(mode):
    """Keras takes logits for probabilities, in silence: 1e-7 where 0.066 is right."""
    loss = SoftmaxCrossEntropy()
    with pytest.raises(ValueError, match="must be marked as logits"):
        compiled(linear(dense()), loss, mode).fit(Z, Y, verbose=0)
    found = fitted_loss(compiled(linear(head()), loss, mode), Z[:1], Y[:1])
    np.testing.assert_allclose(found, 0.065883875, rtol=1e-6)


@modes
def test_the_output_of_a_softmax_is_refused(mode):
    """Keras computes a softmax of the softmax, on JAX and torch in silence: 0.593."""
    model = compiled(linear(dense("softmax")), SoftmaxCrossEntropy(), mode)
    with pytest.raises(ValueError, match="must be marked as logits"):
        model.fit(Z, Y, verbose=0)


def test_the_output_of_a_softmax_is_not_taken_as_logits_in_silence():
    """Keras says so on TensorFlow alone."""
    y_pred = linear(dense("softmax"))(Z)
    loss = SoftmaxCrossEntropy(from_logits=True)
    if BACKEND == "tensorflow":  # whose tensor still has its producer
        with pytest.raises(ValueError, match="output of a Keras softmax"):
            loss(Y, y_pred)
    else:
        with pytest.warns(UserWarning, match="looks like probabilities"):
            loss(Y, y_pred)


@modes
def test_the_output_of_a_sigmoid_is_refused_by_a_softmax_loss(mode):
    """Keras on TensorFlow takes the sigmoid's input for a softmax's: 0.066 for 0.59."""
    loss = SoftmaxCrossEntropy()
    with pytest.raises(ValueError, match="must be marked as logits"):
        compiled(linear(dense("sigmoid")), loss, mode).fit(Z, np.eye(3)[Y], verbose=0)
    model = compiled(linear(head("sigmoid")), loss, mode)
    with pytest.raises(ValueError, match="must be logits of a softmax"):
        model.fit(Z, np.eye(3)[Y], verbose=0)


def test_the_output_of_a_sigmoid_is_taken_as_what_it_is():
    """Keras on TensorFlow gives 0.066, the loss of the input of the sigmoid."""
    y_pred = linear(dense("sigmoid"))(Z[:1])
    found = SoftmaxCrossEntropy(from_logits=False)(Y[:1], y_pred)
    expected = -np.log(sigmoid(3.0))  # nothing is renormalised
    np.testing.assert_allclose(number(found), expected, rtol=1e-5)


# Gradients that must not vanish


@modes
@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_a_sure_and_wrong_softmax_has_a_gradient(returns, mode):
    """Keras gives [0, 0, 0] on JAX and torch, where the label's share rounds to 0."""
    last, loss = head(returns=returns), SoftmaxCrossEntropy()
    last.build((None, 3))

    def value_and_total(features):
        value = loss(np.array([1]), last(features))
        return value, value

    features = np.array([[40.0, 0.0, 0.0]], "float32")
    value, gradient = derived(value_and_total, features, mode)
    np.testing.assert_allclose(value, 40.0, rtol=1e-6)
    expected = softmax(features) - np.eye(3)[[1]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@modes
@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_a_sure_and_wrong_sigmoid_has_a_gradient(returns, mode):
    """Keras gives 0 on JAX and torch, where 1 - sigmoid(40) rounds to 0."""
    last, loss = head("sigmoid", returns=returns), SigmoidCrossEntropy()
    last.build((None, 3))

    def value_and_total(features):
        value = loss(np.array([[0, 1, 0]]), last(features))
        return value, value

    features = np.array([[40.0, -40.0, -40.0]], "float32")
    value, gradient = derived(value_and_total, features, mode)
    np.testing.assert_allclose(value, 80.0 / 3, rtol=1e-6)
    expected = (sigmoid(features) - [[0, 1, 0]]) / 3
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


FOCAL = [19.0, 25.0, 40.0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_focal_sigmoid_has_a_gradient_at_sure_logits(gamma):
    """Keras gives NaN at 19 and above: 0 * inf, gamma 0 included."""
    z = np.array([FOCAL + [-a for a in FOCAL]] * 2).T
    y = np.array([[0.0, 1.0]] * len(z))
    away = np.where(y == 1, -z, z)  # from what is right
    s, log_r = sigmoid(away), np.logaddexp(0.0, away)
    expected = (1 - 2 * y) * s**gamma * (s + gamma * sigmoid(-away) * log_r)

    loss = SigmoidCrossEntropy(focal_gamma=gamma, reduction="sum")
    value, gradient = solved(loss, y, z, activation="sigmoid", mode=MODES[-1])
    np.testing.assert_allclose(value, np.sum(s**gamma * log_r) / 2, rtol=1e-5)
    tiny = np.finfo("float32").tiny  # below it digits are lost
    np.testing.assert_allclose(gradient, expected / 2, rtol=1e-5, atol=tiny)


@forms
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_focal_softmax_has_a_gradient_at_sure_logits(gamma, form):
    """Keras gives 0 or NaN, for the rest 1 - p rounds to 0."""
    z = np.array([[a, 0.0, 0.0] for a in FOCAL] * 2)
    ids = np.array([0, 0, 0, 1, 1, 1])
    hot = np.eye(3)[ids]
    log_p = -cross_entropies(z, ids)[:, None]
    p, rest = np.exp(log_p), -np.expm1(log_p)
    slope = rest**gamma - gamma * rest ** (gamma - 1) * p * log_p
    expected = slope * (softmax(z) - hot)
    expected[hot == 1] = (-slope * rest)[:, 0]  # whose digits p - 1 would lose

    loss = SoftmaxCrossEntropy(focal_gamma=gamma, reduction="sum")
    value, gradient = solved(loss, labels_as(form, ids), z, mode=MODES[-1])
    np.testing.assert_allclose(value, -np.sum(rest**gamma * log_p), rtol=1e-5)
    # One label's own share is a difference of numbers near 1.
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


# A label out of range

X = np.random.default_rng(3).normal(size=(8, 4)).astype("float32")
BAD, BAD_ROW = np.array([0, 1, 2, 3, 0, 1, 2, 0]), 3  # of three classes

WAYS = {
    "plainly": lambda: keras.optimizers.SGD(0.5),
    "with Adam": lambda: keras.optimizers.Adam(0.1),
    "clipped": lambda: keras.optimizers.SGD(0.5, clipnorm=0.01),
    "clipped together": lambda: keras.optimizers.SGD(0.5, global_clipnorm=0.01),
    "accumulated": lambda: keras.optimizers.SGD(0.5, gradient_accumulation_steps=2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)),
    "in half precision": lambda: keras.optimizers.SGD(0.5),
}
if BACKEND == "jax":
    # Twice a Keras trainer with accumulation is what JAX takes longest to compile.
    JIT_WAYS = WAYS
else:
    JIT_WAYS = WAYS


def trained_weights(way, loss, labels, mode, weights=None):
    """What `fit` leaves of a seeded model, what it began with, and its losses."""
    keras.utils.set_random_seed(1)
    dtype = "mixed_bfloat16" if way == "in half precision" else "float32"
    layers = [keras.layers.Dense(5, "tanh", dtype=dtype), LogitsHead(3, dtype=dtype)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    compiled(model, loss, mode, WAYS[way]())
    before = model.get_weights()
    history = model.fit(
        X, labels, 4, 2, sample_weight=weights, shuffle=False, verbose=0
    )
    return model.get_weights(), before, history.history["loss"]
