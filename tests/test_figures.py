"""The figures behind the reports, against NumPy in float64 and against sorting."""

import math

import numpy as np
import pytest
from keras import ops

from keras_logits.kernels import _compiled_figures
from keras_logits.maths.figures import FIGURES, INVALID, OF_UNITS
from keras_logits.maths.sigmoid import SigmoidFormula
from keras_logits.maths.softmax import SoftmaxFormula
from keras_logits.maths.sums import BLOCK

EPS = np.finfo("float32").eps
INF = float("inf")
CLASSES = 9
draw = np.random.default_rng(7)
IDS = draw.integers(0, CLASSES, 40)


def of_classes(labels, logits, axis=-1, dtype="float32"):
    logits = np.asarray(logits, dtype)
    formula = SoftmaxFormula(
        ids=np.ndim(labels) < logits.ndim, classes=logits.shape[axis], axis=axis
    )
    return by_name(formula, FIGURES, labels, logits)


def of_units(labels, logits):
    return by_name(SigmoidFormula(), OF_UNITS, labels, np.asarray(logits, "float32"))


def by_name(formula, names, labels, logits):
    labels, logits = ops.convert_to_tensor(labels), ops.convert_to_tensor(logits)
    found = _compiled_figures(formula, names)(labels, logits)
    assert found.shape[-1] == 1 + len(names)
    columns = np.moveaxis(ops.convert_to_numpy(found), -1, 0)
    named = dict(zip(names, columns[1:], strict=True))
    np.testing.assert_array_equal(columns[0], named[INVALID])
    return named


def drawn(scale, masked=False):
    """Logits, some of them -inf, but never that of the label."""
    z = scale * draw.normal(size=(len(IDS), CLASSES))
    hidden = draw.random(z.shape) < 0.3
    hidden[np.arange(len(IDS)), IDS] = False
    return np.where(hidden & masked, -INF, z).astype("float32")


def log_softmax(z):
    z = np.asarray(z, "float64")
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def entropy_of(p):
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), -1)


def ranks_by_sorting(ids, z):
    """The place of each label among the classes, the first of equals first."""
    order = np.argsort(-z, axis=-1, kind="stable")
    return np.argmax(order == ids[:, None], axis=-1)


# One class among many


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_figures_are_those_of_float64(scale, masked):
    z = drawn(scale, masked)
    found, log_p = of_classes(IDS, z), log_softmax(z)
    rank = ranks_by_sorting(IDS, z)
    assert len(set(rank)) > 3
    np.testing.assert_array_equal(found["accuracy"], z.argmax(-1) == IDS)
    np.testing.assert_array_equal(found["accuracy"], rank == 0)
    np.testing.assert_array_equal(found["top_5_accuracy"], rank < 5)
    np.testing.assert_allclose(
        found["cross_entropy"], -log_p[np.arange(len(IDS)), IDS], 16 * EPS, 16 * EPS
    )
    np.testing.assert_array_equal(found["perplexity"], found["cross_entropy"])
    expected = entropy_of(np.exp(log_p))
    np.testing.assert_allclose(found["entropy"], expected, 16 * EPS, 16 * EPS)
    np.testing.assert_array_equal(found[INVALID], 0)


def test_figures_of_more_classes_than_are_summed_at_a_time():
    z = draw.normal(0, 30, (len(IDS), 2 * BLOCK + 3)).astype("float32")
    z[::2, 5] = -INF
    ids = np.argsort(-z, axis=-1)[np.arange(len(IDS)), np.arange(len(IDS)) % 8]
    found, p = of_classes(ids, z), np.exp(log_softmax(z))
    rank = ranks_by_sorting(ids, z)
    np.testing.assert_array_equal(found["accuracy"], rank == 0)
    np.testing.assert_array_equal(found["top_5_accuracy"], rank < 5)
    np.testing.assert_allclose(found["entropy"], entropy_of(p), 16 * EPS, 16 * EPS)


