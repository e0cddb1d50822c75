"""TensorFlow: tapes inside of tapes, upstream gradients without a shape, and caches."""

import keras
import numpy as np
import pytest

from keras_logits import (
    linear_softmax_cross_entropy,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="other backends have no tapes"
)
if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    from keras_logits.kernels import tensorflow as body

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5)).astype("float32")
KERNEL = RNG.normal(size=(5, 7)).astype("float32")
IDS = np.arange(6) % 7
WEIGHTS = np.array([0, 1, 2, 0, 1, 0.5], "float32")
NAMES = ("features", "kernel", "weights")


def fused(x, kernel, weights):
    return linear_softmax_cross_entropy(
        x, kernel, IDS, sample_weight=weights, reduction="sum"
    )


def plain(x, kernel, weights):
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(IDS, x @ kernel)
    return tf.reduce_sum(weights * losses)


def outer_gradients(loss, inner, mode, hand_out):
    """Those that an outer tape finds, of a step whose own tape watches one input."""

    def step(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs[inner])
            value = 1.5 * loss(*inputs)
        gradient = tape.gradient(value, inputs[inner])
        return (value, gradient) if hand_out else (value,)

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "jit", autograph=False)
    inputs = [tf.constant(values) for values in (X, KERNEL, WEIGHTS)]
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        value = step(*inputs)[0]
    return outer.gradient(value, inputs)


@pytest.mark.parametrize("hand_out", [False, True])
@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
@pytest.mark.parametrize("inner", range(3), ids=NAMES)
def test_an_outer_tape_finds_what_the_inner_one_did_not_ask(inner, mode, hand_out):
    found = outer_gradients(fused, inner, mode, hand_out)
    expected = outer_gradients(plain, inner, "eager", hand_out)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def without_a_shape(values):
    """As what comes out of Python code has none, so has the gradient on its way in."""
    return tf.reduce_sum(tf.py_function(lambda v: 2.0 * v, [values], "float32"))


LOSSES = {
    "softmax": lambda z: softmax_cross_entropy(IDS, z),
    "sigmoid": lambda z: sigmoid_cross_entropy(tf.one_hot(IDS, 7), z),
    "fused": lambda z: linear_softmax_cross_entropy(z, tf.eye(7), IDS, reduction=None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_upstream_gradient_without_a_shape_is_one_of_the_losses(name):
    def gradient(after):
        def step(z):
            with tf.GradientTape() as tape:
                tape.watch(z)
                value = after(LOSSES[name](z))
            return tape.gradient(value, z)

        return tf.function(step, autograph=False)(tf.constant(X @ KERNEL))

    expected = gradient(lambda losses: 2.0 * tf.reduce_sum(losses))
    np.testing.assert_allclose(gradient(without_a_shape), expected, rtol=1e-6)


def test_passes_compiled_for_many_numbers_of_tokens_are_not_all_kept():
    cached = body._compiled_pass
    bound = cached.cache_info().maxsize
    assert bound is not None
    formulas = {
        (tokens, body.pass_over.__module__)  # stands for a formula: it is hashed alone
        for tokens in range(2 * bound)
    }
    for formula in formulas:
        cached(formula, body.NOTHING)
    assert cached.cache_info().currsize <= bound
    cached.cache_clear()
