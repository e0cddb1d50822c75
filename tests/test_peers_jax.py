"""Values and gradients are those of optax, with jit and without."""

import keras
import numpy as np
import pytest

from keras_logits import (
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)

if keras.config.backend() != "jax":
    pytest.skip("optax takes JAX's arrays", allow_module_level=True)

import jax
import jax.numpy as jnp
import optax

EPS = np.finfo("float32").eps
SHAPE = (7, 11)
RNG = np.random.default_rng(0)
LOGITS = np.resize([1.0, 30.0, 1e3], (7, 1)) * RNG.normal(size=SHAPE)
LOGITS = LOGITS.astype("float32")
IDS = RNG.integers(0, 11, 7)
HOT = np.eye(11, dtype="float32")[IDS]
SPREAD = RNG.dirichlet(np.full(11, 0.3), 7).astype("float32")
HARD = (RNG.random(SHAPE) < 0.5).astype("float32")
UNITS = np.where(RNG.random(SHAPE) < 0.5, HARD, RNG.random(SHAPE)).astype("float32")
UPSTREAM = RNG.uniform(0.5, 2.0, SHAPE).astype("float32")
ALPHA = 0.25

PEERS = {
    "class ids": (
        lambda z: optax.softmax_cross_entropy_with_integer_labels(z, IDS),
        lambda z: softmax_cross_entropy(IDS, z),
    ),
    "distributions": (
        lambda z: optax.softmax_cross_entropy(z, SPREAD),
        lambda z: softmax_cross_entropy(SPREAD, z),
    ),
    "smoothed": (
        lambda z: optax.softmax_cross_entropy(z, optax.smooth_labels(HOT, 0.2)),
        lambda z: softmax_cross_entropy(IDS, z, label_smoothing=0.2),
    ),
    "units": (
        lambda z: optax.sigmoid_binary_cross_entropy(z, UNITS),
        lambda z: sigmoid_cross_entropy(UNITS, z),
    ),
    # With labels between 0 and 1 that of optax is another function.
    "focal": (
        lambda z: optax.sigmoid_focal_loss(z, HARD, gamma=2.0),
        lambda z: sigmoid_cross_entropy(HARD, z, focal_gamma=2.0),
    ),
    "focal with alpha": (
        lambda z: optax.sigmoid_focal_loss(z, HARD, alpha=ALPHA, gamma=1.5),
        lambda z: (
            (1 - ALPHA)
            * sigmoid_cross_entropy(
                HARD, z, focal_gamma=1.5, pos_weight=ALPHA / (1 - ALPHA)
            )
        ),
    ),
    "mean of class ids": (
        lambda z: optax.softmax_cross_entropy_with_integer_labels(z, IDS).mean(),
        lambda z: SoftmaxCrossEntropy(True)(IDS, z),
    ),
    "mean of units": (
        lambda z: optax.sigmoid_binary_cross_entropy(z, UNITS).mean(),
        lambda z: SigmoidCrossEntropy(True)(UNITS, z),
    ),
}


def solved(function, z, run=jax.jit):
    def weighted(z):
        values = function(z)
        upstream = UPSTREAM if values.ndim == 2 else UPSTREAM[:, 0]
        return values.sum() if not values.ndim else (upstream * values).sum()

    gradient = run(jax.grad(weighted))(z)
    return np.asarray(run(function)(z)), np.asarray(gradient)


def assert_same(found, expected):
    # Factors of a focal loss are powers of numbers rounded before: of relative error.
    np.testing.assert_allclose(found[0], expected[0], rtol=32 * EPS, atol=16 * EPS)
    np.testing.assert_allclose(found[1], expected[1], rtol=32 * EPS, atol=32 * EPS)


@pytest.mark.parametrize("run", [jax.jit, lambda function: function], ids=["jit", "no"])
@pytest.mark.parametrize("peer", PEERS)
def test_values_and_gradients_are_those_of_optax(peer, run):
    theirs, ours = PEERS[peer]
    z = jnp.asarray(LOGITS)
    assert_same(solved(ours, z, run), solved(theirs, z))


def test_masked_classes_are_those_of_the_safe_loss_of_optax():
    masked = np.where((RNG.random(SHAPE) < 0.4) & (HOT == 0), -np.inf, LOGITS)
    z = jnp.asarray(masked.astype("float32"))
    theirs = solved(lambda z: optax.safe_softmax_cross_entropy(z, HOT), z)
    assert_same(solved(lambda z: softmax_cross_entropy(IDS, z), z), theirs)


@pytest.mark.parametrize("labels", [IDS, SPREAD], ids=["ids", "distributions"])
def test_a_row_at_a_time_by_vmap_equals_all_rows(labels):
    by_rows = jax.vmap(softmax_cross_entropy)
    z = jnp.asarray(LOGITS)
    found = solved(lambda z: by_rows(jnp.asarray(labels), z), z)
    assert_same(found, solved(lambda z: softmax_cross_entropy(labels, z), z))
