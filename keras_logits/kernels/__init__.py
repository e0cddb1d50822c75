"""Weighted losses with their gradients: one signature, a body for each backend.

This is the one place that picks the body. `contract.py` says what a body promises.
"""

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_logits._typing import Tensor
from keras_logits.kernels import contract, reference
from keras_logits.kernels.contract import Formula, Linear, LinearLogits
from keras_logits.kernels.loop import LinearFormula
from keras_logits.kernels.plan import Plan
from keras_logits.kernels.plan import plan as make_plan
from keras_logits.maths.figures import figures as figures_of
from keras_logits.maths.softmax import SoftmaxFormula

_BODIES = ("tensorflow", "jax", "torch")

_name = keras.config.backend()
_body = (
    importlib.import_module(f"keras_logits.kernels.{_name}")
    if _name in _BODIES
    else reference
)

total_over_replicas = _body.total_over_replicas
is_concrete = _body.is_concrete
read = _body.read
buffers_of = _body.buffers_of

__all__ = [
    "buffers_of",
    "check_tensorflow",
    "is_concrete",
    "is_distributed",
    "logits_of",
    "mass",
    "obstacle_to_fusing",
    "read",
    "total_over_replicas",
    "weighted",
]


class Weighted(NamedTuple):
    """Weighted losses of all positions, or their sum; and the figures asked for."""

    value: Tensor
    figures: Tensor | None = None


def weighted(
    formula: Formula,
    labels: Tensor,
    scores: Tensor | LinearLogits,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
    summed: bool,
    figures: tuple[str, ...] = (),
) -> Weighted:
    """Losses with their gradients, as `contract.py` has it, and figures without."""
    if isinstance(scores, LinearLogits) and 0 in scores.shape:
        scores = logits_of(scores)  # of no tokens, which is nothing to loop over
    if isinstance(scores, LinearLogits):
        batch = (labels, scores, weights, constants)
        return _weighted_linear(formula, *batch, summed, figures)
    value = _body.weighted(formula, labels, scores, weights, constants, summed)
    if not figures:
        return Weighted(value)
    return Weighted(value, _compiled_figures(formula, figures)(labels, scores))


@functools.cache
def _compiled_figures(formula: Any, names: tuple[str, ...]) -> Callable[..., Tensor]:
    by_body: Callable[..., Tensor] = _body.compiled(
        functools.partial(figures_of, formula, names)
    )
    return by_body


def _weighted_linear(
    formula: Any,
    labels: Tensor,
    scores: LinearLogits,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
    summed: bool,
    figures: tuple[str, ...],
) -> Weighted:
    (features, kernel, bias), known = scores.linear, scores.known
    # Without what is only there to be read: the plan keys compiled functions.
    planned = plan_of(scores, buffers_of(formula))
    plan = replace(planned, tokens=None, why="")
    whole = LinearFormula(
        replace(formula, axis=-1), scores.squash, scores.transposed, plan, figures
    )
    rows = (-1,) if formula.ids else (-1, scores.classes)
    value, seen = _body.weighted_linear(
        whole,
        ops.reshape(labels, rows),
        Linear(ops.reshape(features, (-1, features.shape[-1])), kernel, bias),
        ops.reshape(weights, (-1,)),
        *constants,
        summed,
        None if known is None else ops.reshape(known, (-1, scores.classes)),
    )
    shape = list(ops.shape(weights))
    if not summed:
        value = ops.reshape(value, shape)
    if seen is not None:
        seen = ops.reshape(seen, [*shape, 1 + len(figures)])
    return Weighted(value, seen)


def logits_of(scores: LinearLogits) -> Tensor:
    """The logits as a tensor."""
    sparse = _body.is_sparse(scores.linear.features)
    return contract.logits_of(
        scores, contract.sparse_matmul if sparse else _body.product
    )


def mass(
    formula: SoftmaxFormula,
    labels: Tensor,
    scores: Tensor | LinearLogits,
    class_weights: Tensor,
) -> Tensor:
    """Each position's class weight, its share of a mean's denominator."""
    of = contract if isinstance(scores, LinearLogits) else _body
    found: Tensor = of.mass(formula, labels, scores, class_weights)
    return found


def obstacle_to_fusing(linear: Linear, *others: Tensor | None) -> str | None:
    """Why the fused pass cannot be taken for these arrays, as far as they show."""
    if _body.is_sparse(linear.features):
        return "sparse features, whose rows cannot be gathered."
    if is_distributed(*linear, *others):
        return (
            "arrays that are sharded across devices by a keras.distribution or a mesh."
        )
    return None


def is_distributed(*tensors: Tensor | None) -> bool:
    """Whether arrays or computations are spread over devices, as far as it shows."""
    if keras.distribution.distribution() is not None:
        return True
    by_body: bool = _body.is_distributed(*tensors)
    return by_body


def plan_of(scores: LinearLogits, buffers: int) -> Plan:
    """What the fused pass would do here."""
    known = scores.shape[:-1]
    tokens = None if None in known else math.prod(known)  # type: ignore[arg-type]
    return make_plan(
        tokens,
        scores.classes,
        device=_body.device(),
        budget=scores.memory_budget,
        width=int(scores.linear.features.shape[-1]),
        buffers=buffers,
    )


def check_tensorflow(user: str) -> None:
    """Refuses a backend that cannot compute on TensorFlow's tensors."""
    if _name != "tensorflow":
        raise ImportError(
            f"`{user}` needs the TensorFlow backend.\n"
            f"Received: KERAS_BACKEND={_name}\n"
            "Fix: set KERAS_BACKEND=tensorflow before the first import of keras."
        )
