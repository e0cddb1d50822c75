"""What Keras 3.15 gets wrong on one backend or more.

Each docstring says what Keras gives, and each test what is right, by hand or by NumPy
in float64.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from strategies import BACKEND, MODES, derived

pytestmark = pytest.mark.compiled_fast
COMPILED = {"tensorflow": ("graph", "jit"), "jax": ("jit",), "torch": ()}[BACKEND]
Z = np.array([[3.0, -1.0, 0.0], [0.5, 2.0, -1.0]], "float32")
Y = np.array([0, 2])

modes = pytest.mark.parametrize("mode", MODES)
forms = pytest.mark.parametrize("form", ["ids", "one-hot"])


def solved(loss, labels, logits, weights=None, activation="softmax", mode="eager"):
    """The value of a loss, and its gradient by marked logits."""

    def value_and_total(z):
        value = loss(labels, MarkLogits(activation)(z), weights)
        return value, ops.sum(value)

    return derived(value_and_total, np.asarray(logits, "float32"), mode)


def log_softmax(z):
    z = np.asarray(z, "float64")
    return z - np.logaddexp.reduce(z, -1, keepdims=True)


def softmax(z):
    return np.exp(log_softmax(z))


def sigmoid(z):
    return np.exp(-np.logaddexp(0.0, -np.asarray(z, "float64")))


def cross_entropies(z, ids):
    """One for each position."""
    return -np.take_along_axis(log_softmax(z), ids[..., None], -1)[..., 0]


def labels_as(form, ids, classes=3):
    return ids if form == "ids" else np.eye(classes, dtype="float32")[ids]


def number(tensor):
    return float(ops.convert_to_numpy(tensor))


def linear(last, width=3):
    return keras.Sequential([keras.Input((width,)), last])


def dense(activation=None):
    """Whose output is its input, activated."""
    return keras.layers.Dense(3, activation, kernel_initializer="identity")


def head(*args, **options):
    """Whose logits are its input."""
    return LogitsHead(3, *args, kernel_initializer="identity", **options)


def compiled(model, loss, mode, optimizer=None):
    how = {
        "eager": {"run_eagerly": True},
        "graph": {"jit_compile": False},
        "jit": {"jit_compile": True},
    }[mode]
    model.compile(optimizer or keras.optimizers.SGD(0.0), loss=loss, **how)
    return model


def fitted_loss(model, x, y, **options):
    """What `fit` reports of its first batch."""
    return model.fit(x, y, verbose=0, **options).history["loss"][0]


# Logits or probabilities


@modes
def test_logits_are_refused_until_they_are_marked_and_then_taken_as_logits(mode):
    """Keras takes logits for probabilities, in silence: 1e-7 where 0.066 is right."""
    loss = SoftmaxCrossEntropy()
    with pytest.raises(ValueError, match="must be marked as logits"):
        compiled(linear(dense()), loss, mode).fit(Z, Y, verbose=0)
    found = fitted_loss(compiled(linear(head()), loss, mode), Z[:1], Y[:1])
    np.testing.assert_allclose(found, 0.065883875, rtol=1e-6)


@modes
def test_the_output_of_a_softmax_is_refused(mode):
    """Keras computes a softmax of the softmax, on JAX and torch in silence: 0.593."""
    model = compiled(linear(dense("softmax")), SoftmaxCrossEntropy(), mode)
    with pytest.raises(ValueError, match="must be marked as logits"):
        model.fit(Z, Y, verbose=0)


def test_the_output_of_a_softmax_is_no_logits():
    """Keras says so on TensorFlow alone, in a warning."""
    y_pred = linear(dense("softmax"))(Z)
    with pytest.raises(ValueError, match="output of a Keras softmax"):
        SoftmaxCrossEntropy(from_logits=True)(Y, y_pred)


@pytest.mark.skipif(BACKEND == "jax", reason="tracers have neither producer nor values")
@modes
def test_the_output_of_a_softmax_is_no_logits_in_training(mode):
    """Keras says so on TensorFlow alone, and trains on."""
    loss = SoftmaxCrossEntropy(from_logits=True)
    with pytest.raises(ValueError, match="output of a Keras softmax"):
        compiled(linear(dense("softmax")), loss, mode).fit(Z, Y, verbose=0)


@modes
def test_the_output_of_a_sigmoid_is_refused_by_a_softmax_loss(mode):
    """Keras on TensorFlow takes the sigmoid's input for a softmax's: 0.066 for 0.59."""
    loss = SoftmaxCrossEntropy()
    with pytest.raises(ValueError, match="must be marked as logits"):
        compiled(linear(dense("sigmoid")), loss, mode).fit(Z, np.eye(3)[Y], verbose=0)
    model = compiled(linear(head("sigmoid")), loss, mode)
    with pytest.raises(ValueError, match="must be logits of a softmax"):
        model.fit(Z, np.eye(3)[Y], verbose=0)


def test_the_output_of_a_sigmoid_is_taken_as_what_it_is():
    """Keras on TensorFlow gives 0.066, the loss of the input of the sigmoid."""
    y_pred = linear(dense("sigmoid"))(Z[:1])
    found = SoftmaxCrossEntropy(from_logits=False)(Y[:1], y_pred)
    expected = -np.log(sigmoid(3.0))  # nothing is renormalised
    np.testing.assert_allclose(number(found), expected, rtol=1e-5)


# Gradients that must not vanish


@modes
@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_a_sure_and_wrong_softmax_has_a_gradient(returns, mode):
    """Keras gives [0, 0, 0] on JAX and torch, where the label's share rounds to 0."""
    last, loss = head(returns=returns), SoftmaxCrossEntropy()
    last.build((None, 3))

    def value_and_total(features):
        value = loss(np.array([1, 1]), last(features))
        return value, value

    # The second label's share is 0 even as a number of float32.
    features = np.array([[40.0, 0.0, 0.0], [200.0, 0.0, 0.0]], "float32")
    value, gradient = derived(value_and_total, features, mode)
    np.testing.assert_allclose(value, 120.0, rtol=1e-6)
    expected = (softmax(features) - np.eye(3)[[1, 1]]) / 2
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-30)


