"""Sparse features go into a head as they go into a `Dense`."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.layers import Dense

from keras_logits import (
    LogitsHead,
    SoftmaxCrossEntropy,
    functions,
    linear_softmax_cross_entropy,
)
from keras_logits.provenance import origin_of

pytestmark = pytest.mark.compiled_fast
BACKEND = keras.config.backend()
EPS = np.finfo("float32").eps
ROWS, WIDTH, CLASSES = 8, 6, 4
RNG = np.random.default_rng(0)
X = (RNG.random((ROWS, WIDTH)) * (RNG.random((ROWS, WIDTH)) < 0.4)).astype("float32")
Y = RNG.integers(0, CLASSES, ROWS)

in_models = pytest.mark.skipif(
    BACKEND == "torch", reason="Keras has no sparse inputs of models on torch"
)
THEIRS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def sparse(array):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.sparse.from_dense(array)
    if BACKEND == "jax":
        from jax.experimental.sparse import BCOO

        return BCOO.fromdense(array)
    import torch

    return torch.tensor(array).to_sparse()


def numpy_of(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def model_of(last, units, loss):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((WIDTH,), sparse=True), last(units)])
    model.compile(keras.optimizers.SGD(1.0), loss, jit_compile=False)
    return model


@in_models
def test_training_is_that_of_a_dense_layer():
    ours = model_of(LogitsHead, CLASSES, SoftmaxCrossEntropy())
    theirs = model_of(Dense, CLASSES, THEIRS)
    before = theirs.get_weights()[0]
    for model in (ours, theirs):
        model.fit(sparse(X), Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    for found, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=16 * EPS)
    assert np.abs(theirs.get_weights()[0] - before).max() > 0.01
    found, expected = (m.predict(sparse(X), verbose=0) for m in (ours, theirs))
    np.testing.assert_allclose(found, expected, atol=16 * EPS)


def gradient(head, features):
    """Of the loss, by the kernel, in a loop of one's own."""
    loss, kernel = SoftmaxCrossEntropy(), head.kernel
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss(Y, head(features))
        return tape.gradient(value, kernel)
    if BACKEND == "jax":
        import jax

        def of_kernel(kernel):
            with keras.StatelessScope([(head.kernel, kernel)]):
                return loss(Y, head(features))

        return jax.jit(jax.grad(of_kernel))(kernel.value)
    import torch

    return torch.autograd.grad(loss(Y, head(features)), kernel.value)[0]


@pytest.mark.parametrize("tied", [False, True], ids=["kernel", "tied"])
def test_logits_are_those_of_the_same_features_in_full(tied):
    table = keras.layers.Embedding(CLASSES, WIDTH) if tied else None
    head = LogitsHead(CLASSES, tied_to=table, softcap=2.0)
    expected = numpy_of(head(X))
    logits = head(sparse(X))
    assert origin_of(logits).activation == "softmax"
    np.testing.assert_allclose(numpy_of(logits), expected, atol=16 * EPS)


def test_gradients_are_those_of_the_same_features_in_full():
    head = LogitsHead(CLASSES)
    head(X)
    expected = numpy_of(gradient(head, ops.convert_to_tensor(X)))
    assert np.abs(expected).max() > 0.01
    found = numpy_of(gradient(head, sparse(X)))
    np.testing.assert_allclose(found, expected, atol=16 * EPS)


def test_products_of_half_precision_are_accumulated_in_float32():
    head = LogitsHead(CLASSES, dtype="mixed_bfloat16", use_bias=False)
    expected = numpy_of(head(X))
    logits = head(sparse(X))
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    np.testing.assert_allclose(numpy_of(logits), expected, atol=16 * EPS)


REASON = "sparse features, whose rows cannot be gathered"


def test_to_insist_on_the_pass_is_an_error_that_says_why():
    head = LogitsHead(CLASSES)
    with pytest.raises(ValueError, match=f"`fused=True`.*\\nReceived: {REASON}"):
        SoftmaxCrossEntropy(fused=True)(Y, head(sparse(X)))


@in_models
def test_where_the_pass_would_pay_the_loss_is_plain_and_says_why():
    model = model_of(LogitsHead, 8192, SoftmaxCrossEntropy())
    with pytest.warns(UserWarning, match=f"`fused='auto'` runs unfused.*{REASON}"):
        found = model.train_on_batch(sparse(X), Y)
    expected = model_of(Dense, 8192, THEIRS).train_on_batch(sparse(X), Y)
    np.testing.assert_allclose(found, expected, rtol=16 * EPS)


def test_the_function_is_plain_and_says_why():
    functions._warn_of_plain.cache_clear()
    kernel = RNG.normal(size=(WIDTH, CLASSES)).astype("float32")
    with pytest.warns(UserWarning, match=f"runs unfused here.*{REASON}"):
        found = linear_softmax_cross_entropy(sparse(X), kernel, Y)
    log_total = np.log(np.exp(X @ kernel).sum(-1))
    expected = np.mean(log_total - (X @ kernel)[np.arange(ROWS), Y])
    np.testing.assert_allclose(numpy_of(found), expected, rtol=16 * EPS)
