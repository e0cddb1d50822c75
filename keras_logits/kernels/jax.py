"""JAX: the gradient in the forward pass, to every order and in both modes.

A `custom_jvp` whose tangent is the sum of gradient times tangent: the gradient is
plain code, so that JAX differentiates it again as often as it is asked to, where
`custom_vjp` would refuse forward mode.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from keras_logits._typing import Tensor
from keras_logits.kernels.contract import Formula, counted


@partial(jax.jit, static_argnums=(0, 5))
def weighted(
    formula: Formula,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
    summed: bool,
) -> Tensor:
    return _weighted(formula, summed, labels, scores, weights, constants)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _weighted(
    formula: Formula,
    summed: bool,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
) -> Tensor:
    values = _values(formula, labels, scores, weights, constants)
    return jnp.sum(values) if summed else values


def _values(
    formula: Formula,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
) -> Tensor:
    return counted(formula.evaluate(labels, scores, weights, *constants)[0], weights)


@partial(_weighted.defjvp, symbolic_zeros=True)
def _weighted_jvp(
    formula: Formula, summed: bool, primals: Any, tangents: Any
) -> tuple[Tensor, Tensor]:
    labels, scores, weights, constants = primals
    d_labels, d_scores, d_weights, _ = tangents
    losses, gradient = formula.evaluate(labels, scores, weights, *constants)
    values = counted(losses, weights)
    tangent = jnp.zeros_like(values)
    if not isinstance(d_scores, SymbolicZero):
        slopes = gradient.astype(values.dtype) * d_scores.astype(values.dtype)
        tangent = tangent + formula.over_losses(slopes)
    if not isinstance(d_labels, SymbolicZero):
        tangent = (
            tangent
            + jax.jvp(
                lambda labels: _values(formula, labels, scores, weights, constants),
                (labels,),
                (d_labels,),
            )[1]
        )
    if not isinstance(d_weights, SymbolicZero):
        tangent = (
            tangent
            + jax.jvp(
                lambda weights: _values(formula, labels, scores, weights, constants),
                (weights,),
                (d_weights,),
            )[1]
        )
    if summed:
        return jnp.sum(values), jnp.sum(tangent)
    return values, tangent


def matmul(features: Tensor, kernel: Tensor) -> Tensor:
    """A product that is accumulated, and returned, in at least float32."""
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    return jnp.matmul(features, kernel, preferred_element_type=dtype)


def total_over_replicas(total: Tensor) -> Tensor:
    """The value itself: JAX shards one global computation, its sums are global."""
    return total


def is_concrete(tensor: Tensor) -> bool:
    return not isinstance(tensor, jax.core.Tracer)