@modes
@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_a_sure_and_wrong_sigmoid_has_a_gradient(returns, mode):
    """Keras gives 0 on JAX and torch, where 1 - sigmoid(40) rounds to 0."""
    last, loss = head("sigmoid", returns=returns), SigmoidCrossEntropy()
    last.build((None, 3))

    def value_and_total(features):
        value = loss(np.array([[0, 1, 0]]), last(features))
        return value, value

    features = np.array([[40.0, -40.0, -40.0]], "float32")
    value, gradient = derived(value_and_total, features, mode)
    np.testing.assert_allclose(value, 80.0 / 3, rtol=1e-6)
    expected = (sigmoid(features) - [[0, 1, 0]]) / 3
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


FOCAL = [19.0, 25.0, 40.0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_focal_sigmoid_has_a_gradient_at_sure_logits(gamma):
    """Keras gives NaN at 19 and above: 0 * inf, gamma 0 included."""
    z = np.array([FOCAL + [-a for a in FOCAL]] * 2).T
    y = np.array([[0.0, 1.0]] * len(z))
    away = np.where(y == 1, -z, z)  # from what is right
    s, log_r = sigmoid(away), np.logaddexp(0.0, away)
    expected = (1 - 2 * y) * s**gamma * (s + gamma * sigmoid(-away) * log_r)

    loss = SigmoidCrossEntropy(focal_gamma=gamma, reduction="sum")
    value, gradient = solved(loss, y, z, activation="sigmoid", mode=MODES[-1])
    np.testing.assert_allclose(value, np.sum(s**gamma * log_r) / 2, rtol=1e-5)
    tiny = np.finfo("float32").tiny  # below it digits are lost
    np.testing.assert_allclose(gradient, expected / 2, rtol=1e-5, atol=tiny)


@forms
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_focal_softmax_has_a_gradient_at_sure_logits(gamma, form):
    """Keras gives 0 or NaN, for the rest 1 - p rounds to 0."""
    z = np.array([[a, 0.0, 0.0] for a in FOCAL] * 2)
    ids = np.array([0, 0, 0, 1, 1, 1])
    hot = np.eye(3)[ids]
    # By hand: logsumexp(z) - z would lose what is left of it.
    log_p = -(
        np.where(hot[:, :1] == 1, 0.0, z[:, :1]) + np.log1p(2 * np.exp(-z[:, :1]))
    )
    p, rest = np.exp(log_p), -np.expm1(log_p)
    slope = rest**gamma - gamma * rest ** (gamma - 1) * p * log_p
    expected = slope * (softmax(z) - hot)

    loss = SoftmaxCrossEntropy(focal_gamma=gamma, reduction="sum")
    value, gradient = solved(loss, labels_as(form, ids), z, mode=MODES[-1])
    np.testing.assert_allclose(value, -np.sum(rest**gamma * log_p), rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


# A label out of range

X = np.random.default_rng(3).normal(size=(8, 4)).astype("float32")
BAD, BAD_ROW = np.array([0, 1, 2, 3, 0, 1, 2, 0]), 3  # of three classes

WAYS = {
    "plainly": lambda: keras.optimizers.SGD(0.5),
    "with Adam": lambda: keras.optimizers.Adam(0.1),
    "clipped": lambda: keras.optimizers.SGD(0.5, clipnorm=0.01),
    "clipped together": lambda: keras.optimizers.SGD(0.5, global_clipnorm=0.01),
    "accumulated": lambda: keras.optimizers.SGD(0.5, gradient_accumulation_steps=2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)),
    "in half precision": lambda: keras.optimizers.SGD(0.5),
}


def seeded_model(way, loss, mode):
    keras.utils.set_random_seed(1)
    dtype = "mixed_bfloat16" if way == "in half precision" else "float32"
    layers = [keras.layers.Dense(5, "tanh", dtype=dtype), LogitsHead(3, dtype=dtype)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    return compiled(model, loss, mode, WAYS[way]())


def losses_of_fit(model, labels, weights=None):
    return model.fit(
        X, labels, 4, 2, sample_weight=weights, shuffle=False, verbose=0
    ).history["loss"]


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize("way", WAYS)
def test_a_label_out_of_range_is_loud_and_leaves_the_weights_alone(way, mode):
    """Keras, jitted, leaves NaN weights on TensorFlow, and on JAX a finite loss."""
    model = seeded_model(way, SoftmaxCrossEntropy(), mode)
    before = model.get_weights()
    assert np.isnan(losses_of_fit(model, BAD)).all()

    # The same rows, the bad one with a weight of 0, divided by the number of all.
    loss = SoftmaxCrossEntropy(reduction="sum_over_batch_size")
    twin = seeded_model(way, loss, mode)
    good, weights = np.minimum(BAD, 2), np.where(np.arange(8) == BAD_ROW, 0.0, 1.0)
    assert np.isfinite(losses_of_fit(twin, good, weights)).all()

    rounding = 1e-2 if way == "in half precision" else 1e-5
    for old, found, expected in zip(
        before, model.get_weights(), twin.get_weights(), strict=True
    ):
        moved = np.abs(expected - old).max()
        assert moved > 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=rounding * moved)


@pytest.mark.skipif(bool(COMPILED), reason="compiled steps cannot raise")
@pytest.mark.parametrize("way", WAYS)
def test_a_label_out_of_range_is_named_and_leaves_the_weights_alone(way):
    """Keras on torch says IndexError: Target 3 is out of bounds, on a CPU alone."""
    model = seeded_model(way, SoftmaxCrossEntropy(), "eager")
    before = model.get_weights()
    with pytest.raises(ValueError, match="must be class ids from 0 to 2"):
        losses_of_fit(model, BAD)
    for old, found in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, old)


