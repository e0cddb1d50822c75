"""JAX: the gradient in the forward pass, to every order and in both modes.

A `custom_jvp` whose tangent is the sum of gradient times tangent: the gradient is
plain code, so that JAX differentiates it again as often as it is asked to, where
`custom_vjp` would refuse forward mode.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import mesh as mesh_lib
from jax.custom_derivatives import SymbolicZero
from jax.experimental.sparse import JAXSparse
from jax.sharding import AxisType, PartitionSpec
from keras import ops

from keras_logits._typing import Tensor
from keras_logits.kernels.chunk import Verbs
from keras_logits.kernels.contract import (
    NO_GRADIENT_BY_LABELS,
    NO_SECOND_DERIVATIVE,
    Formula,
    Linear,
    counted,
    evaluated_again,
    finite_or_zero,
    left_out,
)
from keras_logits.kernels.loop import (
    NOTHING,
    Found,
    LinearFormula,
    Wanted,
    pass_over,
)
from keras_logits.kernels.loop import buffers_of as buffers_of
from keras_logits.maths.links import accurate_dtype
from keras_logits.maths.softmax import Evaluated, SoftmaxFormula
from keras_logits.maths.weights import weighed


@partial(jax.jit, static_argnums=(0, 5))
def weighted(
    formula: Formula,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
    summed: bool,
) -> Tensor:
    def over_shards(*batch: Any) -> Tensor:
        return _weighted(formula, summed, *batch)

    left = () if summed else _spec_of_losses(formula, scores)
    return _in_auto_axes(over_shards, left, labels, scores, weights, constants)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _weighted(
    formula: Formula,
    summed: bool,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
) -> Tensor:
    losses, _ = formula.evaluate(labels, scores, weights, *constants)
    values = counted(losses, weights)
    return jnp.sum(values) if summed else values


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _evaluated(formula: Formula, *problem: Any) -> Evaluated:
    """Losses and gradient, whose derivatives are those of code made for it."""
    *batch, constants = problem
    return formula.evaluate(*batch, *constants)


@_evaluated.defjvp
def _evaluated_jvp(formula: Formula, primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(evaluated_again, formula), primals, tangents)


@partial(_weighted.defjvp, symbolic_zeros=True)
def _weighted_jvp(
    formula: Formula, summed: bool, primals: Any, tangents: Any
) -> tuple[Tensor, Tensor]:
    labels, scores, weights, constants = primals
    d_labels, d_scores, d_weights, _ = tangents
    losses, gradient = _evaluated(formula, *primals)
    values = weighed(losses, weights)
    tangent = jnp.zeros_like(values)
    if not isinstance(d_scores, SymbolicZero):
        slopes = gradient.astype(values.dtype) * d_scores.astype(values.dtype)
        tangent = tangent + formula.over_losses(slopes)

    def again(labels: Tensor, weights: Tensor) -> Tensor:
        losses, _ = evaluated_again(formula, labels, scores, weights, constants)
        return weighed(losses, weights)

    if not isinstance(d_labels, SymbolicZero):
        by_labels = jax.jvp(lambda y: again(y, weights), (labels,), (d_labels,))
        tangent = tangent + by_labels[1]
    if not isinstance(d_weights, SymbolicZero):
        by_weights = jax.jvp(lambda w: again(labels, w), (weights,), (d_weights,))
        tangent = tangent + by_weights[1]
    if summed:
        return jnp.sum(values), jnp.sum(tangent)
    return values, tangent


@partial(jax.jit, static_argnums=(0, 5))
def weighted_linear(
    formula: LinearFormula,
    labels: Tensor,
    linear: Linear,
    weights: Tensor,
    class_weights: Tensor | None,
    summed: bool,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    batch = (linear, labels, weights, class_weights, known)
    found: tuple[Tensor, Tensor | None] = _linear(formula, summed, *batch)
    return found


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear(
    formula: LinearFormula, summed: bool, *batch: Any
) -> tuple[Tensor, Tensor | None]:
    found = pass_over(formula, NOTHING, _VERBS, *batch)
    return _result(found, batch[2], summed)


def _result(
    found: Found, weights: Tensor, summed: bool
) -> tuple[Tensor, Tensor | None]:
    values = counted(found.losses, weights)
    return jnp.sum(values) if summed else values, found.figures


def _linear_forward(formula: LinearFormula, summed: bool, *batch: Any) -> Any:
    linear, labels, *_ = batch
    if labels.perturbed:
        raise ValueError(NO_GRADIENT_BY_LABELS)
    wanted = Wanted(*(x is not None and x.perturbed for x in linear))
    by_weights = batch[2].perturbed
    batch = _not_again(jax.tree.map(lambda x: x.value, batch))
    found = pass_over(formula, wanted if summed else NOTHING, _VERBS, *batch)
    result = _result(found, batch[2], summed)
    losses = _all_losses(formula, found.losses, *batch) if by_weights else found.losses
    if summed:
        # Arrays of no size tell the dtypes: residuals are arrays.
        like = jax.tree.map(lambda x: jnp.zeros(0, x.dtype), batch[0])
        return result, (losses, found.gradients, (like,))
    # What is wanted is told by the structure, which is known when this is traced.
    asked = Linear(*(() if want else None for want in wanted))
    return result, (losses, asked, batch)


def _all_losses(
    formula: LinearFormula,
    losses: Tensor,
    linear: Linear,
    labels: Tensor,
    weights: Tensor,
    *rest: Tensor | None,
) -> Tensor:
    """Also those of tokens that a pass left out, by another pass over these alone."""
    batch = (linear, labels, left_out(weights), *rest)
    unwatched = replace(formula, figures=())
    left = pass_over(unwatched, NOTHING, _VERBS, *batch).losses
    return losses + finite_or_zero(left)


def _linear_backward(
    formula: LinearFormula, summed: bool, saved: Any, upstream: Any
) -> tuple[Any, ...]:
    losses, gradients, batch = saved
    up, _ = upstream
    linear = batch[0]
    if not summed:
        wanted = Wanted(*(want is not None for want in gradients))
        _, labels, weights, *rest = batch
        batch = (linear, labels, weights * up, *rest)
        unwatched = replace(formula, figures=())
        gradients = pass_over(unwatched, wanted, _VERBS, *batch).gradients
        up = jnp.ones_like(losses, shape=())
    by_linear = Linear(
        *(
            None if g is None else (up * g).astype(x.dtype)
            for g, x in zip(gradients, linear, strict=True)
        )
    )
    return by_linear, None, upstream[0] * losses, None, None


_linear.defvjp(_linear_forward, _linear_backward, symbolic_zeros=True)


@jax.custom_jvp
def _not_again(values: Any) -> Any:
    """The values themselves, which refuse to be differentiated once more."""
    return values


@_not_again.defjvp
def _not_again_jvp(primals: Any, tangents: Any) -> Any:
    raise ValueError(NO_SECOND_DERIVATIVE)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, which takes tensors alone, by XLA."""
    by_xla: Callable[..., Tensor] = jax.jit(function)
    return by_xla


def matmul(features: Tensor, kernel: Tensor) -> Tensor:
    """A product that is accumulated, and returned, in at least float32."""
    dtype = jnp.promote_types(features.dtype, jnp.float32)

    def multiplied(features: Tensor, kernel: Tensor) -> Tensor:
        return jnp.matmul(features, kernel, preferred_element_type=dtype)

    rows, columns = _spec_of(features)[:-1], _spec_of(kernel)[-1:]
    columns = [None if set(_names(c)) & set(_names(*rows)) else c for c in columns]
    return _in_auto_axes(multiplied, [*rows, *columns], features, kernel)


@jax.custom_jvp
def product(features: Tensor, kernel: Tensor) -> Tensor:
    """`matmul`, whose derivative by the kernel reads NaN and infinite features as 0."""
    return matmul(features, kernel)


@partial(product.defjvp, symbolic_zeros=True)
def _product_jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    (features, kernel), (d_features, d_kernel) = primals, tangents
    value = product(features, kernel)
    tangent = jnp.zeros_like(value)
    if not isinstance(d_features, SymbolicZero):
        tangent = tangent + matmul(d_features, kernel)
    if not isinstance(d_kernel, SymbolicZero):
        known = jnp.where(jnp.isfinite(features), features, jnp.zeros_like(features))
        tangent = tangent + matmul(known, d_kernel)
    return value, tangent


