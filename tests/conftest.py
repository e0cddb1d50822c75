"""What every test process needs before the first import of Keras."""

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.environ["KERAS_BACKEND"] == "torch":
    import torch  # noqa: F401  (before TensorFlow, or the two crash in one process)


@pytest.fixture
def double():
    """JAX computes in float64 only where it is told to."""
    if os.environ["KERAS_BACKEND"] != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield
