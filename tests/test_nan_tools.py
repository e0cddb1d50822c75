"""Tools that stop at the first NaN of a program stay silent on good data.

In a process of their own each: what they switch on cannot be switched off for sure.
"""

import os
import subprocess
import sys

import keras
import pytest

BACKEND = keras.config.backend()
PROGRAM = """
import numpy as np, keras
from keras import ops
from keras_logits import *
{switch}
rng = np.random.default_rng(0)
z = rng.normal(size=(6, 5)).astype("float32")
x = rng.normal(size=(6, 3)).astype("float32")
kernel = rng.normal(size=(3, 5)).astype("float32")
ids = np.array([0, 1, 2, 3, 4, -1])
y = np.eye(5, dtype="float32")[np.maximum(ids, 0)]
weights = np.array([0, 1, 0.5, 0, 2, 1], "float32")
options = [
    dict(),
    dict(label_smoothing=0.1),
    dict(focal_gamma=2.0),
    dict(class_weight=[0.5, 1, 0, 2, 1]),
    dict(label_smoothing=0.1, focal_gamma=0.5, class_weight=[0.5, 1, 0, 2, 1]),
]
losses = []
for given in options:
    soft = dict(ignore_index=-1, **given)
    losses += [
        lambda z, w, o=soft: SoftmaxCrossEntropy(True, **o)(ids, z, w),
        lambda z, w, o=given: SoftmaxCrossEntropy(True, z_loss=0.01, **o)(y, z, w),
        lambda z, w, o=given: SoftmaxCrossEntropy(False, **o)(y, ops.softmax(z), w),
        lambda z, w, o=given: SigmoidCrossEntropy(True, **o)(y, z, w),
        lambda z, w, o=given: SigmoidCrossEntropy(False, **o)(y, ops.sigmoid(z), w),
        lambda z, w, o=soft: linear_softmax_cross_entropy(
            x, kernel, ids, sample_weight=w, softcap=3.0, **o),
    ]
for loss in losses:
    run(loss, z, weights)
reports = ("accuracy", "top_5_accuracy", "cross_entropy", "entropy", "invalid_labels")
model = keras.Sequential([keras.Input((3,)), LogitsHead(6, reports=reports)])
model.compile("sgd", SoftmaxCrossEntropy(ignore_index=-1), **compiling)
model.fit(x, ids, sample_weight=weights, verbose=0)
"""
SWITCHES = {
    "tensorflow": {
        "check_numerics": """
import tensorflow as tf
tf.debugging.enable_check_numerics()
compiling = {"run_eagerly": True}
def run(loss, *arrays):
    arrays = [tf.constant(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        value = loss(*arrays)
    tape.gradient(value, arrays)
""",
    },
    "jax": {
        "jax_debug_nans, jax_debug_infs": """
import jax
jax.config.update("jax_debug_nans", True)
jax.config.update("jax_debug_infs", True)
compiling = {}
def run(loss, *arrays):
    jax.jit(jax.grad(loss, (0, 1)))(*arrays)
""",
    },
    "torch": {
        "detect_anomaly": """
import torch
compiling = {}
def run(loss, *arrays):
    arrays = [torch.tensor(array, requires_grad=True) for array in arrays]
    with torch.autograd.set_detect_anomaly(True):
        loss(*arrays).backward()
""",
    },
}[BACKEND]


@pytest.mark.parametrize("tool", SWITCHES)
def test_they_find_nothing_where_all_is_good(tool):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(switch=SWITCHES[tool])],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