# What does not count


@modes
@forms
def test_a_mean_over_nothing_is_zero(form, mode):
    """Keras 2 gives NaN."""
    loss = SoftmaxCrossEntropy(ignore_index=1)
    value, gradient = solved(loss, labels_as(form, np.array([1, 1])), Z, mode=mode)
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(gradient, np.zeros_like(Z))


@modes
def test_a_mean_over_unknown_units_is_zero(mode):
    """Keras has no unknown units: -1 becomes a label like any other."""
    loss = SigmoidCrossEntropy(ignore_index=-1)
    labels = np.full(Z.shape, -1)
    value, gradient = solved(loss, labels, Z, activation="sigmoid", mode=mode)
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(gradient, np.zeros_like(Z))


@modes
def test_a_mean_is_divided_by_its_weights(mode):
    """Keras divides by the number of rows, those of weight 0 included: 0.033."""
    loss, weights = SoftmaxCrossEntropy(), np.array([1.0, 0.0])
    value, gradient = solved(loss, Y, Z, weights, mode=mode)
    np.testing.assert_allclose(value, 0.065883875, rtol=1e-6)
    expected = (softmax(Z) - np.eye(3)[Y]) * weights[:, None]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@modes
def test_weights_of_rows_weigh_rows_of_a_square(mode):
    """An array of (B,) broadcast to (B, T) would weigh columns where B == T."""
    z = np.stack([Z, Z[::-1] + 1.0])
    ids, weights = np.array([[0, 1], [1, 2]]), np.array([1.0, 3.0])
    each = cross_entropies(z, ids)
    loss = SoftmaxCrossEntropy()
    value, gradient = solved(loss, ids, z, weights, mode=mode)
    whole = np.repeat(weights[:, None], 2, 1)
    np.testing.assert_allclose(value, np.sum(whole * each) / whole.sum(), rtol=1e-6)
    expected = whole[..., None] * (softmax(z) - np.eye(3)[ids]) / whole.sum()
    np.testing.assert_allclose(gradient, expected, atol=1e-6)

    model = compiled(keras.Sequential([keras.Input((2, 3)), head()]), loss, mode)
    found = fitted_loss(model, z, ids, sample_weight=weights)
    np.testing.assert_allclose(found, value, rtol=1e-6)


