"""Softmax over an axis whose size only the step knows, as that of two towers is.

Logits `[B, B]` say which text belongs to which image. Their batch size is None.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import (
    LogitsHead,
    MarkLogits,
    SoftmaxCrossEntropy,
    linear_softmax_cross_entropy,
    probabilities,
    softmax_cross_entropy,
)
from strategies import BACKEND, MODES

pytestmark = pytest.mark.compiled_fast
WIDTH, BATCH = 3, 4
ROWS = 10  # so that the last batch is smaller, and the size cannot be known
IDS = np.arange(ROWS) % BATCH
modes = pytest.mark.parametrize("mode", MODES)
how = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "jit": {"jit_compile": True},
}
rng = np.random.default_rng(0)
IMAGES, TEXTS = rng.normal(size=(2, ROWS, WIDTH)).astype("float32")


def towers():
    image, text = keras.Input((WIDTH,)), keras.Input((WIDTH,))
    last = keras.layers.Dense(WIDTH, use_bias=False, kernel_initializer="identity")
    logits = ops.matmul(last(image), ops.transpose(text))
    return keras.Model([image, text], MarkLogits("softmax")(logits)), last


def expected_step(axis, smoothing, gamma, z_loss):
    """The loss of the first batch, and its gradient by the kernel, in float64."""
    x, y = IMAGES[:BATCH].astype("float64"), TEXTS[:BATCH].astype("float64")
    z = x @ y.T
    z = z if axis == -1 else z.T
    t = (1 - smoothing) * np.eye(BATCH) + smoothing / BATCH

    def loss(z):
        lse = np.logaddexp.reduce(z, -1, keepdims=True)
        log_p = z - lse
        terms = t * (1 - np.exp(log_p)) ** gamma * log_p
        return np.mean(-terms.sum(-1) + z_loss * lse[:, 0] ** 2)

    h, by_z = 1e-6, np.zeros_like(z)
    for at in np.ndindex(*z.shape):
        step = np.zeros_like(z)
        step[at] = h
        by_z[at] = (loss(z + step) - loss(z - step)) / (2 * h)
    by_z = by_z if axis == -1 else by_z.T
    return loss(z), x.T @ (by_z @ y)


@modes
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("form", ["ids", "one-hot"])
@pytest.mark.parametrize("options", [(0.0, 0.0, 0.0), (0.1, 2.0, 0.01)], ids=str)
def test_two_towers_train(options, form, axis, mode):
    if (form, axis) == ("one-hot", 0):
        pytest.skip("columns of labels are not rows of a batch")
    model, last = towers()
    smoothing, gamma, z_loss = options
    loss = SoftmaxCrossEntropy(
        axis=axis, label_smoothing=smoothing, focal_gamma=gamma, z_loss=z_loss
    )
    model.compile(keras.optimizers.SGD(1.0), loss=loss, **how[mode])
    labels = IDS if form == "ids" else np.eye(BATCH, dtype="float32")[IDS]
    value = model.train_on_batch([IMAGES[:BATCH], TEXTS[:BATCH]], labels[:BATCH])
    expected, by_kernel = expected_step(axis, *options)
    np.testing.assert_allclose(value, expected, 1e-5)
    found = ops.convert_to_numpy(last.kernel)
    np.testing.assert_allclose(found, np.eye(WIDTH) - by_kernel, 1e-3, 1e-4)


@pytest.mark.parametrize("axis", [-1, 0])
def test_batches_of_another_size_train_with_the_same_model(axis):
    model, _ = towers()
    model.compile("sgd", loss=SoftmaxCrossEntropy(axis=axis))
    how = {"verbose": 0, "shuffle": False}
    history = model.fit([IMAGES, TEXTS], IDS, batch_size=BATCH, **how).history
    assert np.isfinite(history["loss"][0])
    ids = np.arange(ROWS) % 7
    found = model.evaluate([IMAGES, TEXTS], ids, batch_size=7, verbose=0)
    z = ops.convert_to_numpy(model([IMAGES, TEXTS])).astype("float64")
    losses = []
    for rows in (range(7), range(7, ROWS)):
        part = z[np.ix_(rows, rows)] if axis == -1 else z[np.ix_(rows, rows)].T
        losses.extend(np.logaddexp.reduce(part, -1) - np.diag(part))
    np.testing.assert_allclose(found, np.mean(losses), 1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others know all sizes")
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_a_graph_without_sizes_has_the_loss_of_one_with_them(dtype, jit):
    import tensorflow as tf

    z = rng.normal(size=(4, 4)).astype("float32")
    labels = np.arange(4) if dtype == "int32" else np.eye(4, dtype="float32")
    options = {"label_smoothing": 0.1, "focal_gamma": 2.0 * (dtype == "int32")}

    @tf.function(
        jit_compile=jit,
        input_signature=[
            tf.TensorSpec([None] * labels.ndim, dtype),
            tf.TensorSpec([None, None], "float32"),
        ],
    )
    def run(labels, z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            values = softmax_cross_entropy(labels, z, **options)
        return values, tape.gradient(values, z)

    z_of = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z_of)
        expected = softmax_cross_entropy(labels, z_of, **options)
    found = run(tf.constant(labels, dtype), z_of)
    np.testing.assert_allclose(found[0], expected, 1e-6)
    np.testing.assert_allclose(found[1], tape.gradient(expected, z_of), 1e-5, 1e-7)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others know all sizes")
def test_class_weights_need_a_known_number_of_classes():
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, None], "float32")])
    def run(z):
        return SoftmaxCrossEntropy(True, class_weight=[1.0, 2.0])(IDS[:2], z)

    expected = (  # TensorFlow indents the lines of an error in a graph
        r"`class_weight` needs a known number of classes\.\n"
        r" *Received: class_weight and logits of shape \(None, None\), with axis=1\n"
        r" *Fix: logits = keras\.ops\.reshape\(logits, "
    )
    with pytest.raises(ValueError, match=expected):
        run(np.zeros((2, 2), "float32"))


@modes
def test_a_head_reports_of_a_softmax_over_the_batch(mode):
    """Each column is a query, each row of the batch a candidate."""
    head = LogitsHead(2, reports=["accuracy", "cross_entropy", "entropy"], name="head")
    model = keras.Sequential([keras.Input((WIDTH,)), head])
    loss = SoftmaxCrossEntropy(axis=0)
    model.compile(keras.optimizers.SGD(0.0), loss=loss, **how[mode])
    # One label for each column: Keras wants as many as there are rows.
    labels = np.array([1, 0])
    x = IMAGES[:2]
    found = model.evaluate(x, labels, verbose=0, return_dict=True)
    z = ops.convert_to_numpy(model(x)).astype("float64")
    log_p = z - np.logaddexp.reduce(z, 0)
    np.testing.assert_allclose(
        found["head_cross_entropy"], -np.mean(log_p[labels, [0, 1]]), 1e-5
    )
    accuracy = np.mean(z.argmax(0) == labels)
    np.testing.assert_allclose(found["head_accuracy"], accuracy)
    entropy = -np.mean((np.exp(log_p) * log_p).sum(0))
    np.testing.assert_allclose(found["head_entropy"], entropy, 1e-5)


# Fewer than two classes

EMPTY, ONE = np.zeros((1, 0), "float32"), np.zeros((1, 1), "float32")
NO_SOFTMAX = {
    "function": lambda z: softmax_cross_entropy([0], z),
    "from_logits=True": lambda z: SoftmaxCrossEntropy(True)([0], z),
    "from_logits=False": lambda z: SoftmaxCrossEntropy(False)([0], z),
    "MarkLogits": lambda z: SoftmaxCrossEntropy()([0], MarkLogits()(z)),
    "linear": lambda z: linear_softmax_cross_entropy(ONE, z, [0]),
    "probabilities": probabilities,
}


@pytest.mark.parametrize("classes", [0, 1])
@pytest.mark.parametrize("case", NO_SOFTMAX)
def test_a_softmax_over_fewer_than_two_classes_is_refused(case, classes):
    expected = (
        r"`logits` of a softmax must have at least 2 classes.*\nReceived: shape \(1, "
        rf"{classes}\), with axis=(-1|1)\nFix: .*sigmoid"
    )
    with pytest.raises(ValueError, match=expected):
        NO_SOFTMAX[case](ONE if classes else EMPTY)


def test_a_batch_of_one_pair_has_nothing_to_choose_from():
    with pytest.raises(ValueError, match="at least 2 classes"):
        SoftmaxCrossEntropy(True, axis=0)([0, 0, 0], np.zeros((1, 3), "float32"))
