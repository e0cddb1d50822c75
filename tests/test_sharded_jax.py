"""JAX: over arrays that are spread over devices, losses are those of one device.

The fused pass would gather the whole kernel on each device, so it is not taken there,
and that is said once. What is compared is computed in `four_devices.py`, in a process
that has four devices.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_logits import kernels, linear_softmax_cross_entropy

if keras.config.backend() != "jax":
    pytest.skip("arrays are sharded by JAX", allow_module_level=True)

EPS = np.finfo("float32").eps
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found():
    """Of each case: its largest error, the largest number, how often it warned."""
    done = subprocess.run(
        [sys.executable, "-W", "error", HERE / "four_devices.py"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def cases(found, *words):
    chosen = {
        name: case
        for name, case in found.items()
        if all(word in name for word in words)
    }
    chosen.pop("refusal", None)
    assert chosen
    return chosen.items()


def test_values_and_gradients_are_those_of_one_device(found):
    """Over axes left to the compiler, explicit ones and those of a shard_map."""
    assert len(found) > 20
    for name, (error, scale, _) in cases(found):
        assert error <= 16 * EPS * scale, name


@pytest.mark.parametrize(
    "where",
    ["auto", "explicit", "checked=True", "entered", "with statement", "head"],
)
def test_what_would_be_fused_is_plain_over_several_devices_and_says_so(found, where):
    for name, (_, _, warned) in cases(found, where):
        fused = not name.startswith(("softmax", "sigmoid"))
        assert warned == fused, name


@pytest.mark.parametrize("where", ["one device", "checked=False"])
def test_the_pass_is_taken_where_each_device_computes_for_itself(found, where):
    exempt = "explicit"  # axes, over which nothing is left to the compiler
    for name, (_, _, warned) in cases(found, where):
        assert exempt in name or not warned, name


def test_to_insist_on_the_pass_is_an_error_that_says_why(found):
    expected = (
        "`fused=True` is not possible here.\n"
        "Received: arrays that are sharded across devices by a keras.distribution or a "
        "mesh.\n"
        "Fix: fused='auto', which runs unfused here."
    )
    assert found["refusal"] == expected


def test_on_one_device_nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_softmax_cross_entropy(np.eye(3), np.eye(3), np.arange(3))


def test_to_look_for_devices_costs_microseconds():
    batch = [keras.ops.ones((2, 2)) for _ in range(5)]

    def seconds():
        start = time.perf_counter()
        for _ in range(100):
            assert not kernels.is_distributed(*batch)
        return (time.perf_counter() - start) / 100

    best = min(seconds() for _ in range(10))
    assert best < 2e-4  # 12 microseconds on an idle core
