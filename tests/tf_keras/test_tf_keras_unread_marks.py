"""Of tf-keras: logits that go to a loss which takes them for probabilities."""

import warnings

import numpy as np
import pytest
import tf_keras as keras

from keras_logits.tf_keras import LogitsHead, SoftmaxCrossEntropy

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
IDS = np.arange(8) % 4
SPARSE = "sparse_categorical_crossentropy"


def told(loss, *layers, **options):
    inner = keras.Sequential([keras.Input((3,)), *layers])
    model = keras.Sequential([keras.Input((3,)), inner])
    model.compile("sgd", loss=loss, **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(X, IDS, batch_size=4, epochs=2, verbose=0)
    return [str(w.message) for w in said if "`loss` expects" in str(w.message)]


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    "loss",
    [SPARSE, keras.losses.SparseCategoricalCrossentropy()],
    ids=["name", "object"],
)
def test_half_a_migration_is_reported_once(loss, eager):
    (message,) = told(loss, LogitsHead(4, name="scores"), run_eagerly=eager)
    assert "logits of 'scores'" in message


def test_what_is_right_is_not_reported():
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert told(SoftmaxCrossEntropy(), LogitsHead(4)) == []
    assert told(logits, LogitsHead(4)) == []
    assert told(SPARSE, LogitsHead(4, returns="probabilities")) == []
    assert told(SPARSE, LogitsHead(4), keras.layers.Softmax()) == []
