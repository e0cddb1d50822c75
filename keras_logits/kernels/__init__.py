"""Weighted losses with their gradients: one signature, a body for each backend.

This is the one place that picks the body. `contract.py` says what a body promises.
"""

import importlib
import math
from dataclasses import replace
from typing import Any

import keras
from keras import ops

from keras_logits._typing import Tensor
from keras_logits.kernels import contract, reference
from keras_logits.kernels.contract import Formula, Linear, LinearLogits
from keras_logits.kernels.loop import LinearFormula
from keras_logits.kernels.plan import Plan, plan

_BODIES = ("tensorflow", "jax", "torch")

_name = keras.config.backend()
_body = (
    importlib.import_module(f"keras_logits.kernels.{_name}")
    if _name in _BODIES
    else reference
)

total_over_replicas = _body.total_over_replicas
is_concrete = _body.is_concrete

__all__ = [
    "check_tensorflow",
    "is_concrete",
    "logits_of",
    "plan_of",
    "total_over_replicas",
    "weighted",
]


def weighted(
    formula: Formula,
    labels: Tensor,
    scores: Tensor | LinearLogits,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
    summed: bool,
) -> Tensor:
    """The weighted losses of all positions, or their sum: see `contract.py`."""
    if isinstance(scores, LinearLogits):
        return _weighted_linear(formula, labels, scores, weights, constants, summed)
    return _body.weighted(formula, labels, scores, weights, constants, summed)


def _weighted_linear(
    formula: Any,
    labels: Tensor,
    scores: LinearLogits,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
    summed: bool,
) -> Tensor:
    features, kernel, bias = scores.linear
    whole = LinearFormula(
        replace(formula, axis=-1),
        scores.squash,
        scores.transposed,
        plan_of(scores),
    )
    rows = (-1,) if formula.ids else (-1, scores.classes)
    values = _body.weighted_linear(
        whole,
        ops.reshape(labels, rows),
        Linear(ops.reshape(features, (-1, features.shape[-1])), kernel, bias),
        ops.reshape(weights, (-1,)),
        *constants,
        summed,
    )
    return values if summed else ops.reshape(values, ops.shape(weights))


def logits_of(scores: LinearLogits) -> Tensor:
    """The logits as a tensor."""
    return contract.logits_of(scores, _body.matmul)


def plan_of(scores: LinearLogits) -> Plan:
    """What the fused pass would do here."""
    known = scores.shape[:-1]
    tokens = None if None in known else math.prod(known)  # type: ignore[arg-type]
    return plan(
        tokens, scores.classes, device=_body.device(), budget=scores.memory_budget
    )


def check_tensorflow(user: str) -> None:
    """Refuses a backend that cannot compute on TensorFlow's tensors."""
    if _name != "tensorflow":
        raise ImportError(
            f"`{user}` computes on TensorFlow tensors and needs that backend. Received:"
            f" KERAS_BACKEND={_name}. Set KERAS_BACKEND=tensorflow before the first "
            "import of keras."
        )
