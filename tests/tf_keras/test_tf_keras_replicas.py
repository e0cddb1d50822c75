"""Two replicas of a Keras 2 model act as one: same loss, gradients and report."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

REPLICAS = """
import numpy as np, tensorflow as tf, tf_keras as keras
from keras_logits.tf_keras import LogitsHead, SigmoidCrossEntropy, SoftmaxCrossEntropy
cpus = [tf.config.LogicalDeviceConfiguration()] * 2
(device,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(device, cpus)
draw = np.random.default_rng(0)
words = draw.integers(1, 5, (8, 6))
words[0, 1:] = words[5, 3:] = 0  # ragged: the replicas' masks differ
weights = draw.uniform(0.5, 4.0, 8).astype("float32")
labels = {
    "softmax": draw.integers(0, 3, (8, 6)),
    "sigmoid": draw.integers(0, 2, (8, 6, 3)).astype("float32"),
}

def train(strategy, activation, loss):
    keras.utils.set_random_seed(1)
    with strategy.scope():
        table = keras.layers.Embedding(5, 4, mask_zero=True)
        head = LogitsHead(3, activation)
        model = keras.Sequential([keras.Input((6,)), table, head])
        model.compile(keras.optimizers.SGD(1.0), loss)
    data = (words, labels[activation], weights)
    data = tf.data.Dataset.from_tensor_slices(data).batch(8)
    value = model.fit(data, verbose=0, epochs=2).history["loss"]
    if activation == "sigmoid":
        value.append(model.evaluate(data, verbose=0))
    return value, model.get_weights()

cases = [
    ("softmax", SoftmaxCrossEntropy, {"class_weight": [1.0, 2.0, 5.0]}),
    ("softmax", SoftmaxCrossEntropy, {"reduction": "sum_over_batch_size"}),
    ("softmax", SoftmaxCrossEntropy, {"reduction": "sum"}),
    ("sigmoid", SigmoidCrossEntropy, {}),
]
alone = tf.distribute.get_strategy()
# One for all cases: a second one would use the first one's collectives again.
together = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert together.num_replicas_in_sync == 2
for activation, loss, o in cases:
    one = train(alone, activation, loss(**o))
    two = train(together, activation, loss(**o))
    np.testing.assert_allclose(two[0], one[0], rtol=1e-5, err_msg=str(o))
    for a, b in zip(two[1], one[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=str(o))
print("equal")
"""


def test_two_replicas_give_the_loss_and_the_gradients_of_one():
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.strip() == "equal", done.stderr[-3000:]
