"""Keras 2 models train as with the stock losses, where these are right."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras.layers import Dense, Embedding

from keras_logits.tf_keras import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
)

MODES = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "jit": {"jit_compile": True},
}
EPS = np.finfo("float32").eps
draw = np.random.default_rng(5)
X = draw.normal(size=(12, 6)).astype("float32")
IDS = draw.integers(0, 3, 12)
UNITS = draw.integers(0, 2, (12, 3)).astype("float32")
WORDS = draw.integers(1, 5, (4, 7))
WORDS[:, 5:] = 0  # padding


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(3)


def sequential(*layers, loss=None, **options):
    model = keras.Sequential([keras.Input(X.shape[1:]), *layers])
    options = options or {"run_eagerly": True}
    loss = loss or SoftmaxCrossEntropy()
    model.compile(keras.optimizers.SGD(0.1), loss, **options)
    return model


def curve(last, loss, labels, **options):
    """The losses of a seeded training."""
    keras.utils.set_random_seed(9)
    model = sequential(Dense(5, "relu"), last(3), loss=loss, **options)
    history = model.fit(X, labels, batch_size=5, epochs=4, shuffle=False, verbose=0)
    return history.history["loss"]


def sigmoid_head(units):
    return LogitsHead(units, "sigmoid")


STOCK = {
    "class ids": (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        (LogitsHead, SoftmaxCrossEntropy()),
        IDS,
    ),
    "distributions": (
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        (LogitsHead, SoftmaxCrossEntropy(label_smoothing=0.1)),
        np.eye(3, dtype="float32")[IDS],
    ),
    "units": (
        keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1),
        (sigmoid_head, SigmoidCrossEntropy(label_smoothing=0.1)),
        UNITS,
    ),
}


@pytest.mark.parametrize(("stock", "ours", "labels"), STOCK.values(), ids=STOCK)
def test_fit_gives_the_curve_of_the_stock_loss(stock, ours, labels):
    expected = curve(Dense, stock, labels, jit_compile=False)
    for mode in MODES.values():
        np.testing.assert_allclose(curve(*ours, labels, **mode), expected, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_labels_of_one_axis_and_of_two_are_the_same(mode):
    """tf-keras makes (B, 1) of labels (B,), sometimes."""
    model = sequential(LogitsHead(3), **mode)
    one, two = (model.evaluate(X, y, verbose=0) for y in (IDS, IDS[:, None]))
    assert one == two


def test_labels_of_one_unit_need_no_axis():
    model = sequential(LogitsHead(1, "sigmoid"), loss=SigmoidCrossEntropy())
    flat, column = IDS % 2, (IDS % 2)[:, None]
    one, two = (model.evaluate(X, labels, verbose=0) for labels in (flat, column))
    assert one == two
    stock = keras.losses.BinaryCrossentropy(from_logits=True)
    np.testing.assert_allclose(one, stock(column, model(X)), rtol=4 * EPS)


# Masks and weights


def text_model(**options):
    layers = [Embedding(5, 6, mask_zero=True), LogitsHead(3)]
    model = keras.Sequential([keras.Input((7,)), *layers])
    model.compile(keras.optimizers.SGD(0.1), SoftmaxCrossEntropy(), **options)
    return model


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_mask_leaves_out_what_is_masked(mode):
    model, labels = text_model(**mode), WORDS % 3
    labels[:, 5:] = 99  # no class, and nobody looks
    masked = model.evaluate(WORDS, labels, verbose=0)
    kept = SoftmaxCrossEntropy(True)(labels[:, :5], tf.identity(model(WORDS)[:, :5]))
    np.testing.assert_allclose(masked, kept, rtol=4 * EPS)


@pytest.mark.parametrize("shape", [(12,), (12, 1)])
def test_sample_weights_divide_the_sum_of_weighted_losses(shape):
    model, weights = sequential(LogitsHead(3)), np.arange(12.0)
    got = model.evaluate(X, IDS, sample_weight=weights.reshape(shape), verbose=0)
    each = SoftmaxCrossEntropy(True, reduction=None)(IDS, model.predict(X, verbose=0))
    np.testing.assert_allclose(got, np.average(each, weights=weights), rtol=1e-6)


@pytest.mark.parametrize("rank", [1, 2])
def test_sample_weights_of_texts_weigh_rows_or_words_that_no_mask_hides(rank):
    model, labels = text_model(run_eagerly=True), WORDS % 3
    weights = draw.uniform(1.0, 3.0, (4, 7)[:rank])
    got = model.evaluate(WORDS, labels, sample_weight=weights, verbose=0)
    each = SoftmaxCrossEntropy(True, reduction=None)(labels, tf.identity(model(WORDS)))
    spread = weights.reshape(weights.shape + (1,) * (2 - rank)) * (WORDS != 0)
    np.testing.assert_allclose(got, np.average(each, weights=spread), rtol=1e-6)


# Heads, metrics, outputs


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_an_accuracy_sees_probabilities_and_the_loss_sees_logits(mode):
    head = LogitsHead(3, returns="probabilities")
    model = sequential(head, metrics=["accuracy"], **mode)
    loss, accuracy = model.evaluate(X, IDS, verbose=0)
    logits = head(X, returns="logits")
    np.testing.assert_allclose(loss, SoftmaxCrossEntropy()(IDS, logits), rtol=4 * EPS)
    expected = np.mean(np.argmax(logits, -1) == IDS)
    np.testing.assert_allclose(accuracy, expected, rtol=4 * EPS)
    np.testing.assert_allclose(model.predict(X, verbose=0).sum(-1), 1, atol=4 * EPS)


def test_each_output_has_its_own_mark_and_loss():
    inputs = keras.Input((6,))
    outputs = {
        "kind": LogitsHead(3, name="kind")(inputs),
        "tags": MarkLogits("sigmoid", name="tags")(Dense(3)(inputs)),
    }
    model = keras.Model(inputs, outputs)
    losses = {"kind": SoftmaxCrossEntropy(), "tags": SigmoidCrossEntropy()}
    model.compile("sgd", losses, loss_weights={"kind": 1.0, "tags": 2.0})
    y = {"kind": IDS, "tags": UNITS}
    got = model.evaluate(X, y, verbose=0, return_dict=True)
    each = {name: float(losses[name](y[name], model(X)[name])) for name in y}
    assert got["kind_loss"] == pytest.approx(each["kind"], rel=1e-6)
    assert got["tags_loss"] == pytest.approx(each["tags"], rel=1e-6)
    assert got["loss"] == pytest.approx(each["kind"] + 2 * each["tags"], rel=1e-6)
    assert np.isfinite(model.train_on_batch(X, y)).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loop_of_ones_own_trains_as_fit_does(compiled):
    loss, optimizer = SoftmaxCrossEntropy(), keras.optimizers.SGD(0.1)

    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x))
        weights = model.trainable_variables
        gradients = tape.gradient(value, weights)
        optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return value

    model = sequential(LogitsHead(3))
    start = model.get_weights()
    step = tf.function(step) if compiled else step
    mine = [float(step(X, IDS)) for _ in range(3)]
    model.set_weights(start)
    fitted = [model.train_on_batch(X, IDS) for _ in range(3)]
    np.testing.assert_allclose(mine, fitted, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_an_output_without_a_mark_is_refused(mode):
    model = sequential(Dense(3), **mode)
    with pytest.raises(ValueError, match="must be marked as logits"):
        model.train_on_batch(X, IDS)


def test_a_softmax_under_from_logits_is_refused():
    loss = SoftmaxCrossEntropy(True)
    model = sequential(Dense(3, activation="softmax"), loss=loss, jit_compile=False)
    with pytest.raises(ValueError, match="output of a Keras softmax"):
        model.train_on_batch(X, IDS)


def test_a_bad_label_raises_in_eager_code_and_spares_the_weights_elsewhere():
    labels = np.where(np.arange(12) == 4, 3, IDS)
    with pytest.raises(ValueError, match="class ids from 0 to 2"):
        sequential(LogitsHead(3)).train_on_batch(X, labels)
    model = sequential(LogitsHead(3), jit_compile=True)
    assert np.isnan(model.train_on_batch(X, labels))
    assert all(np.isfinite(w).all() for w in model.get_weights())


# The head itself


def test_a_seeded_model_starts_where_its_twin_with_dense_starts():
    weights = []
    for layer in (LogitsHead, Dense):
        keras.utils.set_random_seed(9)
        drawn = layer(3, bias_initializer="random_normal")
        weights.append(sequential(Dense(5), drawn, Dense(2)).get_weights())
    for mine, its in zip(*weights, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_arrays_and_whole_numbers_are_features_too():
    head = LogitsHead(3)
    np.testing.assert_array_equal(head(X), head(tf.constant(X)))
    np.testing.assert_array_equal(head(np.eye(6, dtype=int)), head.get_weights()[0])


def test_what_a_call_returns_is_kept_by_a_functional_model():
    inputs, head = keras.Input((6,)), LogitsHead(3)
    outputs = [head(inputs), head(inputs, "probabilities")]
    logits, made = keras.Model(inputs, outputs)(X)
    np.testing.assert_allclose(made, tf.nn.softmax(logits), atol=4 * EPS)


def test_the_product_and_the_bias_are_added_up_in_float32():
    bias = keras.initializers.Constant(0.03)
    head = LogitsHead(
        2, dtype="mixed_bfloat16", kernel_initializer="ones", bias_initializer=bias
    )
    out = head(tf.ones((1, 4097)))
    np.testing.assert_array_equal(out, np.float32(4097) + np.float32(0.03))


def test_an_activity_regularizer_is_kept_by_the_config_and_applied_once():
    head = LogitsHead(3, activity_regularizer=keras.regularizers.L2(0.5))
    head = LogitsHead.from_config(head.get_config())
    model = sequential(head)
    z = model(X)
    penalty = 0.5 * np.square(z).sum() / len(X)  # Keras divides by the rows
    expected = float(SoftmaxCrossEntropy()(IDS, z)) + penalty
    assert model.evaluate(X, IDS, verbose=0) == pytest.approx(expected, rel=1e-6)
