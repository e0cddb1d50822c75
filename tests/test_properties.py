"""What must be equal: two ways of saying the same to a loss, all options together.

Two ways that compute the same may differ by rounding: `Problem.allowance`.
"""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from strategies import (
    BY_WEIGHT,
    MEAN,
    MODE,
    MODES,
    REDUCTIONS,
    Solution,
    assert_same,
    by_rows,
    problems,
    repeatable,
)

pytestmark = pytest.mark.compiled_fast
SCALARS = REDUCTIONS[:-1]


def assert_alike(problem, other):
    """Two problems, row for row the same, have the same solution."""
    expected = problem.solve()
    assert_same(other.solve(), expected, problem.allowance(expected))


def assert_only_counts(problem, rows):
    """Of a flat problem, these rows are all that counts."""
    expected = problem.taking(rows).solve()
    gradient = np.zeros(problem.logits.shape)
    gradient[rows] = expected.gradient
    value = expected.value
    if problem.reduction is None:
        value = np.zeros(len(problem.logits))
        value[rows] = expected.value
    expected = Solution(value, gradient)
    assert_same(problem.solve(), expected, problem.allowance(expected))


# Labels and shapes


@repeatable()
@given(problems(activation="softmax", labels=("ids", "column")))
def test_class_ids_equal_one_hot_labels(problem):
    assert_alike(problem, problem.as_one_hot())


@repeatable()
@given(problems())
def test_an_axis_equals_moveaxis(problem):
    def moved(array):
        whole = array is not None and array.ndim == problem.logits.ndim
        return np.moveaxis(array, problem.axis, -1) if whole else array

    labels, logits = moved(problem.labels), moved(problem.logits)
    assert_alike(problem, problem.but(labels=labels, logits=logits, axis=-1))


@repeatable()
@given(problems())
def test_positions_of_any_rank_equal_rows(problem):
    assert_alike(problem, problem.flat())


@repeatable()
@given(problems(), st.randoms(use_true_random=False))
def test_permuting_rows_permutes_values_and_gradients(problem, random):
    problem = problem.flat()
    order = random.sample(range(len(problem.logits)), len(problem.logits))
    straight, mixed = problem.solve(), problem.taking(order).solve()
    value = straight.value[order] if problem.reduction is None else straight.value
    expected = Solution(value, straight.gradient[order])
    assert_same(mixed, expected, problem.taking(order).allowance(expected))


# Weights


@repeatable()
@given(problems(mask_rank=(1, 2)))
def test_a_mask_equals_dropping_the_rows(problem):
    problem = problem.flat()
    assume(problem.mask.any())
    assert_only_counts(problem, np.flatnonzero(problem.mask))


@repeatable()
@given(problems(weight_rank=(1, 2, 3), reduction=BY_WEIGHT))
def test_a_zero_weight_equals_dropping_the_rows(problem):
    problem = problem.flat()
    assume(problem.sample_weight.any())
    assert_only_counts(problem, np.flatnonzero(problem.sample_weight))


@repeatable()
@given(
    problems(
        activation="softmax",
        ignore_index=("a class", "no class"),
        class_weight=(None, "dict"),
    )
)
def test_an_ignored_label_equals_a_mask(problem):
    ignored = ~problem.known.any(-1)
    mask = problem.spread(problem.mask).astype(bool) & ~ignored
    masked = problem.but(mask=mask.reshape(problem.positions))
    assert_alike(problem, masked.opting(ignore_index=None))


@repeatable()
@given(problems(weight_rank=(1, 2, 3), reduction=(MEAN, "sum")))
def test_a_weight_of_two_equals_the_row_twice(problem):
    problem = problem.flat()
    times = (2 * problem.sample_weight).astype(int)
    assume(times.any())
    rows = np.repeat(np.arange(len(times)), times)
    repeated = problem.but(sample_weight=np.ones_like(times)).taking(rows).solve()
    gradient = np.zeros(problem.logits.shape)
    np.add.at(gradient, rows, repeated.gradient)

    problem = problem.but(sample_weight=times)
    expected = Solution(repeated.value, gradient)
    assert_same(problem.solve(), expected, problem.allowance(expected))


