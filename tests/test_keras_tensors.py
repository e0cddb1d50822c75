"""The functions take symbolic tensors, as Keras' own ops do, and models save them."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import (
    linear_softmax_cross_entropy,
    logit,
    probabilities,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)

rng = np.random.default_rng(0)
X = rng.normal(size=(5, 4)).astype("float32")
IDS = np.array([0, 1, 2, 1, 0])
CHANCES = rng.random((5, 4)).astype("float32")
WEIGHT = np.array([1.0, 2.0, 0.0, 1.0, 3.0], "float32")
KERNEL = rng.normal(size=(4, 3)).astype("float32")

CALLS = {
    "softmax": lambda x, ids, p, w: softmax_cross_entropy(
        ids, x, class_weight={0: 2.0, 2: 0.5}, label_smoothing=0.1
    ),
    "softmax by keyword": lambda x, ids, p, w: softmax_cross_entropy(
        labels=ids, logits=x
    ),
    "sigmoid": lambda x, ids, p, w: sigmoid_cross_entropy(p, x, pos_weight=3.0),
    "linear": lambda x, ids, p, w: linear_softmax_cross_entropy(
        x, KERNEL, ids, sample_weight=w
    ),
    "linear, not reduced": lambda x, ids, p, w: linear_softmax_cross_entropy(
        x, KERNEL, ids, reduction=None
    ),
    "logit": lambda x, ids, p, w: logit(p),
    "probabilities": lambda x, ids, p, w: probabilities(x, "sigmoid"),
    "probabilities over an axis": lambda x, ids, p, w: probabilities(x, axis=-1),
}


@pytest.fixture(scope="module")
def model():
    inputs = [
        keras.Input((4,)),
        keras.Input((), dtype="int32"),
        keras.Input((4,)),
        keras.Input(()),
    ]
    return keras.Model(inputs, {name: call(*inputs) for name, call in CALLS.items()})


GIVEN = [X, IDS, CHANCES, WEIGHT]


@pytest.mark.parametrize("name", CALLS)
def test_a_symbolic_tensor_gives_one_of_the_result_s_shape(name, model):
    made, values = model.output[name], CALLS[name](*GIVEN)
    assert isinstance(made, keras.KerasTensor)
    shape = tuple(values.shape)
    assert made.shape == ((None, *shape[1:]) if shape else ())
    assert made.dtype == "float32"


@pytest.mark.parametrize("name", CALLS)
def test_the_model_computes_what_the_function_does(name, model):
    found = ops.convert_to_numpy(model(GIVEN)[name])
    expected = ops.convert_to_numpy(CALLS[name](*GIVEN))
    np.testing.assert_allclose(found, expected, 1e-6)


LOADED = """
import sys
import keras, numpy as np
import keras_logits
given = np.load(sys.argv[2])
model = keras.models.load_model(sys.argv[1])
found = model([given[f"arr_{i}"] for i in range(4)])
print("found", sorted(found))
np.savez(sys.argv[3], **{k: keras.ops.convert_to_numpy(v) for k, v in found.items()})
"""


def test_a_model_that_contains_them_loads_in_a_fresh_process(model, tmp_path):
    paths = [str(tmp_path / name) for name in ("model.keras", "in.npz", "out.npz")]
    model.save(paths[0])
    np.savez(paths[1], *GIVEN)
    first = "import torch\n" if os.environ["KERAS_BACKEND"] == "torch" else ""
    command = [sys.executable, "-c", first + LOADED, *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(paths[2])
    for name, values in model(GIVEN).items():
        np.testing.assert_allclose(found[name], ops.convert_to_numpy(values), 1e-6)


def test_a_loss_of_symbolic_tensors_trains_a_model():
    """As a penalty of a model of one's own: the gradient is that of the function."""
    x, ids = keras.Input((4,)), keras.Input((), dtype="int32")
    last = keras.layers.Dense(3, use_bias=False)
    losses = softmax_cross_entropy(ids, last(x))
    model = keras.Model([x, ids], losses)
    last.kernel.assign(KERNEL)
    model.compile(keras.optimizers.SGD(1.0), loss=lambda _, values: ops.mean(values))
    model.train_on_batch([X, IDS], np.zeros(5))
    z = X.astype("float64") @ KERNEL
    p = np.exp(z - np.logaddexp.reduce(z, -1, keepdims=True))
    by_kernel = X.T @ (p - np.eye(3)[IDS]) / 5
    found = ops.convert_to_numpy(last.kernel)
    np.testing.assert_allclose(found, KERNEL - by_kernel, 1e-4, 1e-5)
