r"""Logarithms of somebody else's probabilities, for losses with `from_logits=False`.

A probability comes rounded: 0 and 1 stand for what is merely close to them. Values are
exact down to the smallest normal number. Slopes are capped: `1 / p` at a rounded 0
would leave no room for what it is multiplied by, weights and a loss scale of 2**24.
"""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.links import accurate_dtype


class Rounding(NamedTuple):
    """What the dtype of probabilities does to them."""

    floor: float  # below it the slope of log p is that of the floor
    step: float  # the last step below 1, which floors the slope of log (1 - p)
    tolerance: float  # how far outside of [0, 1] rounding may put them


_ROUNDING = {
    # Gradients are of the dtype of the scores, and float16 ends at 65504.
    "float16": Rounding(floor=2.0**-14, step=2.0**-11, tolerance=2.0**-7),
    "bfloat16": Rounding(floor=1e-25, step=2.0**-8, tolerance=2.0**-4),
    "float32": Rounding(floor=1e-25, step=2.0**-24, tolerance=1e-3),
    "float64": Rounding(floor=1e-200, step=2.0**-53, tolerance=1e-3),
}


def rounding_of(dtype: object) -> Rounding:
    return _ROUNDING[keras.backend.standardize_dtype(dtype)]


def no_probabilities(scores: Tensor) -> Tensor:
    """Where a score is no probability, by more than rounding; NaN is not called so."""
    tolerance = rounding_of(scores.dtype).tolerance
    return ops.logical_or(scores < -tolerance, scores > 1.0 + tolerance)


def log_of(p: Tensor, gamma: float, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """`(1 - p)^gamma * log(p)` and its derivative."""
    p = _in_range(p)
    log_p = ops.log(_at_least(p, _tiny(p)))
    return _focal(log_p, p, 1.0 - p, gamma, rounding.floor)


def log_of_rest(p: Tensor, gamma: float, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """`p^gamma * log(1 - p)` and its derivative."""
    p = _in_range(p)
    rest, tiny = 1.0 - p, _tiny(p)
    none = rest < tiny
    # Not `log(rest)`, which loses the digits of a small p.
    log_rest = ops.log1p(-ops.where(none, ops.zeros_like(p), p))
    log_rest = ops.where(none, ops.full_like(p, float(np.log(tiny))), log_rest)
    value, slope = _focal(log_rest, rest, p, gamma, rounding.step)
    return value, -slope


def _focal(
    log_p: Tensor, p: Tensor, rest: Tensor, gamma: float, floor: float
) -> tuple[Tensor, Tensor]:
    """`rest^gamma * log_p`, with `rest = 1 - p`, and its derivative by p."""
    inverse = 1.0 / _at_least(p, floor)
    if not gamma:
        return log_p, inverse
    rest = _at_least(rest, _tiny(rest))
    factor = ops.exp(gamma * ops.log(rest))
    return factor * log_p, factor * inverse - gamma * factor * (log_p / rest)


def _in_range(p: Tensor) -> Tensor:
    p = ops.where(p < 0, ops.zeros_like(p), p)
    return ops.where(p > 1, ops.ones_like(p), p)


def _tiny(values: Tensor) -> float:
    """The smallest normal number."""
    return float(np.finfo(accurate_dtype(values.dtype)).tiny)


def _at_least(values: Tensor, least: float) -> Tensor:
    # Not by `maximum`, which makes float32 of float64 on torch.
    return ops.where(values < least, ops.full_like(values, least), values)
