"""TensorFlow: marks in graphs, where ranks may be unknown."""

import gc
import weakref

import keras
import numpy as np
import pytest

from keras_logits import LogitsHead, SoftmaxCrossEntropy
from keras_logits.provenance import origin_of

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="other backends know every rank"
)
if keras.config.backend() == "tensorflow":
    import tensorflow as tf

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = np.arange(8) % 4


def unknown_ranks(labels):
    """Batches whose labels have no known rank, as those of many generators."""
    shape = tf.TensorSpec((None, 3), "float32"), tf.TensorSpec(None, labels.dtype)
    return tf.data.Dataset.from_generator(
        lambda: iter([(X[:4], labels[:4]), (X[4:7], labels[4:7])]),
        output_signature=shape,
    )


@pytest.mark.parametrize(
    "labels",
    [Y, Y[:, None], np.eye(4, dtype="float32")[Y]],
    ids=["ids", "column of ids", "distributions"],
)
def test_labels_of_unknown_rank_are_trained_on(labels):
    model = keras.Sequential([keras.Input((3,)), LogitsHead(4)])
    model.compile("sgd", loss=SoftmaxCrossEntropy())
    expected = SoftmaxCrossEntropy()(Y[:7], model(X[:7]))
    found = model.evaluate(unknown_ranks(labels), steps=2, verbose=0)
    # Two batches of 4 and 3: the mean over rows of the batches' means.
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    model.fit(unknown_ranks(labels), steps_per_epoch=2, shuffle=False, verbose=0)


def test_features_of_unknown_size_are_marked():
    head, seen = LogitsHead(4), []
    head.build((None, 3))

    @tf.function(input_signature=[tf.TensorSpec((None, None, 3))])
    def step(x):
        logits = head(x)
        seen.append(origin_of(logits))
        return SoftmaxCrossEntropy()(tf.zeros(tf.shape(x)[:2], "int32"), logits)

    step(X[None])
    assert seen[0].head is head


def test_a_mark_crosses_into_a_nested_function_only_by_closure():
    """An argument of another tf.function is a new tensor there."""
    head, seen = LogitsHead(4), []
    head.build((None, 3))

    @tf.function
    def inner(logits):
        seen.append(origin_of(logits))
        return logits

    @tf.function
    def outer(x):
        logits = head(x)
        seen.append(origin_of(logits))
        seen.append(origin_of(inner(logits)))
        return logits

    outer.get_concrete_function(X)
    assert [mark and mark.head for mark in seen] == [head, None, None]


def test_a_control_flow_branch_drops_the_mark():
    head, seen = LogitsHead(4), []
    head.build((None, 3))

    @tf.function
    def step(x):
        chosen = tf.cond(tf.reduce_sum(x) > 0, lambda: head(x), lambda: -head(x))
        seen.append(origin_of(chosen))
        return chosen

    step.get_concrete_function(X)
    assert seen == [None]


def test_a_trained_model_frees_its_weights():
    """TensorFlow never frees a graph with a custom gradient; marks live in it."""
    model = keras.Sequential([keras.Input((3,)), LogitsHead(4)])
    model.compile("sgd", loss=SoftmaxCrossEntropy())
    model.train_on_batch(X, Y)
    kernel = weakref.ref(model.layers[-1].kernel)
    del model
    gc.collect()
    assert kernel() is None


def test_a_tape_that_watches_the_features_sees_through_the_head():
    head = LogitsHead(4, returns="probabilities")
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = SoftmaxCrossEntropy()(Y, head(x))
    found = tape.gradient(loss, x)

    # softmax - target, through the kernel.
    p = tf.nn.softmax(X @ head.kernel.numpy())
    expected = (p - tf.one_hot(Y, 4)) @ head.kernel.numpy().T / len(X)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
