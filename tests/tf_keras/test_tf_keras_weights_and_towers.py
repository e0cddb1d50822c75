"""Weights of labels, softmax over the batch and probabilities, behind the back door."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from keras_logits.tf_keras import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
)

rng = np.random.default_rng(0)
jits = pytest.mark.parametrize("jit", [False, True])


def last(made, **options):
    layer = made(3, kernel_initializer="identity", **options)
    return keras.Sequential([keras.Input((3,)), layer])


@jits
def test_fit_weighs_each_label_by_its_own_weight(jit):
    z = rng.normal(size=(6, 3)).astype("float32")
    y = (rng.random(z.shape) < 0.5).astype("float32")
    w = rng.choice([0.0, 0.5, 2.0], z.shape).astype("float32")
    model = last(LogitsHead, activation="sigmoid")
    model.compile("sgd", SigmoidCrossEntropy(), weighted_metrics=[], jit_compile=jit)
    found = model.evaluate(z, y, sample_weight=w, verbose=0)
    losses = np.where(y == 1, np.logaddexp(0, -z), np.logaddexp(0, z))
    np.testing.assert_allclose(found, (w * losses).sum() / w.sum(), 1e-5)


@jits
def test_two_towers_train(jit):
    one, other = keras.Input((3,)), keras.Input((3,))
    logits = tf.matmul(one, other, transpose_b=True)
    model = keras.Model([one, other], MarkLogits()(logits))
    model.compile("sgd", SoftmaxCrossEntropy(), jit_compile=jit)
    x, y = rng.normal(size=(2, 4, 3)).astype("float32")
    found = model.train_on_batch([x, y], np.arange(4))
    z = x.astype("float64") @ y.T
    expected = np.mean(np.logaddexp.reduce(z, -1) - np.diag(z))
    np.testing.assert_allclose(found, expected, 1e-5)


@jits
def test_a_saturated_softmax_and_what_is_none_leave_weights_finite(jit):
    x, y = np.array([[0.0, 300.0, -5.0]], "float32"), np.array([0])
    for activation in ("softmax", None):
        model = last(keras.layers.Dense, activation=activation)
        loss = SoftmaxCrossEntropy(False, class_weight=[10.0, 1.0, 1.0])
        model.compile("sgd", loss, loss_weights=[2.0**15], jit_compile=jit)
        found = model.train_on_batch(x, y)
        assert np.isnan(found) == (activation is None)
        assert all(np.isfinite(weights).all() for weights in model.get_weights())