# Numbers that half precision does not hold


@pytest.fixture
def floatx():
    keras.config.set_floatx("bfloat16")
    yield
    keras.config.set_floatx("float32")


@pytest.fixture
def mixed():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


MANY = np.where(np.arange(1030) == 1025, 5.0, 0.0).astype("float32")[None]
MANY_LOSS = np.log(1029 + np.exp(5.0)) - 5.0
IDS = [np.array([1025], dtype) for dtype in ("int16", "int64", "float32", "float64")]
each_dtype = pytest.mark.parametrize(
    "labels", IDS, ids=lambda labels: str(labels.dtype)
)


@each_dtype
def test_a_class_keeps_its_id_in_a_loss_of_half_precision(labels):
    """Keras rounds 1025 to 1024, and gives 7.06 for 2.07."""
    value = SoftmaxCrossEntropy(True, dtype="bfloat16")(labels, MANY)
    np.testing.assert_allclose(number(value), MANY_LOSS, rtol=1e-6)


@each_dtype
def test_a_class_keeps_its_id_where_floats_are_of_half_precision(floatx, labels):
    """Keras rounds 1025 to 1024 here, too."""
    value = SoftmaxCrossEntropy(True)(labels, ops.convert_to_tensor(MANY, "float32"))
    np.testing.assert_allclose(number(value), MANY_LOSS, rtol=1e-6)


