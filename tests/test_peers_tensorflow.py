"""Values and gradients are those of tf.nn, however either is run."""

import keras
import numpy as np
import pytest

from keras_logits import (
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)

if keras.config.backend() != "tensorflow":
    pytest.skip("tf.nn takes TensorFlow's tensors", allow_module_level=True)

import tensorflow as tf

from keras_logits.kernels.tensorflow_scores import COMPILED_FROM

EPS = np.finfo("float32").eps
RUN = {
    "eager": lambda function: function,
    "graph": tf.function,
    "jit": lambda function: tf.function(function, jit_compile=True),
}
SHAPES = {"small": (7, 11), "large": (2999, 11)}  # the large one compiles itself
POS_WEIGHT = 3.5


def test_the_large_shape_is_one_that_compiles_itself():
    assert np.prod(SHAPES["small"]) < COMPILED_FROM <= np.prod(SHAPES["large"])


class Peer:
    """One of tf.nn with what says the same here, and labels for both."""

    def __init__(self, theirs, ours, loss, labels):
        self.theirs, self.ours, self.loss, self.labels = theirs, ours, loss, labels


def ids(rng, shape):
    return rng.integers(0, shape[1], shape[0])


def distributions(rng, shape):
    return rng.dirichlet(np.full(shape[1], 0.3), shape[0]).astype("float32")


def units(rng, shape):
    hard = rng.random(shape) < 0.5
    return np.where(rng.random(shape) < 0.5, hard, rng.random(shape)).astype("float32")


PEERS = {
    "softmax": Peer(
        tf.nn.softmax_cross_entropy_with_logits,
        softmax_cross_entropy,
        SoftmaxCrossEntropy(True),
        distributions,
    ),
    "sparse_softmax": Peer(
        tf.nn.sparse_softmax_cross_entropy_with_logits,
        softmax_cross_entropy,
        SoftmaxCrossEntropy(True),
        ids,
    ),
    "sigmoid": Peer(
        tf.nn.sigmoid_cross_entropy_with_logits,
        sigmoid_cross_entropy,
        SigmoidCrossEntropy(True),
        units,
    ),
    "weighted": Peer(
        lambda labels, logits: tf.nn.weighted_cross_entropy_with_logits(
            labels, logits, POS_WEIGHT
        ),
        lambda labels, logits: sigmoid_cross_entropy(
            labels, logits, pos_weight=POS_WEIGHT
        ),
        SigmoidCrossEntropy(True, pos_weight=POS_WEIGHT),
        units,
    ),
}
peers = pytest.mark.parametrize("peer", PEERS)
runs = pytest.mark.parametrize("run", RUN)
sizes = pytest.mark.parametrize("size", SHAPES)


def problem(peer, size):
    """Labels, logits of scale 1 and 30, and an upstream gradient that is not 1."""
    rng, shape = np.random.default_rng(0), SHAPES[size]
    labels = PEERS[peer].labels(rng, shape)
    scale = np.resize([1.0, 30.0], (shape[0], 1))
    logits = (scale * rng.normal(size=shape)).astype("float32")
    upstream = rng.uniform(0.5, 2.0, shape).astype("float32")
    by_position = PEERS[peer].ours is softmax_cross_entropy
    return labels, logits, upstream[:, 0] if by_position else upstream


def solved(function, run, labels, logits):
    """The first result of a function, and the gradient of the second by logits."""

    @RUN[run]
    def step(labels, z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            values, total = function(labels, z)
        return values, tape.gradient(total, z)

    values, gradient = step(tf.constant(labels), tf.constant(logits))
    return values.numpy(), gradient.numpy()


@peers
@runs
@sizes
def test_values_and_gradients_are_those_of_tf_nn(peer, run, size):
    labels, logits, upstream = problem(peer, size)

    def weighted(function):
        def both(labels, z):
            values = function(labels=labels, logits=z)
            return values, tf.reduce_sum(upstream * values)

        return both

    theirs = solved(weighted(PEERS[peer].theirs), run, labels, logits)
    ours = solved(weighted(PEERS[peer].ours), run, labels, logits)
    # For units tf.nn takes the difference of numbers of the size of the logits.
    size = 1 + np.abs(logits) if theirs[0].ndim == 2 else 1
    values = ours[0] / size, theirs[0] / size
    np.testing.assert_allclose(*values, rtol=16 * EPS, atol=16 * EPS)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=16 * EPS, atol=32 * EPS)


@pytest.mark.parametrize("peer", ["sparse_softmax", "weighted"])
@runs
@sizes
def test_a_loss_is_the_mean_of_tf_nn(peer, run, size):
    labels, logits, _ = problem(peer, size)

    def mean(labels, z):
        value = tf.reduce_mean(PEERS[peer].theirs(labels=labels, logits=z))
        return value, value

    def loss(labels, z):
        value = PEERS[peer].loss(labels, z)
        return value, value

    theirs = solved(mean, run, labels, logits)
    ours = solved(loss, run, labels, logits)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=32 * EPS)
    share = 1 / theirs[1].shape[0]  # of a position; the largest gradient there is
    np.testing.assert_allclose(ours[1], theirs[1], rtol=16 * EPS, atol=16 * EPS * share)
