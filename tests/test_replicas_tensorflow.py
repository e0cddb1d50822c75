"""Two replicas train as one: the denominator of a mean is that of all replicas.

Keras averages the replicas' means, which gives every replica the same say, however few
of its rows count.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="MirroredStrategy is TensorFlow's"
)

# In a process of its own: devices are split before TensorFlow makes any, and several
# strategies in one process fail inside TensorFlow.
PROGRAM = """
import contextlib, json
import keras, numpy as np, tensorflow as tf
from keras_logits import (LogitsHead, MarkLogits, SigmoidCrossEntropy,
    SoftmaxCrossEntropy)

cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
# To rewrite a graph takes longer than to run it for three steps.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
tf.config.set_logical_device_configuration(cpu, two)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

rng = np.random.default_rng(0)
rows, steps, classes = 16, 5, 4
x = rng.normal(size=(rows, 8)).astype("float32")
ids = rng.integers(0, classes, rows)
units = (rng.random((rows, classes)) < 0.3).astype("float32")
# The first replica, which gets the first half of a batch, has nearly no weight.
weight = np.where(np.arange(rows) < rows // 2, 0.01, 1.0) * rng.random(rows)
words = rng.integers(1, 9, (rows, steps)) * (rng.random((rows, steps)) < 0.8)
words[: rows // 2, 1:] = 0
tags = rng.integers(0, classes, (rows, steps))
unknown = np.where(np.arange(rows) < rows // 2 - 1, -1, ids)
missing = np.where(rng.random((rows, classes)) < 0.5, -1, units)


def dense(returns="logits", activation="softmax"):
    return [
        keras.Input((8,)),
        keras.layers.Dense(8, "tanh"),
        LogitsHead(classes, activation, returns=returns),
    ]


def tagger():
    embedding = keras.layers.Embedding(9, 8, mask_zero=True)
    return [keras.Input((steps,), dtype="int32"), embedding, LogitsHead(classes)]


def trained(layers, loss, x, y, weight, replicas, batch=rows):
    keras.utils.set_random_seed(1)
    with strategy.scope() if replicas == 2 else contextlib.nullcontext():
        model = keras.Sequential(layers())
        optimizer = keras.optimizers.SGD(0.5)
        model.compile(optimizer, loss=loss, jit_compile=False)
    history = model.fit(
        x, y, sample_weight=weight, batch_size=batch, epochs=3, shuffle=False, verbose=0
    )
    numbers = np.concatenate([np.ravel(w) for w in model.get_weights()])
    return {"loss": history.history["loss"], "weights": numbers.tolist()}


softmax, sigmoid = SoftmaxCrossEntropy, SigmoidCrossEntropy
cases = {
    "weights": (dense, softmax(), x, ids, weight),
    "probabilities": (lambda: dense("probabilities"), softmax(), x, ids, weight),
    "class weights": (dense, softmax(class_weight=[9, 1, 0.1, 1]), x, ids, weight),
    "masks": (tagger, softmax(), words, tags, None),
    "ignored labels": (
        dense, softmax(ignore_index=-1, reduction="mean"), x, unknown, None
    ),
    "no weight at all": (dense, softmax(), x, ids, 0 * weight),
    "huge weights": (dense, softmax(), x, ids, 3e38 * weight),
    "tiny weights": (dense, softmax(), x, ids, 1e-34 * weight),
    "sum": (dense, softmax(reduction="sum"), x, ids, 0.1 * weight),
    "fused": (dense, softmax(fused=True), x, ids, weight),
    "no row": (dense, softmax(fused=True), x[1:], ids[1:], weight[1:]),
    "units": (
        lambda: dense(activation="sigmoid"),
        sigmoid(pos_weight=3.0, ignore_index=-1),
        x, missing, weight,
    ),
}
found = {
    # Of 15 rows the last batch has one, which leaves none for a replica.
    name: [trained(*case, n, rows - 2 * (name == "no row")) for n in (1, 2)]
    for name, case in cases.items()
}

with strategy.scope():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(classes)])
    model.compile("sgd", loss=softmax())
try:
    model.fit(x, ids, batch_size=rows, verbose=0)
except ValueError as error:
    found["unmarked"] = str(error)
print(json.dumps(found))
"""

CASES = [
    "weights",
    "probabilities",
    "class weights",
    "masks",
    "ignored labels",
    "no weight at all",
    "huge weights",
    "tiny weights",
    "sum",
    "fused",
    "no row",
    "units",
]


@pytest.fixture(scope="module")
def found():
    here = str(Path(__file__).parents[1])
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_two_replicas_train_as_one(case, found):
    one, two = found[case]
    assert np.isfinite(one["loss"]).all()
    # The same sums in another order, in float32, over three steps. Where replicas have
    # unlike numbers of rows, Keras' mean of their losses is not that of the rows.
    if case != "no row":
        np.testing.assert_allclose(two["loss"], one["loss"], rtol=3e-6, atol=1e-7)
    np.testing.assert_allclose(two["weights"], one["weights"], rtol=1e-5, atol=1e-6)


def test_training_moved_the_weights(found):
    still = found["no weight at all"][0]["weights"]
    for case in ("weights", "class weights", "sum"):
        assert np.abs(np.subtract(found[case][0]["weights"], still)).max() > 0.01


@pytest.mark.parametrize("case", ["huge weights", "tiny weights"])
def test_weights_of_any_size_train_as_their_shares_do(case, found):
    for one, usual in zip(found[case], found["weights"], strict=True):
        np.testing.assert_allclose(one["loss"], usual["loss"], rtol=3e-6, atol=1e-7)
        np.testing.assert_allclose(one["weights"], usual["weights"], atol=1e-6)


def test_an_unmarked_output_is_refused_under_a_strategy(found):
    assert "must be marked as logits" in found["unmarked"]
