"""A weight for each label of each row in a loss of independent units."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import LogitsHead, SigmoidCrossEntropy, SoftmaxCrossEntropy
from strategies import MODES, REDUCTIONS, derived

pytestmark = pytest.mark.compiled_fast
rng = np.random.default_rng(0)
Z = rng.normal(size=(4, 5, 3)).astype("float32")
Y = (rng.random(Z.shape) < 0.5).astype("float32")
Y[rng.random(Z.shape) < 0.2] = -1.0  # unknown
W = rng.choice([0.0, 0.5, 1.0, 2.0], Z.shape).astype("float32")
W[1] = 0.0
MASK = rng.random(Z.shape[:2]) < 0.7
CLASS_WEIGHT, POS_WEIGHT = [0.5, 1.0, 3.0], 2.0
modes = pytest.mark.parametrize("mode", MODES)


def by_hand(reduction, mask=None):
    z, w = Z.astype("float64"), W.astype("float64")
    known = Y >= 0
    losses = np.where(Y == 1, POS_WEIGHT * np.logaddexp(0, -z), np.logaddexp(0, z))
    counted = known.any(-1) & (True if mask is None else mask)
    c = known * np.array(CLASS_WEIGHT)
    w = w * counted[..., None]
    if reduction == "mean_with_sample_weight":
        return (w * c * losses).sum() / (w * c).sum()
    share = c.sum(-1)
    values = (w * c * losses).sum(-1) / np.where(share, share, 1.0)
    if reduction == "sum":
        return values.sum()
    return values if reduction is None else values.sum() / counted.sum()


def loss_of(reduction="mean_with_sample_weight", **options):
    return SigmoidCrossEntropy(
        True,
        class_weight=CLASS_WEIGHT,
        pos_weight=POS_WEIGHT,
        ignore_index=-1,
        reduction=reduction,
        **options,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_each_label_is_weighed_by_its_own_weight(reduction):
    found = ops.convert_to_numpy(loss_of(reduction)(Y, Z, W))
    np.testing.assert_allclose(found, by_hand(reduction), 1e-5, 1e-7)


@pytest.mark.parametrize("axis", [0, 1])
def test_units_may_be_on_any_axis(axis):
    moved = [np.moveaxis(array, -1, axis) for array in (Y, Z, W)]
    found = float(loss_of(axis=axis)(*moved))
    np.testing.assert_allclose(found, by_hand("mean_with_sample_weight"), 1e-5)


def test_rows_of_units_are_weighed_too():
    found = float(loss_of()(Y[0], Z[0], W[0]))
    repeated = np.broadcast_to(W[0], Z.shape)
    same = [np.broadcast_to(array[0], Z.shape) for array in (Y, Z)]
    np.testing.assert_allclose(float(loss_of()(*same, repeated)), found, 1e-5)


@modes
@pytest.mark.parametrize("reduction", REDUCTIONS[:-1])
def test_the_gradient_is_that_of_the_weighted_loss(reduction, mode):
    loss = loss_of(reduction)

    def value_and_total(z):
        value = loss(Y, z, W)
        return value, 3.0 * value

    value, gradient = derived(value_and_total, Z, mode)
    np.testing.assert_allclose(value, by_hand(reduction), 1e-5)
    s, known = 1 / (1 + np.exp(-Z.astype("float64"))), Y >= 0
    slope = np.where(Y == 1, -POS_WEIGHT * (1 - s), s)
    c = known * np.array(CLASS_WEIGHT)
    if reduction == "mean_with_sample_weight":
        share = W * c / (W * c).sum()
    else:
        mass = c.sum(-1, keepdims=True)
        share = W * c / np.where(mass, mass, 1.0)
        share = share / (1 if reduction == "sum" else known.any(-1).sum())
    np.testing.assert_allclose(gradient, 3.0 * share * slope, 1e-4, 1e-8)


@modes
def test_the_derivative_by_a_weight_is_the_share_of_its_label(mode):
    loss, w = loss_of("sum"), np.where(W == 0, 1.5, W).astype("float32")

    def value_and_total(w):
        value = loss(Y, Z, w)
        return value, value

    _, gradient = derived(value_and_total, w, mode)
    z, known = Z.astype("float64"), Y >= 0
    losses = np.where(Y == 1, POS_WEIGHT * np.logaddexp(0, -z), np.logaddexp(0, z))
    c = known * np.array(CLASS_WEIGHT)
    mass = c.sum(-1, keepdims=True)
    expected = c * losses / np.where(mass, mass, 1.0)
    np.testing.assert_allclose(gradient, expected, 1e-5, 1e-7)


@modes
def test_what_a_weight_of_0_hides_is_selected_out(mode):
    z, y, w = Z.copy(), Y.copy(), np.where(MASK[..., None], W, 0.0)
    z[w == 0], y[w == 0] = np.nan, 7.0

    def value_and_total(z):
        value = loss_of()(y, z, w.astype("float32"))
        return value, value

    value, gradient = derived(value_and_total, z, mode)
    np.testing.assert_array_equal(gradient[w == 0], 0.0)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value, by_hand("mean_with_sample_weight", MASK), 1e-5)


def test_a_mask_hides_bad_weights_of_units():
    masked = np.where(MASK[..., None], W, np.nan).astype("float32")
    masked[~MASK, 0] = -1.0
    loss = loss_of()
    y_pred = ops.convert_to_tensor(Z)
    from keras_logits._keras_private import set_keras_mask

    set_keras_mask(y_pred, ops.convert_to_tensor(MASK))
    found = float(loss(Y, y_pred, masked))
    np.testing.assert_allclose(found, by_hand("mean_with_sample_weight", MASK), 1e-5)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (
            -2.0,
            r"(?s)must not be negative.*Received: 1 negative weights, the lowest -2",
        ),
        (np.nan, r"(?s)must not be NaN.*Received: 1 NaN weights"),
    ],
)
def test_bad_weights_of_units_are_refused(bad, expected):
    w = W.copy()
    w[0, 0, np.flatnonzero(Y[0, 0] >= 0)[0]] = bad
    with pytest.raises(ValueError, match=expected):
        loss_of()(Y, Z, w)


@pytest.mark.skipif(MODES == ("eager",), reason="torch compiles nothing")
@pytest.mark.parametrize("bad", [-2.0, np.nan])
def test_in_compiled_code_bad_ones_make_the_loss_nan_and_teach_nothing(bad):
    w = np.ones_like(W)
    w[0, 0] = bad

    def value_and_total(z):
        value = SigmoidCrossEntropy(True)(np.abs(Y), z, w)
        return value, value

    value, gradient = derived(value_and_total, Z, "jit")
    assert np.isnan(value)
    np.testing.assert_array_equal(gradient, 0.0)


def test_negative_weights_of_units_are_let_pass_under_a_sum():
    loss = SigmoidCrossEntropy(True, reduction="sum")
    found = float(loss(np.abs(Y), Z, -W))
    np.testing.assert_allclose(found, -float(loss(np.abs(Y), Z, W)), 1e-6)


def test_all_weights_0_are_a_loss_of_0():
    assert float(loss_of()(Y, Z, 0 * W)) == 0.0


@modes
def test_reports_are_weighted_by_them(mode):
    how = {"eager": {"run_eagerly": True}}.get(mode, {"jit_compile": mode == "jit"})
    head = LogitsHead(3, "sigmoid", reports=["accuracy", "cross_entropy"], name="head")
    head_first = keras.Sequential([keras.Input((3,)), head])
    head.kernel.assign(np.eye(3))
    loss = SigmoidCrossEntropy(class_weight=CLASS_WEIGHT, ignore_index=-1)
    head_first.compile(keras.optimizers.SGD(0.0), loss=loss, **how)
    z, y, w = Z[0], Y[0], W[0]
    found = head_first.evaluate(z, y, sample_weight=w, verbose=0, return_dict=True)
    w = w * (y >= 0)
    right = (z > 0) == (y > 0.5)
    np.testing.assert_allclose(
        found["head_accuracy"], (w * right).sum() / w.sum(), 1e-5
    )
    losses = np.where(y == 1, np.logaddexp(0, -z), np.logaddexp(0, z))
    expected = (w * losses).sum() / w.sum()
    np.testing.assert_allclose(found["head_cross_entropy"], expected, 1e-5)
    c = np.array(CLASS_WEIGHT)
    np.testing.assert_allclose(
        found["loss"], (w * c * losses).sum() / (w * c).sum(), 1e-5
    )


def test_a_softmax_says_what_weighs_its_classes():
    expected = (
        r"`sample_weight` must have the shape of the losses.*\n"
        r"Received: sample_weight of shape \(5, 3\) and losses of shape \(5,\)\n"
        r"Fix: sample_weight of shape \(5,\).*\n"
        r"To weigh classes: class_weight=.*\n"
        "A sigmoid also takes one weight per label"
    )
    with pytest.raises(ValueError, match=expected):
        SoftmaxCrossEntropy(True)(np.zeros(5, "int32"), Z[0], W[0])
