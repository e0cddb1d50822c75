"""One test for each name that is taken from Keras' private modules.

These may move between versions of Keras. A move shows here first.
"""

import keras
import numpy as np
from keras import ops

from keras_logits import _keras_private
from keras_logits._keras_private import (
    AutocastScope,
    get_keras_mask,
    in_symbolic_scope,
    set_keras_mask,
)


def test_each_name_has_a_test():
    assert all(f"test_{name}" in globals() for name in _keras_private.__all__)


def test_get_keras_mask():
    ids = np.array([[1, 0]])
    embedded = keras.layers.Embedding(2, 3, mask_zero=True)(ids)
    found = ops.convert_to_numpy(get_keras_mask(embedded))
    np.testing.assert_array_equal(found, [[True, False]])
    assert get_keras_mask(ops.zeros((1, 2))) is None


def test_set_keras_mask():
    features, mask = ops.ones((1, 2, 3)), ops.convert_to_tensor([[True, False]])
    set_keras_mask(features, mask)
    assert get_keras_mask(features) is mask

    # It is the mask that Keras' own layers look at.
    values = ops.convert_to_tensor([[[1.0], [5.0]]])
    set_keras_mask(values, mask)
    pooled = keras.layers.GlobalAveragePooling1D()(values)
    np.testing.assert_allclose(ops.convert_to_numpy(pooled), [[1.0]])


def test_in_symbolic_scope():
    seen = []

    class Layer(keras.layers.Layer):
        def call(self, inputs):
            seen.append(in_symbolic_scope())
            return inputs + 1

    layer = Layer()
    layer(keras.Input((3,)))
    layer(np.zeros((1, 3)))
    assert seen[0]
    assert not seen[-1]


def test_AutocastScope():
    layer = keras.layers.Dense(1, dtype="mixed_bfloat16")
    layer.build((None, 1))
    with AutocastScope("bfloat16"):
        assert ops.convert_to_tensor(layer.kernel).dtype != ops.zeros(1).dtype
        with AutocastScope(None):
            assert ops.convert_to_tensor(layer.kernel).dtype == ops.zeros(1).dtype
