"""A head that is tied to a `ReversibleEmbedding` computes what that layer computes.

The truth is `embedding(x, reverse=True)`, and JAX's, TensorFlow's and torch's own
derivative of a cross-entropy that is written out on it.
"""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import LogitsHead, SoftmaxCrossEntropy

pytestmark = pytest.mark.compiled_fast
ReversibleEmbedding = getattr(keras.layers, "ReversibleEmbedding", None)
if ReversibleEmbedding is None:
    pytest.skip("this Keras has no such layer", allow_module_level=True)

BACKEND = keras.config.backend()
EPS = np.finfo("float32").eps
WORDS, WIDTH = 11, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3, WIDTH)).astype("float32")
IDS = RNG.integers(0, WORDS, (8, 5))
NEXT = (IDS + 1) % WORDS

OPTIONS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_weights": False},
    "capped": {"logit_soft_cap": 0.5},
    "untied, capped": {"tie_weights": False, "logit_soft_cap": 0.5},
    "in bfloat16": {"reverse_dtype": "bfloat16"},
    "all": {
        "tie_weights": False,
        "logit_soft_cap": 0.5,
        "reverse_dtype": "float32",
    },
}
every = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def numpy_of(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(3)


def table_of(options, **more):
    return ReversibleEmbedding(
        WORDS, WIDTH, embeddings_initializer="glorot_normal", **options, **more
    )


def head_of(table, **options):
    return LogitsHead(WORDS, tied_to=table, use_bias=False, **options)


class Reverse(keras.layers.Layer):
    """The layer's own logits, for a model of Keras alone."""

    def __init__(self, table):
        super().__init__(autocast=False)
        self.table = table

    def call(self, inputs):
        return self.table(inputs, reverse=True)


def model_of(options, last, loss, **more):
    """Words in, logits of the next one out; two of these start alike."""
    keras.utils.set_random_seed(3)
    table = table_of(options, name="table", **more)
    inputs = keras.Input((5,), dtype="int32")
    features = keras.layers.Dense(WIDTH, "tanh", name="between")(table(inputs))
    model = keras.Model(inputs, last(table)(features))
    model.compile(keras.optimizers.SGD(1.0), loss, jit_compile=False)
    return model


def theirs_of(options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model_of(options, Reverse, loss)


def rounding(options):
    """Of products, in what the layer computes in."""
    half = options.get("reverse_dtype") == "bfloat16"
    error = 2.0**-7 if half else 16 * EPS
    return {"rtol": error, "atol": error}


@every
def test_the_logits_are_those_of_the_layer(options):
    table = table_of(options)
    found = head_of(table)(X)
    expected = numpy_of(table(X, reverse=True))
    assert expected.std() > 0.1
    np.testing.assert_allclose(numpy_of(found), expected, **rounding(options))
    assert keras.backend.standardize_dtype(found.dtype) == "float32"


@every
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_training_moves_each_matrix_as_the_layer_does(options, fused):
    theirs = theirs_of(options)
    ours = model_of(options, head_of, SoftmaxCrossEntropy(fused=fused))
    assert [w.shape for w in ours.weights] == [w.shape for w in theirs.weights]
    before = ours.get_weights()
    for model in (theirs, ours):
        model.fit(IDS, NEXT, batch_size=8, epochs=2, shuffle=False, verbose=0)
    found, expected = ours.get_weights(), theirs.get_weights()
    for x, y, old in zip(found, expected, before, strict=True):
        assert np.abs(y - old).max() > 1e-3
        np.testing.assert_allclose(x, y, **rounding(options))


def test_features_are_multiplied_as_precisely_as_reverse_dtype_says():
    """Under mixed precision, in a model: neither features nor matrix are rounded."""
    table = table_of({"reverse_dtype": "float32"}, dtype="mixed_bfloat16")
    inputs = keras.Input((3, WIDTH))
    head = head_of(table, dtype="mixed_bfloat16")
    found = numpy_of(keras.Model(inputs, head(inputs))(X))
    exact = X.astype("float64") @ table.get_weights()[0].astype("float64").T
    np.testing.assert_allclose(found, exact, atol=16 * EPS)


def test_float64_is_kept(double):
    table = table_of({"reverse_dtype": "float64", "logit_soft_cap": 0.5})
    head = head_of(table)
    symbolic = head(keras.Input((3, WIDTH)))
    found = head(X)
    exact = X.astype("float64") @ table.get_weights()[0].astype("float64").T
    exact = 0.5 * np.tanh(exact / 0.5)
    np.testing.assert_allclose(ops.convert_to_numpy(found), exact, atol=1e-14)
    assert symbolic.dtype == "float64"


COPIES = {
    "clone_model": keras.models.clone_model,
    "from_config": lambda model: keras.Model.from_config(model.get_config()),
    "to_json": lambda model: keras.models.model_from_json(model.to_json()),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_keeps_the_layer_with_its_options(copied):
    options = OPTIONS["all"]
    model = model_of(options, head_of, SoftmaxCrossEntropy())
    copy = copied(model)
    copy.set_weights(model.get_weights())
    head, table = copy.layers[-1], copy.get_layer("table")
    assert head.tied_to is table
    assert {name: getattr(table, name) for name in options} == options
    np.testing.assert_array_equal(numpy_of(copy(IDS)), numpy_of(model(IDS)))


def test_a_saved_model_gives_the_same_logits(tmp_path):
    model = model_of(OPTIONS["all"], head_of, SoftmaxCrossEntropy())
    model.fit(IDS, NEXT, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].tied_to is loaded.get_layer("table")
    np.testing.assert_array_equal(numpy_of(loaded(IDS)), numpy_of(model(IDS)))


@pytest.mark.parametrize("own", [None, 0.5])
def test_a_head_may_say_the_soft_cap_again(own):
    table = table_of(OPTIONS["capped"])
    found = numpy_of(head_of(table, softcap=own)(X))
    expected = numpy_of(table(X, reverse=True))
    np.testing.assert_allclose(found, expected, atol=16 * EPS)


def test_two_soft_caps_are_refused():
    message = (
        r"(?s)`softcap` must .*softcap=30\.0 and tied_to\.logit_soft_cap=0\.5\n"
        "Fix: omit softcap"
    )
    with pytest.raises(ValueError, match=message):
        head_of(table_of(OPTIONS["capped"]), softcap=30)


def test_a_soft_cap_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"`tied_to\.logit_soft_cap` must be a finite"):
        head_of(table_of({"logit_soft_cap": 0.0}))


class NoMatrix(keras.layers.Layer):
    input_dim, output_dim = WORDS, WIDTH

    def call(self, inputs):
        return inputs


class WrongMatrix(NoMatrix):
    def build(self, input_shape):
        self.embeddings = self.add_weight(shape=(WIDTH, WORDS))


class NoWayBack(WrongMatrix):
    tie_weights = False


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (NoMatrix, r"`embeddings` has the shape None, not \(11, 6\)"),
        (WrongMatrix, r"`embeddings` has the shape \(6, 11\), not \(11, 6\)"),
        (NoWayBack, r"`reverse_embeddings` has the shape None, not \(6, 11\)"),
    ],
)
def test_a_layer_without_a_usable_matrix_is_refused(layer, found):
    message = (
        rf"(?s)`tied_to` must hold.*Received: a {layer.__name__} whose {found}\n"
        r"Fix: tied_to=keras\.layers\.Embedding\(11, 6\)"
    )
    with pytest.raises(ValueError, match=message):
        head_of(layer())(X)