def test_equal_logits_rank_as_argmax_and_a_stable_sort_have_it():
    z = draw.integers(0, 3, (len(IDS), CLASSES)).astype("float32")
    found, rank = of_classes(IDS, z), ranks_by_sorting(IDS, z)
    np.testing.assert_array_equal(found["accuracy"], z.argmax(-1) == IDS)
    np.testing.assert_array_equal(found["top_5_accuracy"], rank < 5)
    tied = (z == z[np.arange(len(IDS)), IDS, None]).sum(-1) > 1
    assert tied.sum() > 10
    assert len(set(found["top_5_accuracy"][tied])) == 2


def test_logits_that_are_all_alike_name_the_first_class():
    found = of_classes(np.arange(CLASSES), np.zeros((CLASSES, CLASSES)))
    np.testing.assert_array_equal(found["accuracy"], np.arange(CLASSES) == 0)
    np.testing.assert_array_equal(found["top_5_accuracy"], np.arange(CLASSES) < 5)
    np.testing.assert_allclose(found["entropy"], math.log(CLASSES), 4 * EPS)


def test_fewer_than_six_classes_are_all_among_the_first_five():
    found = of_classes(np.arange(3), -10.0 * np.eye(3))
    np.testing.assert_array_equal(found["top_5_accuracy"], 1)
    np.testing.assert_array_equal(found["accuracy"], 0)


def test_a_label_whose_logit_is_minus_infinity_costs_infinitely_much():
    found = of_classes([1, 0], [[0.0, -INF, 0.0], [0.0, -INF, -INF]])
    np.testing.assert_allclose(found["cross_entropy"], [INF, 0.0])
    np.testing.assert_allclose(found["entropy"], [math.log(2), 0.0], 4 * EPS)
    np.testing.assert_array_equal(found["accuracy"], [0, 1])


def test_logits_of_which_one_is_far_above_the_others_have_no_entropy():
    found = of_classes([0, 1], [[1e4, 0.0, -1e4], [1e4, 0.0, -1e4]])
    np.testing.assert_array_equal(found["entropy"], 0)
    np.testing.assert_array_equal(found["cross_entropy"], [0, 1e4])


@pytest.mark.parametrize("broken", [np.nan, INF])
def test_logits_that_are_not_numbers_are_right_about_nothing(broken):
    z = np.zeros((3, CLASSES))
    z[0], z[1, 0], z[2, 2] = broken, np.nan, broken
    found = of_classes([0, 0, 0], z)
    np.testing.assert_array_equal(found["accuracy"], 0)
    np.testing.assert_array_equal(found["top_5_accuracy"][:2], 0)
    assert np.isnan(found["cross_entropy"][:2]).all()


def test_the_classes_may_be_on_any_axis():
    z, ids = drawn(1.0).reshape(5, 8, CLASSES), IDS.reshape(5, 8)
    expected = of_classes(ids, z)
    found = of_classes(ids, np.moveaxis(z, -1, 1), axis=1)
    for name in FIGURES:
        np.testing.assert_allclose(found[name], expected[name], 4 * EPS, 4 * EPS)


def test_half_precision_is_computed_in_float32():
    half = drawn(3.0).astype("float16")
    found = of_classes(IDS, half, dtype="float16")
    assert found["entropy"].dtype == np.float32
    for name, figure in of_classes(IDS, half).items():
        np.testing.assert_array_equal(found[name], figure)


# Labels


def test_one_hot_labels_have_the_figures_of_class_ids():
    z = drawn(3.0, masked=True)
    found = of_classes(np.eye(CLASSES, dtype="float32")[IDS], z)
    for name, figure in of_classes(IDS, z).items():
        np.testing.assert_allclose(found[name], figure, 4 * EPS, 4 * EPS)


def test_distributions_have_their_cross_entropy_and_their_likeliest_class():
    z = drawn(3.0)
    labels = draw.dirichlet(np.ones(CLASSES), len(IDS)).astype("float32")
    found, log_p = of_classes(labels, z), log_softmax(z)
    true = labels.argmax(-1)
    np.testing.assert_array_equal(found["accuracy"], z.argmax(-1) == true)
    np.testing.assert_array_equal(
        found["top_5_accuracy"], ranks_by_sorting(true, z) < 5
    )
    expected = -np.sum(labels * log_p, -1)
    np.testing.assert_allclose(found["cross_entropy"], expected, 16 * EPS)
    expected = entropy_of(np.exp(log_p))
    np.testing.assert_allclose(found["entropy"], expected, 16 * EPS, 16 * EPS)


def test_a_masked_class_that_a_distribution_leaves_out_costs_nothing():
    labels = [[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]]
    found = of_classes(np.float32(labels), [[-INF, 1.0, 1.0], [-INF, 1.0, 1.0]])
    np.testing.assert_allclose(found["cross_entropy"], [math.log(2), INF], 4 * EPS)


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_class_ids_out_of_range_are_invalid_and_the_rest_is_finite(dtype):
    ids = np.array([-1, 0, CLASSES - 1, CLASSES, -100], dtype)
    found = of_classes(ids, drawn(1.0)[:5])
    np.testing.assert_array_equal(found[INVALID], [1, 0, 0, 1, 1])
    assert all(np.isfinite(figure).all() for figure in found.values())


def test_class_ids_that_are_no_whole_numbers_are_invalid():
    found = of_classes(np.float32([0.5, 1.0, np.nan, INF]), drawn(1.0)[:4])
    np.testing.assert_array_equal(found[INVALID], [1, 0, 1, 1])


@pytest.mark.parametrize("bad", [-0.1, np.nan, INF])
def test_distributions_that_are_none_are_invalid_and_the_rest_is_finite(bad):
    labels = np.full((2, 3), 1 / 3, "float32")
    labels[1, 2] = bad
    found = of_classes(labels, draw.normal(size=(2, 3)))
    np.testing.assert_array_equal(found[INVALID], [0, 1])
    assert all(np.isfinite(figure).all() for figure in found.values())


# Independent units


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_figures_of_units_are_those_of_float64(scale):
    z = (scale * draw.normal(size=(20, 4))).astype("float32")
    labels = draw.integers(0, 2, z.shape).astype("float32")
    labels[:5] = draw.random((5, 4))
    found, wide = of_units(labels, z), z.astype("float64")
    yes, no = np.logaddexp(0, -wide), np.logaddexp(0, wide)
    s = np.exp(-yes)
    np.testing.assert_array_equal(found["accuracy"], (z > 0) == (labels > 0.5))
    expected = labels * yes + (1 - labels.astype("float64")) * no
    np.testing.assert_allclose(found["cross_entropy"], expected, 16 * EPS, 1e-30)
    expected = s * yes + np.exp(-no) * no
    np.testing.assert_allclose(found["entropy"], expected, 64 * EPS, 1e-7)
    np.testing.assert_array_equal(found[INVALID], 0)


def test_a_unit_whose_logit_is_infinite_is_certain():
    found = of_units(np.float32([1, 0, 1, 0]), [INF, -INF, -INF, INF])
    np.testing.assert_array_equal(found["cross_entropy"], [0, 0, INF, INF])
    np.testing.assert_array_equal(found["entropy"], 0)
    np.testing.assert_array_equal(found["accuracy"], [1, 1, 0, 0])


def test_a_unit_whose_logit_is_no_number_is_never_right():
    found = of_units(np.float32([0, 1]), [np.nan, np.nan])
    np.testing.assert_array_equal(found["accuracy"], 0)


def test_labels_of_units_outside_of_0_and_1_are_invalid_and_the_rest_is_finite():
    labels = np.float32([-1.0, 0.0, 0.3, 1.0, 2.0, np.nan])
    found = of_units(labels, draw.normal(size=6))
    np.testing.assert_array_equal(found[INVALID], [1, 0, 0, 0, 1, 1])
    assert all(np.isfinite(figure).all() for figure in found.values())


def test_whole_numbers_are_labels_of_units_too():
    found = of_units([0, 1, 1], [-1.0, 2.0, -3.0])
    np.testing.assert_array_equal(found["accuracy"], [1, 1, 0])
