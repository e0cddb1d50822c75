"""Losses of probabilities: exact values, slopes that stay finite, and loud refusals.

A probability of 0 or 1 is a rounded one. Expected numbers are those of float64.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import SigmoidCrossEntropy, SoftmaxCrossEntropy
from strategies import BACKEND, EPS, MODES, derived

LOSS_SCALE = 2.0**24
TINY = float(np.finfo("float32").tiny)
FLOOR = 1e-25
GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
AROUND_ONE = (1 - 2.0**-24, 1.0, 1 + 2.0**-23)
COMPILED = [mode for mode in MODES if mode != "eager"]
modes = pytest.mark.parametrize("mode", MODES)


def solved(loss, labels, p, mode=MODES[0], scale=1.0, weight=None):
    """The value of a sum, and the gradient of `scale` times it by probabilities."""

    def value_and_total(p):
        value = loss(labels, p, weight)
        return value, scale * value

    return derived(value_and_total, p, mode)


def softmax(**options):
    return SoftmaxCrossEntropy(False, reduction="sum", **options)


def sigmoid(**options):
    return SigmoidCrossEntropy(False, reduction="sum", **options)


def one_class(p, **how):
    """The loss of a label whose class has the probability p, and its slope."""
    options = {name: how.pop(name) for name in ("focal_gamma",) if name in how}
    rows = np.array([[p, 0.25, 0.25]], "float32")
    value, gradient = solved(softmax(**options), np.array([0]), rows, **how)
    return float(value), float(gradient[0, 0])


def one_unit(label, p, **how):
    options = {name: how.pop(name) for name in ("focal_gamma",) if name in how}
    rows, labels = np.array([[p]], "float32"), np.array([[label]], "float32")
    value, gradient = solved(sigmoid(**options), labels, rows, **how)
    return float(value), float(gradient[0, 0])


# Values and slopes


@pytest.mark.parametrize("p", [0.3, 1e-7, 1e-20, 1e-30, 1e-37, 0.0])
def test_a_value_is_exact_down_to_the_smallest_normal_number(p):
    expected = -np.log(max(np.float64(np.float32(p)), TINY))
    for value, _ in (one_class(p), one_unit(1, p)):
        np.testing.assert_allclose(value, expected, 4 * EPS)


@pytest.mark.parametrize("p", [0.3, 1e-7, 1e-20, 1e-24])
def test_a_slope_is_exact_down_to_its_floor(p):
    for _, slope in (one_class(p), one_unit(1, p)):
        np.testing.assert_allclose(slope, -1 / np.float64(np.float32(p)), 4 * EPS)


@pytest.mark.parametrize("p", [1e-26, 1e-37, 0.0])
def test_below_the_floor_a_slope_is_that_of_the_floor(p):
    for _, slope in (one_class(p), one_unit(1, p)):
        np.testing.assert_allclose(slope, -1 / FLOOR, 4 * EPS)


@pytest.mark.parametrize("p", [0.3, 1e-4, 1e-9, 1e-30])
def test_a_negative_label_keeps_the_digits_of_small_probabilities(p):
    """Its slope points up: towards a smaller probability."""
    p = float(np.float32(p))
    value, slope = one_unit(0, p)
    np.testing.assert_allclose(value, -np.log1p(-p), 4 * EPS)
    np.testing.assert_allclose(slope, 1 / (1 - p), 4 * EPS)
    value, slope = one_unit(0, p, focal_gamma=2.0)
    # A power is the exponential of a logarithm, whose digits are of its whole.
    digits = 4 * EPS * (2 + 2 * abs(np.log(p)))
    np.testing.assert_allclose(value, -(p**2) * np.log1p(-p), digits, 1e-37)
    expected = -2 * p * np.log1p(-p) + p**2 / (1 - p)
    np.testing.assert_allclose(slope, expected, digits, 1e-37)


def test_a_negative_label_at_a_rounded_1_has_the_slope_of_the_step_before():
    value, slope = one_unit(0, 1.0)
    np.testing.assert_allclose(value, -np.log(TINY), 4 * EPS)
    np.testing.assert_allclose(slope, 2.0**24, 4 * EPS)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_what_rounding_put_above_1_is_1(gamma):
    """A mean of ten sure models may be 1.0000001: its focal slope was 5.5e11."""
    for p in AROUND_ONE:
        rest = np.float64(max(1 - p, 0.0))
        slope = -1.0 if gamma == 0 else -((1 + gamma) * rest**gamma)
        for found in (one_class, lambda p, **how: one_unit(1, p, **how)):
            value, by_p = found(p, focal_gamma=gamma)
            np.testing.assert_allclose(value, rest ** (gamma + 1), 1e-6, 1e-37)
            # At 1 a power of 0 is one of the smallest number.
            np.testing.assert_allclose(by_p, slope, 1e-6, 2 * TINY ** min(gamma, 1.0))


@modes
@pytest.mark.parametrize("gamma", GAMMAS)
def test_slopes_are_finite_under_any_factor_up_to_a_loss_scale(gamma, mode):
    p = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1e-38], [1e-30, 1.0, 0.0]], "float32")
    options = {"focal_gamma": gamma, "class_weight": [20.0, 3.0, 1.0]}
    labels = np.array([0, 1, 2])
    found = solved(softmax(**options), labels, p, mode, LOSS_SCALE)
    assert np.isfinite(found[1]).all()
    assert (found[1][np.arange(3), labels] < 0).all()
    hot = np.eye(3, dtype="float32")
    found = solved(sigmoid(pos_weight=20.0, **options), hot, p, mode, LOSS_SCALE)
    assert np.isfinite(found[1]).all()
    assert (found[1][hot == 1][:2] < 0).all()
    assert (found[1] >= 0)[hot == 0].all()


@pytest.mark.parametrize("label", [0, 1])
def test_half_precision_has_slopes_that_its_gradient_holds(label):
    p = np.array([[1.0 - label]], "float16")  # as wrong as can be
    _, gradient = solved(sigmoid(), np.array([[label]]), p)
    assert gradient.dtype == "float16"
    expected = {1: -(2.0**14), 0: 2.0**11}[label]
    np.testing.assert_allclose(gradient, [[expected]], 1e-3)


# In training


@modes
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_step_from_a_saturated_layer_leaves_weights_as_they_were(activation, mode):
    """Its activation is flat there: 0 times a finite slope is 0, as with Keras."""
    kernel = np.array([[300.0, -300.0], [20.0, 0.0]], "float32")
    last = keras.layers.Dense(2, activation, use_bias=False)
    model = keras.Sequential([keras.Input((2,)), last])
    model.set_weights([kernel])
    options = {"class_weight": [10.0, 1.0], "reduction": "sum"}
    made = SoftmaxCrossEntropy if activation == "softmax" else SigmoidCrossEntropy
    model.compile(
        keras.optimizers.SGD(1e-3),
        loss=made(False, **options),
        loss_weights=[2.0**15],
        **{"eager": {"run_eagerly": True}, "graph": {"jit_compile": False}}.get(
            mode, {"jit_compile": True}
        ),
    )
    labels = np.array([1]) if activation == "softmax" else np.array([[0, 1]])
    loss = model.train_on_batch(np.array([[1.0, 0.0]], "float32"), labels)
    assert np.isfinite(loss)
    np.testing.assert_array_equal(model.get_weights()[0], kernel)


# What is no probability

BAD = [[5.0, -3.0, 2.0], [0.5, 0.6, -0.1], [1.2, 0.0, 0.0], [np.inf, 0.0, 0.0]]


@pytest.mark.parametrize("row", BAD)
@pytest.mark.parametrize("made", [softmax, sigmoid])
def test_what_is_no_probability_is_refused_with_its_range(made, row):
    p = np.array([[0.25, 0.5, 0.25], row], "float32")
    labels = np.eye(3)[[0, 1]] if made is sigmoid else np.array([0, 1])
    wrong = p[(p < 0) | (p > 1)]
    expected = (
        rf"(?s)`y_pred` must hold probabilities from 0 to 1.*Received: {len(wrong)} of "
        rf"6 scores.*from {wrong.min():g} to {wrong.max():g}.*LogitsHead\(units\)"
    )
    with pytest.raises(ValueError, match=expected):
        made()(labels, ops.convert_to_tensor(p))


@pytest.mark.skipif(not COMPILED, reason="torch compiles nothing")
@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize("made", [softmax, sigmoid])
def test_in_compiled_code_it_makes_the_loss_nan_and_teaches_nothing(made, mode):
    p = np.array([[0.25, 0.5, 0.25], [5.0, -3.0, 2.0]], "float32")
    labels = np.eye(3)[[0, 1]] if made is sigmoid else np.array([0, 1])
    value, gradient = solved(made(), labels, p, mode)
    assert np.isnan(value)
    assert np.isfinite(gradient).all()
    assert (gradient[0] != 0).any()
    np.testing.assert_array_equal(gradient[1], 0)


@modes
@pytest.mark.parametrize("made", [softmax, sigmoid])
def test_behind_a_weight_of_0_it_is_selected_out(made, mode):
    p = np.array([[0.25, 0.5, 0.25], [5.0, -3.0, 2.0]], "float32")
    labels = np.eye(3)[[0, 1]] if made is sigmoid else np.array([0, 1])
    weight = np.array([1.0, 0.0], "float32")
    value, gradient = solved(made(), labels, p, mode, weight=weight)
    alone = solved(made(), labels[:1], p[:1], mode)
    np.testing.assert_allclose(value, alone[0], EPS)
    np.testing.assert_array_equal(gradient, [alone[1][0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("dtype", "off"), [("float32", 1e-4), ("float16", 2e-3), ("bfloat16", 0.02)]
)
def test_what_rounding_may_do_is_let_pass(dtype, off):
    p = ops.cast(np.array([[1 + off, -off, 0.0]], "float32"), dtype)
    assert float(softmax()(np.array([0]), p)) == 0.0
    found = float(sigmoid()(np.array([[1.0, 0.0, 0.0]]), p))
    np.testing.assert_allclose(found, 0.0, atol=1e-30)


def test_a_score_that_is_nan_stays_one():
    p = np.array([[np.nan, 0.5, 0.5]], "float32")
    for loss, labels in ((softmax(), [0]), (sigmoid(), [[1, 0, 0]])):
        assert np.isnan(float(loss(np.array(labels), ops.convert_to_tensor(p))))


def test_probabilities_are_not_renormalised():
    """Keras divides by their sum: log(4) where here it is log(1 / 0.1414)."""
    p = ops.convert_to_tensor(np.array([[0.1414, 0.2121, 0.2121]], "float32"))
    found = float(softmax()(np.array([0]), p))
    np.testing.assert_allclose(found, -np.log(0.1414), 4 * EPS)
    theirs = keras.losses.sparse_categorical_crossentropy(np.array([0]), p)
    if BACKEND != "tensorflow":  # which looks for logits behind them
        np.testing.assert_allclose(ops.convert_to_numpy(theirs), np.log(4), 1e-4)