@pytest.mark.parametrize(
    "options", [{}, {"tie_weights": False}], ids=["tied", "untied"]
)
def test_a_quantised_layer_is_read_as_the_floats_it_stands_for(options):
    table = table_of(options)
    head = head_of(table)
    before = numpy_of(head(X))
    table.quantize("int8")
    found = numpy_of(head(X))
    assert not np.array_equal(found, before)
    np.testing.assert_allclose(found, before, atol=0.03 * np.abs(before).max())


@pytest.mark.parametrize(
    "options", [{}, {"tie_weights": False}], ids=["tied", "untied"]
)
def test_a_layer_in_four_bits_is_refused(options):
    table = table_of(options)
    head = head_of(table)
    head(X)
    table.quantize("int4")
    with pytest.raises(ValueError, match=r"(?s)floats or int8.*'int4'"):
        head(X)


@pytest.mark.parametrize("quantised", [False, True], ids=["floats", "int8"])
@pytest.mark.parametrize(
    "options", [{}, {"tie_weights": False}], ids=["tied", "untied"]
)
def test_an_update_of_low_rank_counts_where_the_layer_counts_it(options, quantised):
    table = table_of(options)
    head = head_of(table)
    head(X)
    table.enable_lora(2, lora_alpha=3, b_initializer="normal")
    expected = numpy_of(table(X, reverse=True))
    if not quantised:
        np.testing.assert_allclose(numpy_of(head(X)), expected, atol=16 * EPS)
        return
    table.quantize("int8")
    close = 0.03 * np.abs(expected).max()
    np.testing.assert_allclose(numpy_of(head(X)), expected, atol=close)


def test_an_update_of_a_quantised_embedding_is_not_scaled_with_it():
    """The sum of both, as a lookup of all rows gives it."""
    table = keras.layers.Embedding(WORDS, WIDTH)
    head = head_of(table)
    head(X)
    table.enable_lora(2, b_initializer="normal")
    table.quantize("int8")
    rows = numpy_of(table(np.arange(WORDS)))
    np.testing.assert_allclose(numpy_of(head(X)), X @ rows.T, atol=16 * EPS)