@modes
@each_dtype
def test_a_class_keeps_its_id_in_mixed_precision(mixed, labels, mode):
    """Keras' own head gives logits of half precision."""
    last = LogitsHead(1030, bias_initializer=lambda shape, dtype=None: MANY[0])
    model = compiled(linear(last), SoftmaxCrossEntropy(), mode)
    found = fitted_loss(model, np.zeros((1, 3)), labels)
    np.testing.assert_allclose(found, MANY_LOSS, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean_with_sample_weight", None])
def test_a_loss_of_float64_is_computed_in_float64(double, reduction):
    """Keras gives float32 on torch."""
    loss = SoftmaxCrossEntropy(True, dtype="float64", reduction=reduction)
    value = ops.convert_to_numpy(loss(Y, Z))
    assert value.dtype == "float64"
    expected = cross_entropies(Z, Y)
    expected = expected if reduction is None else expected.mean()
    np.testing.assert_allclose(value, expected, rtol=1e-14)


@pytest.mark.skipif(BACKEND != "jax", reason="the others always have float64")
def test_a_loss_of_float64_is_refused_where_there_is_none():
    """Keras gives float32 and says nothing of the loss."""
    loss = SoftmaxCrossEntropy(True, dtype="float64")
    with (
        pytest.warns(UserWarning, match="dtype float64"),
        pytest.raises(ValueError, match="jax_enable_x64"),
    ):
        loss(Y, Z)


# Classes that are closed, labels without mass, smoothed ids


@modes
@forms
def test_a_closed_class_that_is_not_the_label_changes_nothing(form, mode):
    """Keras gives NaN for one-hot labels, and on JAX for class ids: 0 * -inf."""
    z = np.array([[3.0, -np.inf, 0.0], [-np.inf, -np.inf, 1.0]])
    value, gradient = solved(SoftmaxCrossEntropy(), labels_as(form, Y), z, mode=mode)
    s = sigmoid(3.0)
    np.testing.assert_allclose(value, -np.log(s) / 2, rtol=1e-6)
    expected = [[(s - 1) / 2, 0.0, (1 - s) / 2], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


@modes
@pytest.mark.parametrize("from_logits", [True, False])
def test_a_distribution_without_mass_has_no_loss(from_logits, mode):
    """Keras divides probabilities by their sum, and gives NaN where that is 0."""
    loss = SoftmaxCrossEntropy(from_logits, reduction=None)
    labels = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "float32")
    scores = Z if from_logits else np.array([[0.0] * 3, [0.25, 0.5, 0.25]], "float32")

    def value_and_total(scores):
        value = loss(labels, scores)
        return value, ops.sum(value)

    value, gradient = derived(value_and_total, scores, mode)
    second = cross_entropies(Z, Y - [0, 1])[1] if from_logits else np.log(2.0)
    np.testing.assert_allclose(value, [0.0, second], rtol=1e-6)
    np.testing.assert_array_equal(gradient[0], np.zeros(3))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[1]).max() > 0.1


def test_smoothing_is_for_class_ids_too():
    """Keras has it for one-hot labels alone: TypeError for an unknown argument."""
    loss = SoftmaxCrossEntropy(label_smoothing=0.3)
    value, gradient = solved(loss, Y, Z)
    target = 0.7 * np.eye(3)[Y] + 0.1
    expected = -np.mean(np.sum(target * log_softmax(Z), -1))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, (softmax(Z) - target) / 2, atol=1e-6)


# Class weights of sequences and images


@modes
@pytest.mark.parametrize("positions", [(2, 2), (4, 3), (2, 3, 2)])
def test_class_weights_weigh_sequences_and_images(positions, mode):
    """Keras' `fit(class_weight=)` takes the argmax over time, or fails: TypeError."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(*positions, 3)).astype("float32")
    ids = rng.integers(0, 3, positions)
    per_class = np.array([1.0, 2.0, 5.0])
    w = per_class[ids] / per_class[ids].sum()

    last = head(use_bias=False)
    loss = SoftmaxCrossEntropy(class_weight={1: 2.0, 2: 5.0})
    model = keras.Sequential([keras.Input(x.shape[1:]), last])
    compiled(model, loss, mode, keras.optimizers.SGD(1.0))
    found = fitted_loss(model, x, ids, batch_size=len(x))
    np.testing.assert_allclose(found, np.sum(w * cross_entropies(x, ids)), rtol=1e-5)
    slopes = w[..., None] * (softmax(x) - np.eye(3)[ids])
    expected = np.eye(3) - x.reshape(-1, 3).T @ slopes.reshape(-1, 3)
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=1e-5)


def test_the_functions_have_none_of_these_faults_either():
    """What Keras' functions share with its losses."""
    ids, z = np.array([1, 0, 2]), np.array([[40.0, 0.0, 0.0]] * 2 + [[0, -np.inf, 0.0]])
    found = ops.convert_to_numpy(softmax_cross_entropy(ids, z.astype("float32")))
    np.testing.assert_allclose(found, [40.0, 0.0, np.log(2)], rtol=1e-6, atol=1e-7)
    found = ops.convert_to_numpy(sigmoid_cross_entropy([0, 1], [40.0, 40.0]))
    np.testing.assert_allclose(found, [40.0, np.exp(-40.0)], rtol=1e-6)
