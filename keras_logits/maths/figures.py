"""Figures that people watch in training, from the logits that a loss reads anyway."""

from typing import get_args

from keras import ops

from keras_logits._typing import Report, Tensor
from keras_logits.maths.alarms import nan_where
from keras_logits.maths.links import at_least_float32
from keras_logits.maths.sigmoid import SigmoidFormula
from keras_logits.maths.softmax import SoftmaxFormula, half_surprise
from keras_logits.maths.sums import Sums, finite, sum_over_classes
from keras_logits.maths.weights import nonzero

FIRST = 5
"""Classes that a label has to be among for `top_5_accuracy`."""

INVALID = "invalid_labels"
FIGURES: tuple[str, ...] = get_args(Report)
OF_UNITS = ("accuracy", "cross_entropy", "entropy", INVALID)


def figures(
    formula: SoftmaxFormula | SigmoidFormula,
    names: tuple[str, ...],
    labels: Tensor,
    logits: Tensor,
) -> Tensor:
    """Whether each label is invalid, and the named figures: `[..., 1 + names]`.

    One row for each position of a softmax, for each unit of a sigmoid. What stands in
    the row of an invalid label has no meaning, but is finite.
    """
    z = ops.stop_gradient(at_least_float32(logits))
    if not isinstance(formula, SoftmaxFormula):
        return _rows(names, _of_units(labels, z), z.dtype)
    formula = formula.sized(z)
    true = formula.true_classes(labels)
    own = ops.take_along_axis(z, true, axis=formula.axis)
    ids = formula.class_ids(z)
    rank = sum_over_classes(
        lambda z, ids: come_before(z, ids, own, true), formula.axis, z, ids
    )
    sums = formula.sums(z, None, entropy=True)
    return of_classes(formula, names, labels, z, own, sums, rank)


def of_classes(
    formula: SoftmaxFormula,
    names: tuple[str, ...],
    labels: Tensor,
    z: Tensor,
    own: Tensor,
    sums: Sums,
    rank: Tensor,
) -> Tensor:
    """The figures of a softmax, from its sums, and the label's own logit and rank.

    Of class ids nothing is read from the logits themselves.
    """
    axis = formula.axis
    given, valid, _ = formula.read(labels, z.dtype, None)
    total = nonzero(sums["total"])
    log_total, shift = ops.log(total), finite(sums["highest"])
    if formula.ids:
        cross_entropy = log_total - (own - shift)
    else:
        halves = half_surprise(z, shift, log_total, ops.logical_not(given > 0))
        cross_entropy = 2.0 * ops.sum(given * halves, axis=axis, keepdims=True)
    found = {
        "accuracy": ops.equal(rank, 0),
        "top_5_accuracy": rank < FIRST,
        "cross_entropy": cross_entropy,
        "perplexity": cross_entropy,  # its exponential is taken of the mean
        "entropy": log_total - sums["drop"] / total,
    }
    found = {name: ops.squeeze(rows, axis) for name, rows in found.items()}
    return _rows(names, {**found, INVALID: ops.logical_not(valid)}, z.dtype)


def come_before(z: Tensor, ids: Tensor, own: Tensor, true: Tensor) -> Tensor:
    """1 for classes before the true one, as argmax and top-k have it: no sort.

    Chosen among floats: truth values that are turned into floats do not go to the fast
    library that XLA has for sums.
    """
    # Infinite logits are no numbers to compare: nothing is right about them.
    own = own + nan_where(ops.equal(own, float("inf")), own.dtype)
    one, zero = ops.ones((), dtype=z.dtype), ops.zeros((), dtype=z.dtype)
    # By `<` and `<=`: a label among logits that are NaN would come first by `>`.
    at_least, more = ops.where(z < own, zero, one), ops.where(z <= own, zero, one)
    before = ops.where(ids < true, at_least, more)
    # Computed by itself, the label's own logit may differ in its last digit.
    return ops.where(ops.equal(ids, true), zero, before)


def _rows(names: tuple[str, ...], found: dict[str, Tensor], dtype: str) -> Tensor:
    rows = [ops.cast(found[name], dtype) for name in (INVALID, *names)]
    return ops.stack(rows, axis=-1)


def _of_units(labels: Tensor, z: Tensor) -> dict[str, Tensor]:
    y = ops.cast(labels, z.dtype)
    valid = ops.logical_and(y >= 0, y <= 1)
    y = ops.where(valid, y, ops.zeros_like(y))
    yes, _, no, _ = SigmoidFormula().two_sides(z)
    right = ops.where(y > 0.5, z > 0, z <= 0)  # what is NaN is neither
    return {
        "accuracy": right,
        "cross_entropy": _expected(y, 1 - y, yes, no),
        "entropy": _expected(ops.sigmoid(z), ops.sigmoid(-z), yes, no),
        INVALID: ops.logical_not(valid),
    }


def _expected(p: Tensor, q: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`p * yes + q * no`, where what has no probability may be infinite."""
    zeros = ops.zeros_like(p)
    return ops.where(p > 0, p * yes, zeros) + ops.where(q > 0, q * no, zeros)