@repeatable()
@given(problems(weight_rank=0, class_weight=None, pos_weight=None, mask_rank=0))
def test_weights_of_one_equal_none(problem):
    ones = np.ones(problem.positions, "float32")
    other = problem.but(sample_weight=ones, mask=ones.astype(bool))
    other = other.opting(class_weight=[1.0] * problem.classes)
    if problem.activation == "sigmoid":
        other = other.opting(pos_weight=1.0)
    assert_alike(problem, other)


@repeatable()
@given(problems(reduction=SCALARS))
def test_a_reduction_equals_the_values_reduced_by_hand(problem):
    assume(problem.denominator > 0)
    share = np.full(len(problem.rows), 1.0 / problem.denominator)
    if problem.activation == "sigmoid" and problem.reduction == MEAN:
        share = share * problem.mass  # a value is the mean over units
    upstream = share.reshape(problem.positions)
    each = problem.but(reduction=None, upstream=upstream).solve()
    expected = Solution(np.sum(share * each.value), each.gradient)
    assert_same(problem.solve(), expected, problem.allowance(expected))


@repeatable()
@given(
    problems(activation="sigmoid", pos_weight=(None, "number"), reduction=(MEAN, "sum"))
)
def test_independent_units_equal_positions_of_one_unit(problem):
    weights = np.where(problem.known, problem.weights[:, None] * problem.per_class, 0.0)
    if problem.reduction == "sum":
        weights = weights / np.where(problem.mass, problem.mass, 1.0)[:, None]
    single = problem.opting(class_weight=None, ignore_index=None).but(
        labels=by_rows(problem.labels, problem.axis).reshape(-1, 1),
        logits=problem.rows.reshape(-1, 1),
        axis=-1,
        upstream=None,
        sample_weight=weights.ravel(),
        mask=None,
    )
    found = single.solve()
    found = Solution(found.value, found.gradient.reshape(problem.rows.shape))
    expected = problem.solve()
    assert_same(found, expected, problem.allowance(expected))


@repeatable()
@given(problems(weight_rank=(1, 2, 3)), st.sampled_from([99, -7, np.nan]))
def test_what_stands_behind_a_weight_of_zero_changes_nothing(problem, bad):
    expected = problem.solve()
    problem = problem.flat()
    padding = problem.weights == 0
    # An ignored label has to stay: without it the position would be counted again.
    padded_labels = padding & problem.known.any(-1)
    if np.isnan(bad) or problem.labels.dtype == bool:
        labels = problem.labels.astype("float32")
    else:
        labels = problem.labels.copy()
    labels[padded_labels] = bad
    hidden = padding[:, None] | ~problem.known
    logits = np.where(hidden, np.float32("nan"), problem.logits)
    padded = problem.but(labels=labels, logits=logits)
    assert_same(padded.solve(), expected, problem.allowance(expected))


# Options


@repeatable()
@given(
    problems(label_smoothing=0.0, focal_gamma=0.0, z_loss=0.0, pos_weight=None),
)
def test_options_of_zero_equal_the_plain_loss(problem):
    expected = textbook(problem)
    assert_same(problem.solve(), expected, problem.allowance(expected))


@np.errstate(invalid="ignore")
def textbook(problem):
    """By the logarithm of a probability, in float64."""
    z = problem.rows.astype("float64")
    if problem.activation == "sigmoid":
        y = by_rows(problem.labels, problem.axis) * 1.0
        y = np.where(problem.known, y, 0.0)
        yes, no = np.logaddexp(0, -z), np.logaddexp(0, z)
        terms = np.where(y > 0, y * yes, 0.0) + np.where(y < 1, (1 - y) * no, 0.0)
        terms = np.where(problem.known, terms, 0.0) * problem.per_class
        terms = np.where(problem.per_class > 0, terms, 0.0)
        slopes = (np.exp(-yes) - y) * problem.known * problem.per_class
    else:
        y = by_rows(problem.as_one_hot().labels, problem.axis) * problem.per_class
        closed = np.isneginf(z)
        log_p = np.where(closed, z, z - np.logaddexp.reduce(z, -1, keepdims=True))
        terms = np.where(y > 0, -y * log_p, 0.0)
        slopes = np.exp(log_p) * y.sum(-1, keepdims=True) - np.where(closed, 0.0, y)
    weights = problem.shares
    values = np.where(weights > 0, weights * terms.sum(-1), 0.0)
    gradient = weights[:, None] * slopes
    if problem.reduction is None:
        return Solution(values, problem.upstream.ravel()[:, None] * gradient)
    return Solution(np.sum(values), gradient)


@repeatable()
@given(problems(label_smoothing=0.1))
def test_a_loss_is_linear_in_the_smoothing(problem):
    assert_linear(problem, "label_smoothing")


@repeatable()
@given(problems(activation="softmax", z_loss=1e-3))
def test_a_loss_is_linear_in_the_z_loss(problem):
    assert_linear(problem, "z_loss")


def assert_linear(problem, option):
    """With option x a loss is that with 0, plus x times the difference of that with 1.

    At 0 the option is absent, and other code runs.
    """
    x = problem.options[option]
    without, whole = problem.opting(**{option: 0.0}), problem.opting(**{option: 1.0})
    low, high = without.solve(), whole.solve()
    expected = low.map(lambda a, b: (1 - x) * a + x * b, high)
    bound = problem.allowance(expected).map(
        lambda here, a, b: here + (1 - x) * a + x * b,
        without.allowance(low),
        whole.allowance(high),
    )
    assert_same(problem.solve(), expected, bound)


@repeatable()
@given(problems(focal_gamma=1e-3))
def test_a_focal_loss_begins_at_the_plain_loss(problem):
    """Its derivative by gamma, `(1 - p)^gamma log(1 - p) log p`, is below log(2)^2."""
    plain = problem.opting(focal_gamma=0.0).solve()
    bound = problem.allowance(plain)
    rise = 1e-3 * np.log(2) ** 2 * problem.shares * problem.heaviest
    if problem.activation == "sigmoid":
        rise = rise * problem.classes
    value = bound.value + (rise if problem.reduction is None else rise.sum())
    assert_same(
        Solution(problem.solve().value, plain.gradient),
        plain,
        Solution(value, bound.gradient),
    )


# Two losses, and three ways to run each


@repeatable()
@given(
    problems(
        activation="sigmoid",
        classes=1,
        hidden=None,
        class_weight=None,
        pos_weight=(None, "number"),
        reduction=("sum", None),
    )
)
def test_a_sigmoid_of_one_unit_equals_a_softmax_over_that_and_zero(problem):
    problem = problem.flat()
    known = problem.known[:, 0]
    yes = np.where(known[:, None], problem.labels, 0).astype("float32")
    pos_weight = problem.options.pop("pos_weight")
    softmax = problem.but(
        activation="softmax",
        labels=np.concatenate([yes, 1 - yes], -1),
        logits=np.concatenate([problem.logits, 0 * problem.logits], -1),
        mask=problem.mask & known,
    ).opting(
        class_weight=None if pos_weight is None else [pos_weight, 1.0],
        ignore_index=None,
    )
    expected = softmax.solve()
    expected = Solution(expected.value, expected.gradient[:, :1])
    problem = problem.opting(pos_weight=pos_weight)
    assert_same(problem.solve(), expected, softmax.allowance(expected))


@pytest.mark.skipif(len(MODES) == 1, reason="torch is run eagerly")
@repeatable(4)
@given(problems())
def test_eager_equals_graph_equals_jit(problem):
    expected = problem.solve(MODE)
    for mode in set(MODES) - {MODE}:
        assert_same(problem.solve(mode), expected, problem.allowance(expected))
