"""What the losses and their functions promise of labels, weights, and loops."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    kernels,
    logit,
    probabilities,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from keras_logits._keras_private import set_keras_mask
from keras_logits.maths.softmax import SoftmaxFormula
from strategies import BACKEND, MEAN, MODE, MODES, REDUCTIONS, derived

COMPILED = {
    "tensorflow": ("graph", "jit"),
    "jax": ("jit",),
    "torch": ("torch.compile",),
}[BACKEND]
LN2 = np.log(2.0)
Z = np.random.default_rng(1).normal(size=(2, 3, 4)).astype("float32")
IDS = np.array([[0, 3, 1], [2, 2, 0]])
ROWS, ROW_IDS = Z.reshape(6, 4), IDS.ravel()

modes = pytest.mark.parametrize("mode", MODES)
when_compiled = pytest.mark.parametrize("mode", COMPILED)
torch_compiles = pytest.mark.filterwarnings(
    "ignore::UserWarning:torch", "ignore::DeprecationWarning"
)


def solved(loss, labels, logits, weights=None, mode="eager"):
    """The value of a loss, and the gradient of its sum by unmarked logits."""
    if mode == "torch.compile":
        import torch

        torch.compiler.reset()  # it gives up after eight functions of one name
        # All of the compiler but what writes C++.
        loss = torch.compile(loss, backend="eager", fullgraph=True)
        labels = torch.tensor(labels)
        weights = None if weights is None else torch.tensor(weights)
        mode = "eager"

    def value_and_total(z):
        value = loss(labels, z, weights)
        return value, ops.sum(value)

    return derived(value_and_total, np.asarray(logits, "float32"), mode)


def log_softmax(z):
    z = np.asarray(z, "float64")
    return z - np.logaddexp.reduce(z, -1, keepdims=True)


def cross_entropies(z, ids):
    """One for each position."""
    return -np.take_along_axis(log_softmax(z), ids[..., None], -1)[..., 0]


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor)


def assert_near(found, expected):
    found = numpy_of(found)
    assert found.shape == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# Forms of labels

WHOLE = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", WHOLE + FLOATS)
@pytest.mark.parametrize("column", [False, True], ids=["", "column"])
def test_class_ids_have_any_dtype(dtype, column):
    labels = IDS.astype(dtype)
    labels = labels[..., None] if column else labels
    loss = SoftmaxCrossEntropy(True, reduction=None)
    assert_near(loss(labels, Z), cross_entropies(Z, IDS))


@pytest.mark.parametrize("dtype", [*WHOLE, *FLOATS, "bool"])
def test_distributions_have_any_dtype(dtype):
    labels = np.eye(4, dtype=dtype)[IDS]
    loss = SoftmaxCrossEntropy(True, reduction=None)
    assert_near(loss(labels, Z), cross_entropies(Z, IDS))


def test_bools_are_ids_of_two_classes():
    labels = np.array([True, False])
    expected = cross_entropies(ROWS[:2, :2], np.array([1, 0]))
    loss = SoftmaxCrossEntropy(True, reduction=None)
    assert_near(loss(labels, ROWS[:2, :2]), expected)
    assert_near(loss(labels[:, None], ROWS[:2, :2]), expected)


@pytest.mark.parametrize("dtype", [*WHOLE, *FLOATS, "bool"])
def test_units_have_labels_of_any_dtype(dtype):
    labels = np.eye(4, dtype=dtype)[IDS]
    loss = SigmoidCrossEntropy(True, reduction=None)
    signs = 1.0 - 2.0 * np.eye(4)[IDS]
    assert_near(loss(labels, Z), np.logaddexp(0.0, signs * Z).mean(-1))


SHAPES = {
    "rows": ((6,), (6, 4), -1),
    "rows, column": ((6, 1), (6, 4), -1),
    "sequences": ((2, 3), (2, 3, 4), -1),
    "sequences, column": ((2, 3, 1), (2, 3, 4), -1),
    "classes in the middle": ((2, 3), (2, 4, 3), 1),
    "classes in the middle, column": ((2, 1, 3), (2, 4, 3), 1),
    "classes first": ((6,), (4, 6), 0),
    "classes first, column": ((1, 6), (4, 6), 0),
    "images": ((1, 2, 3), (1, 2, 3, 4), 3),
    "one position": ((), (4,), -1),
    "one position, column": ((1,), (4,), -1),
}


@pytest.mark.parametrize("case", SHAPES)
def test_class_ids_have_the_shape_of_the_logits_less_the_classes(case):
    shape, logits_shape, axis = SHAPES[case]
    count = int(np.prod(shape))
    z, ids = ROWS[:count], ROW_IDS[:count]
    positions = np.delete(logits_shape, axis)
    logits = np.moveaxis(z.reshape(*positions, 4), -1, axis)
    assert logits.shape == logits_shape
    loss = SoftmaxCrossEntropy(True, axis=axis, reduction=None)
    expected = cross_entropies(z, ids).reshape(positions)
    assert_near(loss(ids.reshape(shape), logits), expected)


def test_where_there_are_as_many_rows_as_classes_the_shape_still_tells():
    z, ids = ROWS[:4], np.array([1, 1, 0, 3])
    loss = SoftmaxCrossEntropy(True, reduction=None)
    expected = cross_entropies(z, ids)
    for labels in (ids, ids[:, None], np.eye(4, dtype=int)[ids]):
        assert_near(loss(labels, z), expected)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("logits_shape", [(6,), (6, 1)])
def test_one_unit_needs_no_axis_of_units(shape, logits_shape):
    y = np.array([0, 1, 1, 0, 1, 0])
    z = ROWS[:, 0]
    expected = np.logaddexp(0.0, (1 - 2 * y) * z)
    loss = SigmoidCrossEntropy(True, reduction=None)
    assert_near(loss(y.reshape(shape), z.reshape(logits_shape)), expected)


@pytest.mark.parametrize("ignored", [255, -100])
def test_an_ignored_label_is_no_matter_of_the_dtype(ignored):
    dtype = "uint8" if ignored == 255 else "int8"
    labels = np.array([0, 3, ignored, 2, ignored, 0]).astype(dtype)
    kept = labels.astype(int) != ignored
    loss = SoftmaxCrossEntropy(True, ignore_index=ignored)
    expected = cross_entropies(ROWS, np.where(kept, labels, 0))[kept].mean()
    assert_near(loss(labels, ROWS), expected)


def test_a_label_that_no_unsigned_byte_holds_is_not_wrapped_around():
    labels = np.array([0, 3, 156, 2, 1, 0], "uint8")  # 156 is -100 as a byte
    with pytest.raises(ValueError, match="1 bad of 6 labels, with values 156"):
        SoftmaxCrossEntropy(True, ignore_index=-100)(labels, ROWS)


def test_a_label_beyond_32_bits_is_not_wrapped_around():
    labels = np.array([0, 3, 2**32 + 1, 2, 1, 0])
    with pytest.raises(ValueError, match="1 bad of 6 labels"):
        SoftmaxCrossEntropy(True)(labels, ROWS)


# Reductions

# Losses are multiples of ln 2, of these five positions: two plain ones, one masked, one
# ignored, and one of weight 0.
WEIGHTS = np.array([2.0, 1.0, 5.0, 5.0, 0.0], "float32")
MASK = np.array([True, True, False, True, True])

SOFTMAX_SUMS = {
    MEAN: 8.0 / 5.0,
    "sum": 8.0,
    "sum_over_batch_size": 8.0 / 3.0,
    "mean": 8.0 / 3.0,
    None: [2.0, 6.0, 0.0, 0.0, 0.0],
}
SIGMOID_SUMS = {
    MEAN: 15.0 / 11.0,
    "sum": 4.0,
    "sum_over_batch_size": 4.0 / 3.0,
    "mean": 4.0 / 3.0,
    None: [3.0, 1.0, 0.0, 0.0, 0.0],
}


def with_mask(logits, activation="softmax"):
    tensor = ops.convert_to_tensor(logits)
    set_keras_mask(tensor, ops.convert_to_tensor(MASK))
    return MarkLogits(activation)(tensor)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_reduction_of_softmax_losses_is_this(reduction):
    # The first class's share is 1/2 in the first row, and 3/4 in the others.
    z = np.log(np.array([[1, 1], [3, 1], [3, 1], [3, 1], [3, 1]], "float32"))
    ids = np.array([0, 1, 1, -1, 1])
    loss = SoftmaxCrossEntropy(
        class_weight=[1.0, 3.0], ignore_index=-1, reduction=reduction
    )
    found = loss(ids, with_mask(z), WEIGHTS)
    assert_near(found, np.multiply(LN2, SOFTMAX_SUMS[reduction]))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_reduction_of_sigmoid_losses_is_this(reduction):
    # Each unit has ln 2, a positive one three times that; the second weighs three.
    labels = np.array([[1, 0], [-1, 0], [1, 1], [-1, -1], [0, 1]])
    loss = SigmoidCrossEntropy(
        class_weight=[1.0, 3.0],
        pos_weight=3.0,
        ignore_index=-1,
        reduction=reduction,
    )
    found = loss(labels, with_mask(np.zeros((5, 2), "float32"), "sigmoid"), WEIGHTS)
    assert_near(found, np.multiply(LN2, SIGMOID_SUMS[reduction]))


def test_call_gives_one_loss_for_each_position_neither_masked_nor_weighted():
    z = np.log(np.array([[1, 1], [3, 1], [3, 1], [3, 1], [3, 1]], "float32"))
    ids = np.array([0, 1, 1, -1, 1])
    softmax = SoftmaxCrossEntropy(class_weight=[1.0, 3.0], ignore_index=-1)
    assert_near(softmax.call(ids, with_mask(z)), LN2 * np.array([1, 6, 6, 0, 6]))

    labels = np.array([[1, 0], [-1, 0], [1, 1], [-1, -1], [0, 1]])
    sigmoid = SigmoidCrossEntropy(
        class_weight=[1.0, 3.0], pos_weight=3.0, ignore_index=-1
    )
    found = sigmoid.call(labels, with_mask(np.zeros((5, 2), "float32"), "sigmoid"))
    assert_near(found, LN2 * np.array([1.5, 1, 3, 0, 2.5]))


@pytest.mark.parametrize("cls", [SoftmaxCrossEntropy, SigmoidCrossEntropy])
@pytest.mark.parametrize("positions", [(), (3,), (2, 3), (2, 3, 2)])
def test_without_a_reduction_there_is_one_value_for_each_position(cls, positions):
    z = np.full((*positions, 4), -1.0, "float32")
    if cls is SigmoidCrossEntropy and not positions:
        pytest.skip("a vector of logits is that of one unit at several positions")
    labels = np.zeros(z.shape, "float32")
    for value in (
        cls(True, reduction=None)(labels, z),
        cls(True).call(labels, z),
        cls(True, axis=0, reduction=None)(
            np.moveaxis(labels, -1, 0), np.moveaxis(z, -1, 0)
        ),
    ):
        assert tuple(value.shape) == positions


NOTHING = {
    "weights of 0": ({}, np.zeros(6, "float32"), ROW_IDS),
    "all ignored": ({"ignore_index": -1}, None, np.full(6, -1)),
    "classes of weight 0": ({"class_weight": {2: 0.0}}, None, np.full(6, 2)),
}


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_where_nothing_counts_there_is_no_loss_and_no_gradient(reduction, case):
    options, weights, ids = NOTHING[case]
    loss = SoftmaxCrossEntropy(True, reduction=reduction, **options)
    value, gradient = solved(loss, ids, ROWS, weights)
    np.testing.assert_array_equal(value, np.zeros(6) if reduction is None else 0.0)
    np.testing.assert_array_equal(gradient, np.zeros_like(ROWS))


# Negative weights

NEGATIVE = np.array([1.0, -2.0, 1.0, 3.0, 1.0, 1.0], "float32")


@torch_compiles
@when_compiled
def test_a_compiled_mean_over_negative_weights_is_nan_without_a_gradient(mode):
    loss = SoftmaxCrossEntropy(True)
    value, gradient = solved(loss, ROW_IDS, ROWS, NEGATIVE, mode)
    assert np.isnan(value)
    np.testing.assert_array_equal(gradient, np.zeros_like(ROWS))


def test_a_weight_that_is_nan_pulls_nothing():
    weights = np.array([1.0, np.nan, 1.0, 0.0, 1.0, 1.0], "float32")
    formula = SoftmaxFormula(ids=True, classes=4)

    def value_and_total(z):
        given = ops.convert_to_tensor(ROW_IDS), z, ops.convert_to_tensor(weights)
        value = kernels.weighted(formula, *given, (None,), False).value
        return value, ops.sum(value)

    value, gradient = derived(value_and_total, ROWS, MODE)
    slopes = np.exp(log_softmax(ROWS)) - np.eye(4)[ROW_IDS]
    assert_near(value, weights * cross_entropies(ROWS, ROW_IDS))
    assert_near(gradient, np.nan_to_num(weights)[:, None] * slopes)


@pytest.mark.parametrize("cls", [SoftmaxCrossEntropy, SigmoidCrossEntropy])
def test_an_eager_mean_over_negative_weights_is_refused(cls):
    with pytest.raises(ValueError, match="`sample_weight` must not be negative"):
        cls(True)(np.eye(4)[ROW_IDS], ROWS, NEGATIVE)


@modes
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "sum", None])
def test_other_reductions_take_negative_weights(reduction, mode):
    loss = SoftmaxCrossEntropy(True, reduction=reduction)
    value, gradient = solved(loss, ROW_IDS, ROWS, NEGATIVE, mode)
    count = 6 if "mean" in str(reduction) or "batch" in str(reduction) else 1
    values = NEGATIVE * cross_entropies(ROWS, ROW_IDS) / count
    assert_near(value, values if reduction is None else values.sum())
    slopes = np.exp(log_softmax(ROWS)) - np.eye(4)[ROW_IDS]
    assert_near(gradient, NEGATIVE[:, None] * slopes / count)


# Bad labels in compiled code

BAD_ROWS = (1, 2, 4)
GOOD_UNITS = np.eye(4, dtype="float32")[ROW_IDS]


def with_bad(labels, values):
    changed = labels.copy()
    for row, value in zip(BAD_ROWS, values, strict=True):
        changed[(row, 1) if labels.ndim == 2 else row] = value
    return changed


FLOAT_IDS = ROW_IDS.astype("float32")
BAD = {
    "ids": (SoftmaxCrossEntropy, ROW_IDS, (-1, 4, 2**31 - 1)),
    "float ids": (SoftmaxCrossEntropy, FLOAT_IDS, (0.5, np.nan, np.inf)),
    "distributions": (SoftmaxCrossEntropy, GOOD_UNITS, (-0.1, np.nan, np.inf)),
    "units": (SigmoidCrossEntropy, GOOD_UNITS, (-1.0, np.nan, 1.5)),
}
IS_BAD = np.isin(np.arange(6), BAD_ROWS)


@torch_compiles
@when_compiled
@pytest.mark.parametrize("reduction", [MEAN, None])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_label_in_compiled_code_is_loud_and_pulls_nothing(case, reduction, mode):
    cls, good, values = BAD[case]
    bad = with_bad(good, values)
    loss = cls(True, reduction=reduction)
    value, gradient = solved(loss, bad, ROWS, mode=mode)
    expected_value, expected = solved(loss, good, ROWS, mode=MODE)
    if reduction is None:
        expected_value = np.where(IS_BAD, np.nan, expected_value)
        np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    else:
        assert np.isnan(value)
    silent = IS_BAD[:, None]
    if cls is SigmoidCrossEntropy:  # where a label is that of a unit
        silent = IS_BAD[:, None] & (np.arange(4) == 1)
    np.testing.assert_array_equal(gradient[np.broadcast_to(silent, ROWS.shape)], 0.0)
    np.testing.assert_allclose(gradient, np.where(silent, 0.0, expected), atol=1e-6)
    assert np.abs(expected[~IS_BAD]).max() > 0.01


@torch_compiles
@pytest.mark.parametrize("mode", dict.fromkeys([*MODES, *COMPILED]))
@pytest.mark.parametrize("case", BAD)
def test_nothing_behind_a_weight_of_zero_is_looked_at(case, mode):
    cls, good, values = BAD[case]
    weights = np.where(IS_BAD, 0.0, 1.0).astype("float32")
    loss = cls(True)
    expected_value, expected = solved(loss, good, ROWS, weights, MODE)
    hidden = np.where(IS_BAD[:, None], np.nan, ROWS)
    bad = with_bad(good, values)
    value, gradient = solved(loss, bad, hidden, weights, mode)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


# Labels of unknown rank

UNKNOWN = [ROW_IDS.astype("int32"), ROW_IDS[:, None].astype("int32"), GOOD_UNITS]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow hides ranks")
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
@pytest.mark.parametrize("labels", UNKNOWN, ids=["ids", "column", "distributions"])
def test_labels_of_unknown_rank_are_told_apart_by_their_dtype(labels, jit):
    import tensorflow as tf

    loss = SoftmaxCrossEntropy(True)
    kind = tf.TensorSpec(None, labels.dtype)

    @tf.function(input_signature=[kind, tf.TensorSpec((None, 4))], jit_compile=jit)
    def step(labels, z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(labels, z)
        return value, tape.gradient(value, z)

    value, gradient = step(labels, ROWS)
    assert_near(value, cross_entropies(ROWS, ROW_IDS).mean())
    assert_near(gradient, (np.exp(log_softmax(ROWS)) - np.eye(4)[ROW_IDS]) / 6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow hides ranks")
def test_labels_of_unknown_rank_and_another_size_are_refused():
    import tensorflow as tf

    loss = SoftmaxCrossEntropy(True)
    kind = tf.TensorSpec(None, "int32")
    step = tf.function(loss, input_signature=[kind, tf.TensorSpec((None, 4))])
    with pytest.raises(tf.errors.InvalidArgumentError, match="reshape"):
        step(UNKNOWN[0][:5], ROWS)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow relaxes traces")
def test_a_trace_that_was_relaxed_to_any_rank_takes_either():
    import tensorflow as tf

    traced = []
    loss = SoftmaxCrossEntropy(True)

    @tf.function(reduce_retracing=True)
    def step(labels, z):
        traced.append(labels.shape.rank)
        return loss(labels, z)

    expected = cross_entropies(ROWS, ROW_IDS).mean()
    for labels in (UNKNOWN[0], UNKNOWN[1], UNKNOWN[0], UNKNOWN[1]):
        assert_near(step(tf.constant(labels), ROWS), expected)
    assert traced == [1, None]


# Masks and weights in training

WORDS = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [4, 1, 2, 0], [0, 0, 0, 0]])
NEXT = np.where(WORDS == 0, 99, (WORDS + 1) % 5)  # 99 is no class


def language_model(**options):
    keras.utils.set_random_seed(3)
    embedding = keras.layers.Embedding(5, 6, mask_zero=True)
    layers = [keras.Input((4,), dtype="int32"), embedding, LogitsHead(5)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.5), loss=SoftmaxCrossEntropy(), **options)
    return model


HOW = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "jit": {"jit_compile": True},
}


@modes
def test_a_mask_of_an_embedding_reaches_the_loss_in_training(mode):
    model = language_model(**HOW[mode])
    real = WORDS != 0
    z = numpy_of(model(WORDS))
    expected = cross_entropies(z, np.where(real, NEXT, 0))[real].mean()
    before = model.evaluate(WORDS, NEXT, verbose=0)
    history = model.fit(WORDS, NEXT, epochs=2, verbose=0).history["loss"]
    np.testing.assert_allclose([before, history[0]], expected, rtol=1e-5)
    assert history[1] < history[0]
    unused = model.layers[0].get_weights()[0][0]
    model = language_model()
    np.testing.assert_array_equal(unused, model.layers[0].get_weights()[0][0])


IMAGES = np.random.default_rng(6).normal(size=(4, 2, 3, 5)).astype("float32")
PIXELS = np.random.default_rng(7).integers(0, 5, (4, 2, 3))
PIXEL_WEIGHTS = np.random.default_rng(8).uniform(0, 2, (4, 2, 3)).astype("float32")


def identity_model(mode):
    head = LogitsHead(5, kernel_initializer="identity")
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), head])
    model.compile(keras.optimizers.SGD(0.0), loss=SoftmaxCrossEntropy(), **HOW[mode])
    return model


@pytest.mark.parametrize("mode", dict.fromkeys([MODES[0], MODES[-1]]))
@pytest.mark.parametrize(
    "shape", [(4,), (4, 1), (4, 2), (4, 1, 1), (4, 1, 3), (4, 2, 3), (4, 2, 3, 1)]
)
def test_sample_weights_of_any_rank_weigh_leading_axes_in_training(shape, mode):
    index = tuple(slice(size) for size in shape[:3])
    weights = PIXEL_WEIGHTS[index + (0,) * (3 - len(index))].reshape(shape)
    whole = weights[..., 0] if len(shape) == 4 else weights
    whole = whole.reshape(whole.shape + (1,) * (3 - whole.ndim))
    whole = np.broadcast_to(whole, PIXELS.shape)
    expected = np.average(cross_entropies(IMAGES, PIXELS), weights=whole)
    history = identity_model(mode).fit(IMAGES, PIXELS, sample_weight=weights, verbose=0)
    np.testing.assert_allclose(history.history["loss"], [expected], rtol=1e-5)


# Loops of one's own

FEATURES = np.random.default_rng(9).normal(size=(6, 4)).astype("float32")
STEPS = 3


def small_model():
    keras.utils.set_random_seed(5)
    layers = [keras.layers.Dense(5, "tanh"), LogitsHead(4)]
    return keras.Sequential([keras.Input((4,)), *layers])


def loop_of_tensorflow(model, loss, optimizer):
    import tensorflow as tf

    @tf.function
    def step(x, y, weights):
        with tf.GradientTape() as tape:
            value = loss(y, model(x), weights)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(value, variables), variables)
        return value

    return [float(step(FEATURES, ROW_IDS, WEIGHTS_OF_ROWS)) for _ in range(STEPS)]


def loop_of_jax(model, loss, optimizer):
    import jax

    def value_of(trainable, fixed, x, y, weights):
        logits, fixed = model.stateless_call(trainable, fixed, x)
        return loss(y, logits, weights), fixed

    @jax.jit
    def step(state, x, y, weights):
        trainable, fixed, slots = state
        derive = jax.value_and_grad(value_of, has_aux=True)
        (value, fixed), gradients = derive(trainable, fixed, x, y, weights)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return value, (trainable, fixed, slots)

    state = tuple(
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
    )
    values = []
    for _ in range(STEPS):
        value, state = step(state, FEATURES, ROW_IDS, WEIGHTS_OF_ROWS)
        values.append(float(value))
    for variable, value in zip(model.trainable_variables, state[0], strict=True):
        variable.assign(value)
    return values


def loop_of_torch(model, loss, optimizer):
    import torch

    x, y, weights = map(torch.tensor, (FEATURES, ROW_IDS, WEIGHTS_OF_ROWS))
    values = []
    for _ in range(STEPS):
        model.zero_grad()
        value = loss(y, model(x), weights)
        value.backward()
        variables = model.trainable_variables
        with torch.no_grad():
            optimizer.apply([v.value.grad for v in variables], variables)
        values.append(value.item())
    return values


WEIGHTS_OF_ROWS = np.array([1.0, 0.5, 0.0, 2.0, 1.0, 1.0], "float32")
LOOPS = {
    "tensorflow": loop_of_tensorflow,
    "jax": loop_of_jax,
    "torch": loop_of_torch,
}


def test_a_loop_of_ones_own_trains_as_fit_does():
    model, optimizer = small_model(), keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    values = LOOPS[BACKEND](model, SoftmaxCrossEntropy(), optimizer)

    fitted = small_model()
    fitted.compile(keras.optimizers.Adam(0.01), loss=SoftmaxCrossEntropy())
    history = fitted.fit(
        FEATURES,
        ROW_IDS,
        sample_weight=WEIGHTS_OF_ROWS,
        epochs=STEPS,
        shuffle=False,
        verbose=0,
    )
    np.testing.assert_allclose(values, history.history["loss"], rtol=1e-5)
    assert values[-1] < values[0]
    for one, other in zip(model.get_weights(), fitted.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


# The functions


def test_the_functions_take_lists():
    found = softmax_cross_entropy([0, 1], [[0.0, 0.0], [0, 2]])
    assert_near(found, [LN2, np.log1p(np.exp(-2.0))])
    found = softmax_cross_entropy([[0.5, 0.5]], [[0, 0]])
    assert_near(found, [LN2])
    found = sigmoid_cross_entropy([[True, False]], [[0, 0.0]])
    assert_near(found, [[LN2, LN2]])


def test_the_functions_take_arrays_and_tensors_alike():
    y, z = ops.convert_to_tensor(IDS), ops.convert_to_tensor(Z)
    expected = cross_entropies(Z, IDS)
    for labels, logits in ((IDS, Z), (y, z), (IDS.tolist(), Z), (y, Z.tolist())):
        assert_near(softmax_cross_entropy(labels, logits), expected)


def test_the_functions_apply_their_options_and_neither_weigh_nor_reduce():
    z = np.log(np.array([[1, 1], [3, 1], [3, 1]], "float32"))
    found = softmax_cross_entropy([0, 1, -1], z, class_weight={1: 3.0}, ignore_index=-1)
    assert_near(found, LN2 * np.array([1, 6, 0]))
    found = softmax_cross_entropy([0, 1, 1], z.T, axis=0)
    assert_near(found, LN2 * np.array([1, 2, 2]))

    # Not the mean over units, which a loss takes.
    labels = np.array([[1, 0], [-1, 0], [-1, -1]])
    found = sigmoid_cross_entropy(
        labels, np.zeros((3, 2)), class_weight=[1, 3], pos_weight=3, ignore_index=-1
    )
    assert_near(found, LN2 * np.array([[3, 3], [0, 3], [0, 0]]))


@torch_compiles
@when_compiled
def test_a_bad_label_of_a_function_is_nan_in_compiled_code(mode):
    def of_softmax(labels, z, weights):
        return softmax_cross_entropy(labels, z)

    labels = np.array([0, 9, 2, 1, -1, 3])
    value, gradient = solved(of_softmax, labels, ROWS, mode=mode)
    bad = (labels < 0) | (labels > 3)
    np.testing.assert_array_equal(np.isnan(value), bad)
    np.testing.assert_array_equal(np.abs(gradient).max(-1) == 0, bad)


# Between logits and probabilities


def test_logits_of_the_ends_are_infinite_and_come_back():
    p = np.array([0.0, 1.0, 0.5])
    found = numpy_of(logit(p))
    np.testing.assert_array_equal(found, [-np.inf, np.inf, 0.0])
    np.testing.assert_array_equal(numpy_of(probabilities(found, "sigmoid")), p)


def test_tiny_probabilities_come_back():
    p = np.array([1e-30, 1e-7, 0.25, 0.75], "float32")
    z = numpy_of(logit(p))
    exact = np.log(p.astype("float64")) - np.log1p(-p.astype("float64"))
    np.testing.assert_allclose(z, exact, rtol=1e-6)
    # A logit of -69 is rounded by 4e-6, which its exponential multiplies.
    np.testing.assert_allclose(numpy_of(probabilities(z, "sigmoid")), p, rtol=1e-5)


def test_logits_come_back():
    z = np.array([-80.0, -3.0, -1e-30, 0.0, 1e-3, 3.0], "float32")
    found = numpy_of(logit(probabilities(z, "sigmoid")))
    np.testing.assert_allclose(found, z, rtol=1e-5, atol=5e-7)


def test_what_is_no_probability_has_no_logit():
    assert np.isnan(numpy_of(logit([-0.1, 1.1, np.nan]))).all()


def test_probabilities_of_huge_logits_are_those_of_the_ends():
    found = numpy_of(probabilities([-1e4, 1e4, -np.inf, np.inf], "sigmoid"))
    np.testing.assert_array_equal(found, [0.0, 1.0, 0.0, 1.0])
    found = numpy_of(probabilities([[1e4, 0.0, -1e4], [-1e4, -1e4, -np.inf]]))
    np.testing.assert_array_equal(found, [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])


def test_half_precision_is_computed_in_float32():
    half = ops.cast([0.25, 0.5], "bfloat16")
    for found in (logit(half), probabilities(half), probabilities(half, "sigmoid")):
        assert keras.backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_allclose(numpy_of(logit(half)), [-np.log(3.0), 0.0], rtol=1e-6)
