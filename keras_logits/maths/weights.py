"""Weights: from sample weights, masks and a reduction to one weight per position.

A mean is a weighted sum whose weights sum to one, so that what computes a loss only
ever sees a weighted sum.
"""

from collections.abc import Callable
from typing import get_args

from keras import ops

from keras_logits._typing import ClassWeight, Reduction, Tensor
from keras_logits.maths.shapes import static_shape

REDUCTIONS = (*get_args(Reduction), None)


def check_reduction(reduction: object) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"`reduction` must be one of {REDUCTIONS}. Received: "
            f"reduction={reduction!r}. For sum(weights * losses) / sum(weights) write "
            "reduction='mean_with_sample_weight'."
        )


def check_class_weight(class_weight: ClassWeight | None, name: str) -> None:
    if class_weight is None:
        return
    values = class_weight.values() if isinstance(class_weight, dict) else class_weight
    if not all(float(value) >= 0 for value in values):
        raise ValueError(
            f"`{name}` must not be negative. Received: {name}={class_weight!r}. "
            "Write 0.0 for a class that is not to count."
        )


def class_weights(class_weight: ClassWeight, classes: int, name: str) -> list[float]:
    """One weight for each class; a class that a dict does not name weighs 1."""
    if isinstance(class_weight, dict):
        unknown = [k for k in class_weight if not 0 <= k < classes]
        if unknown:
            raise ValueError(
                f"`{name}` names classes that the logits do not have. Received: "
                f"{name} for classes {unknown} and logits of {classes} classes. "
                f"Write keys from 0 to {classes - 1}."
            )
        return [float(class_weight.get(k, 1.0)) for k in range(classes)]
    if len(class_weight) != classes:
        raise ValueError(
            f"`{name}` must have one value for each class. Received: {name} of length "
            f"{len(class_weight)} and logits of {classes} classes. Write {classes} "
            "values, or a dict {class: weight} for some of them."
        )
    return [float(value) for value in class_weight]


def aligned(weights: Tensor, positions: Tensor, name: str) -> Tensor:
    """Weights with the rank of the positions: aligned from the left, never widened.

    (B,) on positions (B, T) weighs rows, whatever T is.
    """
    weights = ops.convert_to_tensor(weights)
    shape, expected = static_shape(weights), static_shape(positions)
    if expected is None or shape is None:
        return ops.reshape(weights, ops.shape(positions))
    if not shape:
        return weights

    kept = shape
    while len(kept) > len(expected) and kept[-1] == 1:
        kept = kept[:-1]
    fits = len(kept) <= len(expected) and all(
        a is None or b is None or a in (1, b)
        for a, b in zip(kept, expected, strict=False)
    )
    if not fits:
        raise ValueError(
            f"`{name}` must have the shape of the losses, or of their leading axes. "
            f"Received: {name} of shape {shape} and losses of shape {expected}. "
            f"Reshape it to ({expected[0] if expected else ''},) to weigh whole rows."
        )
    sizes = list(ops.shape(weights)[: len(kept)])
    return ops.reshape(weights, [*sizes, *[1] * (len(expected) - len(kept))])


def position_weights(
    positions: Tensor,
    sample_weight: Tensor | None,
    mask: Tensor | None,
    not_ignored: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """One weight for each position, and which positions count (None: all).

    Masked and ignored positions are selected out, so that whatever hides behind a
    mask, NaN included, stays there.
    """
    ones = ops.ones_like(positions)
    weights, counted = ones, not_ignored
    if sample_weight is not None:
        weights = aligned(sample_weight, positions, "sample_weight")
        weights = ops.cast(weights, ones.dtype) * ones
    if mask is not None:
        mask = ops.cast(aligned(mask, positions, "mask"), "bool")
        counted = mask if counted is None else ops.logical_and(mask, counted)
    if counted is not None:
        weights = ops.where(counted, weights, ops.zeros_like(weights))
    return weights, counted


def reduced(
    weights: Tensor,
    counted: Tensor | None,
    mass: Tensor | None,
    reduction: Reduction | None,
    total_over_replicas: Callable[[Tensor], Tensor],
) -> Tensor:
    """The weights that make a weighted sum the reduction's result.

    Args:
        weights: one weight for each position, 0 where it does not count.
        counted: which positions count at all; None for all.
        mass: each position's share of the denominator (its class weight); None for 1.
        reduction: one of Keras' reductions.
        total_over_replicas: the sum of a scalar over all replicas.
    """
    if reduction == "mean_with_sample_weight":
        shares = weights if mass is None else weights * mass
        # Selected, since a bad label's class weight must not leak past weight 0.
        total = ops.sum(ops.where(ops.equal(weights, 0), 0 * weights, shares))
        # A negative weight would flip every gradient of a mean: NaN, which the sum
        # turns into a NaN loss and gradients of zero.
        negative = ops.any(weights < 0)
        total = ops.where(negative, ops.full_like(total, float("nan")), total)
    elif reduction in ("sum_over_batch_size", "mean"):
        counted = ops.ones_like(weights) if counted is None else counted
        total = ops.sum(ops.cast(counted, weights.dtype) * ops.ones_like(weights))
    else:
        return weights
    total = total_over_replicas(total)
    return ops.where(ops.equal(total, 0), 0 * weights, weights / nonzero(total))


def nonzero(total: Tensor) -> Tensor:
    """1 in place of 0, so that what is selected away is not divided by 0 before."""
    return ops.where(ops.equal(total, 0), ops.ones_like(total), total)
