"""Weights: from sample weights, masks and a reduction to one weight per position.

A mean is a weighted sum whose weights sum to one, so that what computes a loss only
ever sees a weighted sum.
"""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple, get_args

import numpy as np
from keras import ops

from keras_logits._typing import ClassWeight, Reduction, Tensor
from keras_logits.maths.alarms import nan_where
from keras_logits.maths.shapes import static_shape

LARGEST = float(np.finfo("float32").max)
"""Options are numbers of float32, where anything more is infinite."""

REDUCTIONS = (*get_args(Reduction), None)


def check_reduction(reduction: object) -> None:
    if not (
        reduction is None or (isinstance(reduction, str) and reduction in REDUCTIONS)
    ):
        raise ValueError(
            f"`reduction` must be one of {REDUCTIONS}.\n"
            f"Received: reduction={reduction!r}\n"
            "Fix: reduction='mean_with_sample_weight', for "
            "sum(weights * losses) / sum(weights)."
        )


def check_class_weight(class_weight: Any, name: str) -> None:
    if class_weight is None:
        return
    by_class = isinstance(class_weight, dict)
    values = class_weight.values() if by_class else class_weight
    good = isinstance(class_weight, list | tuple | dict) and all(
        map(_is_weight, values)
    )
    known = not by_class or all(isinstance(key, Integral) for key in class_weight)
    if not good or not known:
        raise ValueError(
            f"`{name}` must be a list with one number per class, or a dict {{id: "
            "number}. Numbers must be finite and not negative.\n"
            f"Received: {name}={shown(class_weight)}\n"
            f"Fix: {name}={{0: 2.0, 1: 0.0}}, where 2.0 doubles a class and 0.0 "
            "excludes one."
        )


def shown(value: Any) -> str:
    """A value as Python writes it, unless that would fill the screen."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write whole numbers of thousands of digits
        return "a whole number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:60]}... ({len(text)} characters)"


def _is_weight(value: Any) -> bool:
    # Not by float(), of which a text like "2" has one.
    number = isinstance(value, Real)
    return number and bool(0 <= value <= LARGEST)


def class_weights(class_weight: ClassWeight, classes: int, name: str) -> list[float]:
    """One weight for each class; a class that a dict does not name weighs 1."""
    if isinstance(class_weight, dict):
        unknown = [k for k in class_weight if not 0 <= k < classes]
        if unknown:
            fix = (
                f"keys from 0 to {classes - 1}."
                if classes > 1
                else "pos_weight=..., to weigh the positives of a yes/no unit."
            )
            raise ValueError(
                f"`{name}` names classes that the logits do not have.\n"
                f"Received: {name} for classes {unknown} and logits of {classes} "
                "classes\n"
                f"Fix: {fix}"
            )
        return [float(class_weight.get(k, 1.0)) for k in range(classes)]
    if len(class_weight) != classes:
        raise ValueError(
            f"`{name}` must have one value for each class.\n"
            f"Received: {name} of length {len(class_weight)} and logits of {classes} "
            "classes\n"
            f"Fix: a list of {classes} numbers, or a dict {{id: number}} for some "
            "classes."
        )
    return [float(value) for value in class_weight]


_OF_CLASSES = (
    "\nTo weigh classes: class_weight=...\n"
    "A sigmoid also takes one weight per label, in the shape of its logits."
)


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
        wide = name == "sample_weight" and len(shape) == len(expected) + 1
        raise ValueError(
            f"`{name}` must have the shape of the losses, or of their leading axes.\n"
            f"Received: {name} of shape {shape} and losses of shape {expected}\n"
            f"Fix: {name} of shape {expected[:1]}, to weigh whole rows."
            f"{_OF_CLASSES if wide else ''}"
        )
    sizes = list(ops.shape(weights)[: len(kept)])
    return ops.reshape(weights, [*sizes, *[1] * (len(expected) - len(kept))])


class Weights(NamedTuple):
    """One weight for each position, before any reduction."""

    values: Tensor
    counted: Tensor | None  # which positions count at all; None for all
    given: bool  # whether a user gave any, who may have given bad ones


def position_weights(
    positions: Tensor,
    sample_weight: Tensor | None,
    mask: Tensor | None,
    not_ignored: Tensor | None,
) -> Weights:
    """The weights of positions; `positions` is ones of their shape.

    Masked and ignored positions are selected out, so that whatever hides behind a
    mask, NaN included, stays there.
    """
    values, counted = positions, not_ignored
    if sample_weight is not None:
        values = aligned(sample_weight, positions, "sample_weight")
        values = ops.cast(values, positions.dtype) * positions
    if mask is not None:
        mask = ops.cast(aligned(mask, positions, "mask"), "bool")
        counted = mask if counted is None else ops.logical_and(mask, counted)
    if counted is not None:
        values = ops.where(counted, values, ops.zeros_like(values))
    return Weights(values, counted, sample_weight is not None)


def reduced(
    weights: Weights,
    mass: Tensor | None,
    reduction: Reduction | None,
    total_over_replicas: Callable[[Tensor], Tensor],
) -> Tensor:
    """The weights that make a weighted sum the reduction's result.

    Args:
        weights: the positions' weights.
        mass: each position's share of the denominator (its class weight); None for 1.
        reduction: one of Keras' reductions.
        total_over_replicas: the sum of a scalar over all replicas.
    """
    if reduction == "mean_with_sample_weight":
        if weights.given:
            return _shares(weights.values, mass, total_over_replicas)
        mass = ops.ones_like(weights.values) if mass is None else mass
        total = ops.sum(weighed(mass, weights.values))
    elif reduction in ("sum_over_batch_size", "mean"):
        counted = ops.ones_like(weights.values)
        if weights.counted is not None:
            counted = counted * ops.cast(weights.counted, counted.dtype)
        total = ops.sum(counted)
    else:
        return weights.values
    return weights.values * _inverse(total_over_replicas(total))


def _shares(
    values: Tensor,
    mass: Tensor | None,
    total_over_replicas: Callable[[Tensor], Tensor],
) -> Tensor:
    """Each weight's share of the total, by weights of any size.

    Their total may be more than the largest float, or its inverse may be. So they are
    divided by `scale` twice before, whatever it is: by the sum of their roots, which is
    itself a float, and leaves a total between 1 and 1 / the number of positions.
    """
    known = ops.stop_gradient(values)
    roots = ops.sqrt(ops.where(known > 0, known, ops.zeros_like(known)))
    if mass is not None:
        mass = mass + ops.zeros_like(values)  # over the devices that the weights are on
        roots = roots * ops.sqrt(ops.stop_gradient(mass))
    scale = nonzero(total_over_replicas(ops.sum(roots)))
    scaled = values / scale
    each = scaled / scale if mass is None else weighed(mass / scale, scaled)
    # A negative weight would flip every gradient of a mean. NaN makes the loss NaN, and
    # a kernel gives positions whose weight is NaN a gradient of 0.
    total = ops.sum(each) + nan_where(ops.any(values < 0), each.dtype)
    return scaled * _inverse(total_over_replicas(total)) / scale


def _inverse(total: Tensor) -> Tensor:
    """1 / total; 0 for a total of 0, so that a mean over nothing is 0."""
    return ops.where(ops.equal(total, 0), 0 * total, 1 / nonzero(total))


def usable(valid: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Which losses are NaN, and the weights of the others.

    A bad label is, unless its weight is 0, and so is any label whose weight is NaN.
    """
    sound = ops.logical_and(valid, ops.equal(weights, weights))
    bad = ops.logical_and(ops.logical_not(sound), ops.not_equal(weights, 0))
    return bad, ops.where(sound, weights, ops.zeros_like(weights))


def counting(values: Tensor, weights: Tensor) -> Tensor:
    """The values, with 0 where the weight is 0: what hides there stays there."""
    return ops.where(ops.equal(weights, 0), ops.zeros_like(values), values)


def weighed(values: Tensor, weights: Tensor) -> Tensor:
    """`weights * values`, to be differentiated by the weights.

    The derivative by a weight of 0 is its value, as that by any other is. A value that
    is not finite hides behind such a weight: it is selected out.
    """
    none = ops.equal(weights, 0)
    hidden = ops.logical_and(none, ops.logical_not(ops.isfinite(values)))
    return weights * ops.where(hidden, ops.zeros_like(values), values)


def nonzero(total: Tensor) -> Tensor:
    """1 in place of 0, so that what is selected away is not divided by 0 before."""
    return ops.where(ops.equal(total, 0), ops.ones_like(total), total)
