"""Where `tf.keras` is tf-keras, its models take our classes."""

import os

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from keras_logits.tf_keras import LogitsHead, SoftmaxCrossEntropy

pytestmark = pytest.mark.skipif(
    os.environ.get("TF_USE_LEGACY_KERAS") != "1", reason="`tf.keras` is Keras 3"
)


def test_a_model_of_tf_keras_by_its_old_name_trains():
    assert tf.keras.Sequential is tf_keras.Sequential
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential([tf.keras.Input((6,)), LogitsHead(3)])
    optimizer = tf.keras.optimizers.SGD(0.5)
    model.compile(optimizer, SoftmaxCrossEntropy(), jit_compile=False)
    x, labels = np.eye(6, dtype="float32"), np.arange(6) % 3
    losses = model.fit(x, labels, epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[1] < losses[0]
