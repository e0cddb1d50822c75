"""What every test process needs before the first import of Keras."""

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.environ["KERAS_BACKEND"] == "torch":
    import torch  # noqa: F401  (before TensorFlow, or the two crash in one process)


@pytest.fixture(autouse=True, scope="module")
def compiled_fast(request):
    """On JAX, the programs of some files are hardly optimised."""
    is_marked = request.node.get_closest_marker("compiled_fast") is not None
    if os.environ["KERAS_BACKEND"] != "jax" or not is_marked:
        yield
        return
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # no other file finds these programs


@pytest.fixture
def double():
    """JAX computes in float64 only where it is told to."""
    if os.environ["KERAS_BACKEND"] != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield
