"""Figures that people watch in training, from the logits that a loss reads anyway."""

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.links import at_least_float32
from keras_logits.maths.sigmoid import SigmoidFormula
from keras_logits.maths.softmax import SoftmaxFormula, softmax_in_parts

INVALID = "invalid_labels"
FIGURES = (
    "accuracy",
    "top_5_accuracy",
    "cross_entropy",
    "perplexity",
    "entropy",
    INVALID,
)
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
    if isinstance(formula, SoftmaxFormula):
        found = _of_classes(formula, labels, z)
    else:
        found = _of_units(labels, z)
    rows = [found[name] for name in (INVALID, *names)]
    return ops.stack([ops.cast(row, z.dtype) for row in rows], axis=-1)


def _of_classes(
    formula: SoftmaxFormula, labels: Tensor, z: Tensor
) -> dict[str, Tensor]:
    axis = formula.axis
    parts = softmax_in_parts(z, axis)
    given, valid, _ = formula.read(labels, z.dtype, None)
    if formula.ids:
        true = given
    else:
        true = ops.expand_dims(ops.cast(ops.argmax(given, axis=axis), "int32"), axis)
    own = ops.take_along_axis(parts.shifted, true, axis=axis)

    # The rank of the label among the classes, as argmax and top-k have it: no sort.
    def before(z: Tensor, ids: Tensor) -> Tensor:
        shifted = z - parts.shift
        first = ops.logical_and(ops.equal(shifted, own), ids < true)
        # Not by `>`, by which a label among logits that are NaN would come first.
        others = ops.logical_not(shifted <= own)
        return ops.cast(ops.logical_or(others, first), "int32")

    rank = formula.sum_over_classes(before, z, formula.class_ids(z))
    rank = ops.squeeze(rank, axis)

    def drops(z: Tensor, exp: Tensor) -> Tensor:
        return ops.where(exp > 0, exp * (z - parts.shift), ops.zeros_like(z))

    drop = formula.sum_over_classes(drops, z, parts.exp)
    entropy = parts.log_total - drop / parts.total
    if formula.ids:
        cross_entropy = parts.log_total - own
    else:
        terms = ops.where(given > 0, given * (parts.log_total - parts.shifted), 0.0)
        cross_entropy = ops.sum(terms, axis=axis, keepdims=True)
    cross_entropy = ops.squeeze(cross_entropy, axis)
    return {
        "accuracy": ops.equal(rank, 0),
        "top_5_accuracy": rank < 5,
        "cross_entropy": cross_entropy,
        "perplexity": cross_entropy,  # its exponential is taken of the mean
        "entropy": ops.squeeze(entropy, axis),
        INVALID: ops.logical_not(valid),
    }


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
