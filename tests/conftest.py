"""What every test process needs before the first import of Keras."""

import contextlib
import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.environ["KERAS_BACKEND"] == "torch":
    import torch  # noqa: F401  (before TensorFlow, or the two crash in one process)


@pytest.fixture(autouse=True, scope="module")
def compiled_fast(request):
    """What some files compile is hardly optimised."""
    is_marked = request.node.get_closest_marker("compiled_fast") is not None
    ways = {"jax": few_optimizations, "tensorflow": without_xla}
    way = ways.get(os.environ["KERAS_BACKEND"]) if is_marked else None
    with way() if way else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def few_optimizations():
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # no other file finds these programs


@contextlib.contextmanager
def without_xla():
    """XLA compiles what a test has it compile, not the passes in graphs.

    Nor are graphs rewritten, which takes longer than to run them once.
    """
    import tensorflow as tf

    from keras_logits.kernels import tensorflow, tensorflow_scores

    rewriting = tf.config.optimizer.set_experimental_options

    caches = (
        tensorflow._compiled_pass,
        tensorflow._compiled_rest,
        tensorflow_scores._compiled,
    )
    function = tensorflow_scores.function
    with pytest.MonkeyPatch.context() as patch:
        for module in (tensorflow, tensorflow_scores):
            patch.setattr(module, "function", lambda run, **_: function(run))
        rewriting({"disable_meta_optimizer": True})
        for cache in caches:
            cache.cache_clear()
        yield
    rewriting({"disable_meta_optimizer": False})
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def double():
    """JAX computes in float64 only where it is told to."""
    if os.environ["KERAS_BACKEND"] != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield
