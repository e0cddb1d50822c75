"""The head: Dense, and a formula, in float32."""

import io
import re

import keras
import numpy as np
import pytest
from keras import ops
from keras.layers import Dense, Embedding
from keras.losses import SparseCategoricalCrossentropy

from keras_logits import LogitsHead, SigmoidCrossEntropy, SoftmaxCrossEntropy
from keras_logits.provenance import origin_of

BACKEND = keras.config.backend()
EPS = np.finfo("float32").eps
draw = np.random.default_rng(5)
X = draw.normal(size=(8, 6)).astype("float32")
IDS = draw.integers(0, 3, 8)
WORDS = draw.integers(1, 5, (4, 7))


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(3)


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sequential(*layers, loss=None, eager=True):
    """A model whose steps of SGD move weights by minus their gradient."""
    model = keras.Sequential([keras.Input(X.shape[1:]), *layers])
    loss = loss or SoftmaxCrossEntropy()
    model.compile(keras.optimizers.SGD(1.0), loss=loss, run_eagerly=eager)
    return model


def gradients(model, x, y):
    """The gradient by each weight: what one step takes away from it."""
    before = [numpy_of(w) for w in model.trainable_variables]
    model.train_on_batch(x, y)
    after = [numpy_of(w) for w in model.trainable_variables]
    return [b - a for b, a in zip(before, after, strict=True)]


# Dense and a formula


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_it_gives_what_dense_gives(rank):
    x = draw.normal(size=(2, 3, 4, 6)[4 - rank :]).astype("float32")
    head = LogitsHead(5, bias_initializer="ones")
    dense = Dense(5)
    head.build(x.shape)
    dense.build(x.shape)
    dense.set_weights(head.get_weights())
    np.testing.assert_allclose(numpy_of(head(x)), numpy_of(dense(x)), atol=8 * EPS)


def test_a_seeded_model_starts_where_its_twin_with_dense_starts():
    weights = []
    for layer in (LogitsHead, Dense):  # between two others that draw too
        keras.utils.set_random_seed(9)
        drawn = layer(3, bias_initializer="random_normal")
        weights.append(sequential(Dense(5), drawn, Dense(2)).get_weights())
    for mine, its in zip(*weights, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_a_seeded_model_trains_as_its_twin_with_dense_trains():
    losses = [SoftmaxCrossEntropy(), SparseCategoricalCrossentropy(from_logits=True)]
    curves = []
    for last_layer, loss in zip([LogitsHead, Dense], losses, strict=True):
        keras.utils.set_random_seed(9)
        layers = [Dense(5, "relu"), keras.layers.Dropout(0.5), last_layer(3)]
        model = sequential(*layers, loss=loss, eager=False)
        history = model.fit(X, IDS, batch_size=3, epochs=5, verbose=0)
        curves.append(history.history["loss"])
    np.testing.assert_allclose(*curves, rtol=1e-5)


def formula(x, kernel, bias, softcap, temperature):
    """Logits, and their derivative by what comes before soft-cap and temperature."""
    z, slope = x @ kernel + bias, 1.0
    if softcap is not None:
        z = softcap * np.tanh(z / softcap)
        slope = 1 - (z / softcap) ** 2
    return z / temperature, slope / temperature


options = pytest.mark.parametrize(
    ("softcap", "temperature"), [(None, 1.0), (0.7, 1.0), (None, 2.5), (0.7, 0.4)]
)


@options
def test_its_logits_are_those_of_the_formula(softcap, temperature):
    head = LogitsHead(
        3, softcap=softcap, temperature=temperature, bias_initializer="normal"
    )
    out = numpy_of(head(X))
    weights = [w.astype("float64") for w in head.get_weights()]
    expected, _ = formula(X.astype("float64"), *weights, softcap, temperature)
    np.testing.assert_allclose(out, expected, atol=8 * EPS)


@options
def test_its_gradients_are_those_of_the_formula(softcap, temperature):
    model = sequential(LogitsHead(3, softcap=softcap, temperature=temperature))
    x, weights = X.astype("float64"), [w.astype("float64") for w in model.get_weights()]
    z, slope = formula(x, *weights, softcap, temperature)
    by_sum = (softmax(z) - np.eye(3)[IDS]) * slope / len(x)
    by_kernel, by_bias = gradients(model, X, IDS)
    np.testing.assert_allclose(by_kernel, x.T @ by_sum, atol=8 * EPS)
    np.testing.assert_allclose(by_bias, by_sum.sum(0), atol=8 * EPS)


def test_a_softcap_bounds_the_logits():
    head = LogitsHead(3, softcap=5.0)
    assert abs(numpy_of(head(1e4 * X))).max() <= 5.0


def test_whole_numbers_are_features_too():
    head = LogitsHead(3)
    out = numpy_of(head(ops.eye(4, dtype="int32")))
    np.testing.assert_array_equal(out, head.get_weights()[0])


@pytest.mark.parametrize("shape", [(None, 6), (2, None, 6), (2, 3, 4, 6)])
def test_its_output_shape_is_known_ahead(shape):
    assert LogitsHead(3).compute_output_shape(shape) == (*shape[:-1], 3)
    symbolic = LogitsHead(3)(keras.KerasTensor(shape))
    assert (symbolic.shape, symbolic.dtype) == ((*shape[:-1], 3), "float32")


# What it returns


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_it_returns_probabilities_when_asked(activation):
    head = LogitsHead(3, activation)
    z = numpy_of(head(X)).astype("float64")
    expected = softmax(z) if activation == "softmax" else 1 / (1 + np.exp(-z))
    got = numpy_of(head(X, returns="probabilities"))
    np.testing.assert_allclose(got, expected, atol=4 * EPS)


def test_one_call_may_return_what_the_others_do_not():
    head = LogitsHead(3, returns="probabilities")
    given, asked = numpy_of(head(X)), numpy_of(head(X, returns="logits"))
    np.testing.assert_allclose(given, softmax(asked), atol=4 * EPS)


def test_what_a_call_returns_is_kept_by_a_functional_model():
    inputs, head = keras.Input((6,)), LogitsHead(3)
    model = keras.Model(inputs, [head(inputs), head(inputs, returns="probabilities")])
    logits, made = map(numpy_of, model(X))
    np.testing.assert_allclose(made, softmax(logits), atol=4 * EPS)


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_call_gives_what_the_layer_gives(returns):
    head = LogitsHead(3, returns=returns)
    np.testing.assert_array_equal(numpy_of(head(X)), numpy_of(head.call(X)))


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_predict_gives_what_the_layer_gives(returns):
    model = sequential(LogitsHead(3, returns=returns), eager=False)
    got, expected = model.predict(X, verbose=0), numpy_of(model(X))
    np.testing.assert_allclose(got, expected, atol=4 * EPS)


def test_an_accuracy_sees_the_probabilities_and_the_loss_the_logits():
    model = sequential(LogitsHead(3, returns="probabilities"))
    model.compile(loss=SoftmaxCrossEntropy(), metrics=["accuracy"], run_eagerly=True)
    expected = (numpy_of(model(X)).argmax(-1) == IDS).mean()
    assert model.evaluate(X, IDS, verbose=0)[1] == pytest.approx(expected)


def test_time_distributed_gives_probabilities():
    head = LogitsHead(3, returns="probabilities")
    x = draw.normal(size=(2, 4, 6)).astype("float32")
    made = numpy_of(keras.layers.TimeDistributed(head)(x))
    np.testing.assert_allclose(made, numpy_of(head(x)), atol=4 * EPS)
    np.testing.assert_allclose(made.sum(-1), 1.0, atol=4 * EPS)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a SavedModel is of TensorFlow")
@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_an_exported_model_serves_what_the_layer_gives(returns, tmp_path):
    import tensorflow as tf

    model = sequential(LogitsHead(3, returns=returns))
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(X).numpy(), model(X), atol=4 * EPS)


# Precision


def test_the_product_is_accumulated_in_float32():
    """bfloat16 knows no 4097, and stops counting ones at 256."""
    head = LogitsHead(2, dtype="mixed_bfloat16", kernel_initializer="ones")
    out = head(np.ones((1, 4097), "float32"))
    assert dtype_of(out) == "float32"
    np.testing.assert_array_equal(numpy_of(out), 4097.0)


def test_the_bias_is_added_in_float32():
    bias = keras.initializers.Constant(11.03)  # 11 in bfloat16
    head = LogitsHead(2, dtype="mixed_bfloat16", bias_initializer=bias)
    out = numpy_of(head(np.zeros((1, 6))))
    np.testing.assert_array_equal(out, np.float32(11.03))


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_float64_stays_float64(double, returns):
    head = LogitsHead(3, returns=returns, dtype="float64", softcap=2.0, temperature=3.0)
    x = draw.normal(size=(9, 6))
    out, weights = numpy_of(head(x)), head.get_weights()
    expected, _ = formula(x, *weights, 2.0, 3.0)
    expected = expected if returns == "logits" else softmax(expected)
    assert out.dtype == weights[0].dtype == head(keras.KerasTensor((2, 6))).dtype
    np.testing.assert_allclose(out, expected, atol=8 * np.finfo("float64").eps)


# What Keras asks of a layer


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_a_mask_passes_through_to_the_loss(returns):
    words = WORDS.copy()
    words[:, 5:] = 0
    layers = [Embedding(5, 6, mask_zero=True), LogitsHead(3, returns=returns)]
    model, labels, loss = keras.Sequential(layers), WORDS % 3, SoftmaxCrossEntropy()
    masked = loss(labels, model(words))
    cut = loss(labels[:, :5], model(words[:, :5]))
    np.testing.assert_allclose(numpy_of(masked), numpy_of(cut), rtol=4 * EPS)


def test_a_frozen_head_stays_while_what_is_before_it_learns():
    head = LogitsHead(3, trainable=False)
    model = sequential(Dense(5), head)
    kernel, before = head.get_weights()[0], model.get_weights()[0]
    by_dense = gradients(model, X, IDS)
    assert len(by_dense) == 2
    assert not np.array_equal(before, model.get_weights()[0])
    np.testing.assert_array_equal(head.get_weights()[0], kernel)


def test_regularizers_are_added_to_the_training_loss_once():
    l2 = keras.regularizers.L2(0.5)
    head = LogitsHead(
        3, kernel_regularizer=l2, bias_regularizer=l2, bias_initializer="ones"
    )
    model = sequential(head)
    plain = float(numpy_of(model.loss(IDS, model(X))))
    penalty = sum(0.5 * (w**2).sum() for w in head.get_weights())
    np.testing.assert_allclose(model.evaluate(X, IDS, verbose=0), plain + penalty, 1e-6)


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_an_activity_regularizer_sees_the_logits_once(returns):
    l2 = keras.regularizers.L2(0.5)
    model = sequential(LogitsHead(3, returns=returns, activity_regularizer=l2))
    out = model(X)
    z = numpy_of(model.layers[-1](X, returns="logits"))
    plain = float(numpy_of(model.loss(IDS, out)))
    penalty = 0.5 * (z**2).sum() / len(X)  # Keras divides by the rows
    np.testing.assert_allclose(model.evaluate(X, IDS, verbose=0), plain + penalty, 1e-6)


def test_constraints_hold_after_a_step():
    constraints = {
        "kernel_constraint": keras.constraints.MaxNorm(0.1),
        "bias_constraint": "non_neg",
    }
    model = sequential(LogitsHead(3, **constraints))
    model.train_on_batch(X, IDS)
    kernel, bias = model.get_weights()
    assert np.linalg.norm(kernel, axis=0).max() <= 0.1 + EPS
    assert bias.min() >= 0


def test_a_summary_shows_shape_and_parameters():
    text = io.StringIO()
    model = sequential(LogitsHead(3))
    model.summary(print_fn=lambda line: text.write(line + "\n"))
    assert re.search(r"LogitsHead.*\(None, 3\).*\b21\b", text.getvalue())


def test_one_head_may_be_called_on_several_inputs():
    head = LogitsHead(3)
    one, two = head(X), head(2 * X)
    assert origin_of(one) is not origin_of(two)
    assert len(head.weights) == 2


# Tied to an Embedding


def tied_model(rows=5, width=6, **options):
    """Words in, logits of the same words out, through one matrix."""
    table = Embedding(rows, width, name="table", **options)
    inputs = keras.Input((7,), dtype="int32")
    features = Dense(width, "tanh", name="between")(table(inputs))
    model = keras.Model(inputs, LogitsHead(rows, tied_to=table, name="head")(features))
    model.compile(keras.optimizers.SGD(1.0), SoftmaxCrossEntropy(), run_eagerly=True)
    return model


def assert_tied(model):
    assert model.get_layer("head").tied_to is model.get_layer("table")
    assert model.count_params() == 5 * 6 + (6 * 6 + 6) + 5


def test_a_tied_head_uses_the_matrix_of_the_embedding():
    table = Embedding(5, 6)
    head = LogitsHead(5, tied_to=table, bias_initializer="ones")
    table.build(None)
    expected = X @ table.get_weights()[0].T + 1
    np.testing.assert_allclose(numpy_of(head(X)), expected, atol=8 * EPS)


def test_a_tied_head_builds_an_embedding_that_is_not_built_yet():
    table = Embedding(5, 6)
    head = LogitsHead(5, tied_to=table, use_bias=False)
    out = numpy_of(head(X))
    np.testing.assert_allclose(out, X @ table.get_weights()[0].T, atol=8 * EPS)
    assert len(head.trainable_weights) == 1


def test_a_tied_head_reads_a_quantised_embedding():
    table = Embedding(5, 6)
    head = LogitsHead(5, tied_to=table)
    before = numpy_of(head(X))
    table.quantize("int8")
    close = 0.03 * np.abs(before).max()
    np.testing.assert_allclose(numpy_of(head(X)), before, atol=close)


def test_a_tied_head_refuses_what_it_cannot_read():
    table = Embedding(5, 6)
    head = LogitsHead(5, tied_to=table)
    head(X)
    table.quantize("int4")
    expected = r"`tied_to` must .*\nReceived: .*'int4'\nFix: embedding\.quantize"
    with pytest.raises(ValueError, match=expected):
        head(X)


def test_a_tied_matrix_is_counted_once():
    assert_tied(tied_model())


def test_both_uses_of_a_tied_matrix_add_to_its_gradient():
    """Their sum is what two matrices of the same values get, each on its own."""
    tied, labels = tied_model(), WORDS % 5
    inputs = tied.input
    apart = keras.Model(inputs, LogitsHead(5)(tied.get_layer("between").output))
    apart = keras.models.clone_model(apart)
    table, *between, bias = tied.get_weights()
    apart.set_weights([table, *between, table.T, bias])
    apart.compile(keras.optimizers.SGD(1.0), SoftmaxCrossEntropy(), run_eagerly=True)
    by_table = gradients(tied, WORDS, labels)[0]
    by_rows, _, _, by_kernel, _ = gradients(apart, WORDS, labels)
    assert min(abs(by_rows).max(), abs(by_kernel).max()) > 1e-4
    np.testing.assert_allclose(by_table, by_rows + by_kernel.T, atol=8 * EPS)


def test_a_tied_model_learns():
    model = tied_model()
    losses = [model.train_on_batch(WORDS, WORDS) for _ in range(5)]
    assert losses[-1] < losses[0]


COPIES = {
    "clone_model": keras.models.clone_model,
    "from_config": lambda model: keras.Model.from_config(model.get_config()),
    "to_json": lambda model: keras.models.model_from_json(model.to_json()),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_tied_model_is_tied(copied):
    model = tied_model()
    copy = copied(model)
    assert_tied(copy)
    assert copy.get_layer("table") is not model.get_layer("table")


def test_a_model_tied_across_a_nested_model_is_tied_when_loaded(tmp_path):
    table = Embedding(5, 6, name="table")
    words = keras.Input((7,), dtype="int32")
    encoder = keras.Model(words, Dense(6)(table(words)), name="encoder")
    inputs = keras.Input((7,), dtype="int32")
    head = LogitsHead(5, tied_to=table, name="head")
    model = keras.Model(inputs, head(encoder(inputs)))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    tied_to = loaded.get_layer("head").tied_to
    assert tied_to is loaded.get_layer("encoder").get_layer("table")
    np.testing.assert_array_equal(numpy_of(loaded(WORDS)), numpy_of(model(WORDS)))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_initializer": "ones"},
        {"kernel_regularizer": "l2"},
        {"kernel_constraint": "non_neg"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_tied_head_is_refused_what_belongs_to_a_kernel(options):
    table = Embedding(5, 6)
    with pytest.raises(ValueError, match=r"Fix: Embedding\(\.\.\., embeddings_init"):
        LogitsHead(5, tied_to=table, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitsHead(0), "units=0"),
        (lambda: LogitsHead(2.5), "units=2.5"),
        (lambda: LogitsHead(True), "units=True"),
        (lambda: LogitsHead(1), r"units=1\nFix: LogitsHead\(1, activation='sigmoid'\)"),
        (lambda: LogitsHead(3, "relu"), "activation='relu'"),
        (lambda: LogitsHead(3, returns="classes"), "returns='classes'"),
        (lambda: LogitsHead(3)(X, returns=["p"]), r"returns=\['p'\]"),
        (lambda: LogitsHead(3, softcap=0.0), "softcap=0.0"),
        (lambda: LogitsHead(3, softcap=float("inf")), "softcap=inf"),
        (lambda: LogitsHead(3, temperature=-1.0), "temperature=-1.0"),
        (lambda: LogitsHead(3, temperature=None), "temperature=None"),
        (lambda: LogitsHead(3, tied_to=Dense(3)), "must be an Embedding"),
        (lambda: LogitsHead(3, tied_to=Embedding(4, 6)), "4 rows and units=3"),
        (lambda: LogitsHead(3, tied_to=Embedding(3, 5))(X), "of width 6"),
        (lambda: LogitsHead(3)(keras.Input((None,))), "number of features"),
    ],
)
def test_bad_arguments_are_refused_with_what_was_received(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert re.search("\nReceived: .*\nFix: ", str(error.value))


@pytest.mark.parametrize("kind", ["int64", "uint8"])
def test_a_number_of_units_may_come_from_numpy(kind):
    head = LogitsHead(np.dtype(kind).type(3), temperature=np.float32(2.0))
    assert (type(head.units), type(head.temperature)) == (int, float)


def test_a_sigmoid_head_of_one_unit_is_a_yes_or_no():
    model = sequential(LogitsHead(1, "sigmoid"), loss=SigmoidCrossEntropy())
    assert np.isfinite(model.evaluate(X, IDS % 2, verbose=0))
