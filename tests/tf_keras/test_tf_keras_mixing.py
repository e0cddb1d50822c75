"""Objects of Keras 3 and of tf-keras are told apart, and never mixed in silence."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras as keras3
import numpy as np
import pytest
import tf_keras

import keras_logits
from keras_logits import tf_keras as ours

ROOT = Path(__file__).parents[2]
X, IDS = np.ones((4, 6), "float32"), np.zeros(4, int)
SIDES = {
    "keras 3": (keras3, keras_logits, ours),
    "tf-keras": (tf_keras, ours, keras_logits),
}


@pytest.fixture(params=SIDES.values(), ids=SIDES)
def side(request):
    """A Keras, our classes for it, and those for the other one."""
    return request.param


def test_a_head_of_the_other_keras_is_no_layer(side):
    keras, _, others = side
    with pytest.raises((TypeError, ValueError), match="Layer"):
        keras.Sequential([keras.Input((6,)), others.LogitsHead(3)])


@pytest.mark.parametrize("name", ["LogitsHead", "MarkLogits"])
def test_a_layer_refuses_inputs_of_the_other_keras(side, name):
    keras, mine, others = side
    arguments = {"LogitsHead": [3], "MarkLogits": []}
    layer = getattr(others, name)(*arguments[name])
    message = f"`inputs` must .*\n.*\nFix: from {mine.__name__} import {name}"
    with pytest.raises(TypeError, match=message):
        layer(keras.Input((6,)))


@pytest.mark.parametrize("last", ["LogitsHead", "MarkLogits"])
@pytest.mark.parametrize("eager", [True, False])
def test_a_loss_refuses_the_model_of_the_other_keras(side, last, eager):
    keras, mine, others = side
    layers = {
        "LogitsHead": [mine.LogitsHead(3)],
        "MarkLogits": [keras.layers.Dense(3), mine.MarkLogits()],
    }
    model = keras.Sequential([keras.Input((6,)), *layers[last]])
    model.compile("sgd", others.SoftmaxCrossEntropy(), run_eagerly=eager)
    with pytest.raises(TypeError, match="`y_pred` must belong to"):
        model.train_on_batch(X, IDS)


PARTS = {
    "tied_to": lambda keras: keras.layers.Embedding(3, 6),
    "kernel_initializer": lambda keras: keras.initializers.Ones(),
    "bias_initializer": lambda keras: keras.initializers.Ones(),
    "kernel_regularizer": lambda keras: keras.regularizers.L2(0.1),
    "bias_regularizer": lambda keras: keras.regularizers.L2(0.1),
    "activity_regularizer": lambda keras: keras.regularizers.L2(0.1),
    "kernel_constraint": lambda keras: keras.constraints.NonNeg(),
    "bias_constraint": lambda keras: keras.constraints.NonNeg(),
}


@pytest.mark.parametrize("argument", PARTS)
def test_a_head_refuses_parts_of_the_other_keras(side, argument):
    keras, _, others = side
    with pytest.raises(TypeError, match=f"`{argument}` must belong to"):
        others.LogitsHead(3, **{argument: PARTS[argument](keras)})


def test_the_back_door_is_closed_to_other_backends():
    done = subprocess.run(
        [sys.executable, "-c", "import keras_logits.tf_keras"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )
    assert done.returncode == 1
    expected = (
        "ImportError.*\nReceived: KERAS_BACKEND=jax\nFix: set KERAS_BACKEND=tensorflow"
    )
    assert re.search(expected, done.stderr)