def total_over_replicas(total: Tensor) -> Tensor:
    """The value itself: JAX shards one global computation, its sums are global."""
    return total


def _add_rows(into: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return into.at[rows].add(values)


AS_FAST_AS_CAN_BE = (None, "default", "bfloat16")
"""Settings of `jax.default_matmul_precision` under which factors may be rounded."""


def _factor_dtype(dtype: Any) -> str:
    """bfloat16 for features in it, on an accelerator, unless JAX is told otherwise.

    In float32 a pass takes 1.8 times as long or more. The range of bfloat16 is that of
    float32; float16 would lose small probabilities.
    """
    fast = jax.config.jax_default_matmul_precision in AS_FAST_AS_CAN_BE
    if dtype == jnp.bfloat16 and fast and device() == "accelerator":
        return "bfloat16"
    return accurate_dtype(dtype)


_VERBS = Verbs(matmul, _factor_dtype, _add_rows)


read = ops.convert_to_tensor


def device() -> str:
    chosen = jax.config.jax_default_device or jax.default_backend()
    platform = getattr(chosen, "platform", chosen)
    return "cpu" if platform == "cpu" else "accelerator"


def is_concrete(tensor: Tensor) -> bool:
    return not isinstance(tensor, jax.core.Tracer)


def is_sparse(tensor: Tensor) -> bool:
    return isinstance(tensor, JAXSparse)


def is_distributed(*tensors: Tensor | None) -> bool:
    """Whether a mesh is entered, or a tensor lies on one.

    A tracer shows the mesh of what it was computed from, but not what only the
    `in_shardings` of a `jax.jit` say.
    """
    entered = (jax.sharding.get_abstract_mesh(), _mesh_of_with_statement())
    return any(map(_spreads, entered)) or any(
        _is_spread(tensor) for tensor in tensors if tensor is not None
    )


def _mesh_of_with_statement() -> Any:
    """The mesh of `with mesh:`, which JAX deprecates and has no public name for."""
    return mesh_lib.thread_resources.env.physical_mesh


def _spreads(mesh: Any) -> bool:
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    # Over manual axes, inside of a shard_map, each device computes for itself; explicit
    # ones need the sharding of each result said, even where there is one device.
    return any(
        kind == AxisType.Explicit or (kind == AxisType.Auto and mesh.shape[name] > 1)
        for name, kind in kinds.items()
    )


def _is_spread(tensor: Tensor) -> bool:
    if is_concrete(tensor):
        devices = getattr(getattr(tensor, "sharding", None), "device_set", ())
        return len(devices) > 1
    aval = jax.typeof(tensor)
    return bool(_varying(aval)) or _spreads(aval.sharding.mesh)


def _varying(aval: Any) -> Any:
    """The manual axes along which a value is known to differ: loops must keep them."""
    kind = getattr(aval, "manual_axis_type", None)  # `vma` before JAX 0.10
    return getattr(aval, "vma", ()) if kind is None else kind.varying


def mass(
    formula: SoftmaxFormula, labels: Tensor, scores: Tensor, class_weights: Tensor
) -> Tensor:
    batch = (labels, scores, class_weights)
    return _in_auto_axes(formula.mass, _spec_of_losses(formula, scores), *batch)


def _spec_of_losses(formula: Formula, scores: Tensor) -> list[Any]:
    left = list(_spec_of(scores))
    if isinstance(formula, SoftmaxFormula):
        del left[formula.axis]
    return left


def _spec_of(tensor: Tensor) -> Any:
    return jax.typeof(tensor).sharding.spec


def _names(*axes: Any) -> list[str]:
    """The mesh axes in some places of a spec, each of which holds one, many or none."""
    several = (axis if isinstance(axis, tuple) else (axis,) for axis in axes)
    return [name for axis in several for name in axis if name is not None]


def _in_auto_axes(function: Callable[..., Any], spec: Any, *batch: Any) -> Any:
    """A function whose result is to lie as `spec` says, with all else left to XLA.

    Over explicit axes an operation whose result could lie in two ways is an error.
    """
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(batch))
    explicit = [mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types]
    if not explicit:
        return function(*batch)
    with jax.sharding.use_abstract_mesh(explicit[0]):
        by_xla = jax.sharding.auto_axes(function, out_sharding=PartitionSpec(*spec))
        return by_xla(*batch)
