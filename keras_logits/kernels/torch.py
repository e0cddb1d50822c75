"""torch: the gradient in the forward pass, and again through `create_graph`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from keras import ops

from keras_logits._typing import Tensor
from keras_logits.kernels.contract import (
    NO_GRADIENT_BY_LABELS,
    NO_SECOND_DERIVATIVE,
    Formula,
    Linear,
    counted,
    evaluated_again,
    finite_or_zero,
    left_out,
    sum_of_losses,
)
from keras_logits.kernels.contract import mass as mass
from keras_logits.kernels.loop import NOTHING, Found, LinearFormula, Wanted
from keras_logits.kernels.torch_product import matmul as matmul
from keras_logits.kernels.torch_product import product as product
from keras_logits.maths.figures import figures
from keras_logits.maths.labels import valid_class_ids
from keras_logits.maths.links import at_least_float32
from keras_logits.maths.softmax import Evaluated, SoftmaxFormula


def weighted(
    formula: Formula,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
    summed: bool,
) -> Tensor:
    return _Weighted.apply(scores, weights, labels, formula, constants, summed)


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        weights: Tensor,
        labels: Tensor,
        formula: Formula,
        constants: tuple[Tensor | None, ...],
        summed: bool,
    ) -> Tensor:
        losses, gradient = _evaluate(
            formula, labels, scores, weights, constants, ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(scores, weights, labels, gradient)
        ctx.formula, ctx.constants, ctx.summed = formula, constants, summed
        ctx.handed_out = False
        values = counted(losses, weights)
        return values.sum() if summed else values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scores, weights, labels, gradient = ctx.saved_tensors
        problem = (ctx.formula, labels, scores, weights, ctx.constants)
        by_scores = by_weights = by_labels = None
        if ctx.needs_input_grad[0]:
            if torch.is_grad_enabled():  # create_graph: somebody derives it again
                gradient = evaluated_again(*problem).gradient
            elif ctx.handed_out:  # and perhaps changed in place since
                again = _evaluate(ctx.formula, labels, scores, weights, ctx.constants)
                gradient = again.gradient
            up = upstream if ctx.summed else ctx.formula.over_scores(upstream)
            if torch.is_grad_enabled() or not _is_one(up):
                by_scores = (up * gradient).to(scores.dtype)
            else:
                by_scores = gradient.to(scores.dtype)
                if by_scores is gradient and not ctx.handed_out:
                    # Another tensor of the same memory, whose changes are counted by
                    # itself: torch would refuse to read a saved tensor that changed.
                    by_scores, ctx.handed_out = gradient.data, True
        if ctx.needs_input_grad[1]:
            by_weights = _derived(problem, 3, upstream)
        if ctx.needs_input_grad[2]:
            by_labels = _derived(problem, 1, upstream)
        return by_scores, by_weights, by_labels, None, None, None


def _is_one(upstream: Tensor) -> bool:
    """Whether a product with it can be spared; not asked where that would wait."""
    on_cpu = upstream.device.type == "cpu" and not torch.compiler.is_compiling()
    return upstream.ndim == 0 and on_cpu and bool(upstream == 1)


def _derived(problem: tuple[Any, ...], index: int, upstream: Tensor) -> Tensor:
    """The gradient by one argument of the problem, by torch's own derivation."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        problem = tuple(
            x.detach() if isinstance(x, torch.Tensor) and not again else x
            for x in problem
        )
        by = problem[index].requires_grad_()
        formula, labels, scores, weights, constants = problem
        total = sum_of_losses(formula, labels, scores, weights, constants, upstream)
        return torch.autograd.grad(total, by, create_graph=again)[0]


def _evaluate(
    formula: Formula,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
    with_gradient: bool = True,
) -> Evaluated:
    if (
        isinstance(formula, SoftmaxFormula)
        and formula.plain
        and not any(constant is not None for constant in constants)
        and not torch.compiler.is_compiling()  # which cannot follow the branch below
    ):
        found = _of_class_ids(formula, labels, scores, weights, with_gradient)
        # NaN has many causes, which the general code tells apart.
        if scores.is_meta or not torch.isnan(found.losses).any():
            return found
    return formula.evaluate(labels, scores, weights, *constants)


def _of_class_ids(
    formula: SoftmaxFormula,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    with_gradient: bool,
) -> Evaluated:
    """The plain case in place: torch does not fuse, each operation is a pass."""
    axis = formula.axis
    ids, valid = valid_class_ids(labels, formula.classes)
    ids = ids.long().unsqueeze(axis)
    z = at_least_float32(scores)
    highest = z.amax(axis, keepdim=True)
    exp = (z - highest).exp_()  # torch.softmax takes six times as long at ten classes
    total = exp.sum(axis, keepdim=True)
    target = z.gather(axis, ids)
    losses = (total.log() + (highest - target)).squeeze(axis)
    losses = torch.where(valid | (weights == 0), losses, float("nan"))
    if not with_gradient:
        return Evaluated(losses, exp)
    usable = valid & (weights == weights)  # a NaN weight has gradient 0
    w = torch.where(usable, weights, 0.0).unsqueeze(axis)
    drop = torch.where(torch.isinf(target), 0.0, -w)
    gradient = exp.mul_(w / total).scatter_add_(axis, ids, drop)
    return Evaluated(losses, gradient)


@torch.compiler.disable  # it cannot follow a loop whose length is data
def weighted_linear(
    formula: LinearFormula,
    labels: Tensor,
    linear: Linear,
    weights: Tensor,
    class_weights: Tensor | None,
    summed: bool,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    known = None if known is None else known.detach()
    arguments = (weights, labels, class_weights, known, formula, summed)
    found: tuple[Tensor, Tensor | None] = _Linear.apply(*linear, *arguments)
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        *linear, weights, labels, class_weights, known, formula, summed = arguments
        if ctx.needs_input_grad[4]:
            raise ValueError(NO_GRADIENT_BY_LABELS)
        wanted = Wanted(*ctx.needs_input_grad[:3])
        at_once = wanted if summed else NOTHING
        batch = (Linear(*linear), labels, weights, class_weights, known)
        found = _pass_over(formula, at_once, *batch)
        losses = found.losses
        if ctx.needs_input_grad[3]:
            # Those of tokens that the pass left out, by another over these alone.
            others = (Linear(*linear), labels, left_out(weights), class_weights, known)
            unwatched = replace(formula, figures=())
            left = _pass_over(unwatched, NOTHING, *others).losses
            losses = losses + finite_or_zero(left)
        saved = (*linear, weights, labels, class_weights, known, losses)
        ctx.save_for_backward(*saved, *found.gradients)
        ctx.formula, ctx.wanted, ctx.summed = formula, wanted, summed
        values = counted(found.losses, weights)
        if found.figures is not None:
            ctx.mark_non_differentiable(found.figures)
        return values.sum() if summed else values, found.figures

    @staticmethod
    @torch.compiler.disable  # it mixes up which gradient is whose
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: a checkpoint counts how often
        *linear, weights, labels, class_weights, known = saved[:7]
        losses, *gradients = saved[7:]
        up = upstream
        if not ctx.summed:
            batch = (Linear(*linear), labels, weights * upstream, class_weights, known)
            unwatched = replace(ctx.formula, figures=())
            with torch.no_grad():
                gradients = _pass_over(unwatched, ctx.wanted, *batch).gradients
            up = torch.ones((), dtype=upstream.dtype, device=upstream.device)
        inputs = (*linear, weights, upstream)
        by_linear = [
            None if g is None else _NotAgain.apply(_rounded_product(up, g, x), *inputs)
            for x, g in zip(linear, gradients, strict=True)
        ]
        by_weights = _NotAgain.apply(upstream * losses, *inputs)
        return *by_linear, by_weights, None, None, None, None, None


def _rounded_product(up: Tensor, gradient: Tensor, like: Tensor) -> Tensor:
    if like.is_cuda and like.dtype != gradient.dtype:
        # Rounded as it is made: in float32 it would be as large as the kernel again.
        with torch.no_grad():
            return torch.mul(up, gradient, out=torch.empty_like(like))
    return (up * gradient).to(like.dtype)


class _NotAgain(torch.autograd.Function):
    """The gradient itself, which refuses to be differentiated once more."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *_: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise ValueError(NO_SECOND_DERIVATIVE)


def _pass_over(
    formula: LinearFormula, wanted: Wanted, linear: Linear, *batch: Any
) -> Found:
    """The loop of `loop.py`, in place, in the precision that it asks for."""
    with torch.autocast(linear.features.device.type, enabled=False):
        return _loop(formula, wanted, linear, *batch)


def _loop(
    formula: LinearFormula,
    wanted: Wanted,
    linear: Linear,
    labels: Tensor,
    weights: Tensor,
    class_weights: Tensor | None,
    known: Tensor | None,
) -> Found:
    features, kernel, bias = linear
    dtype = torch.promote_types(features.dtype, torch.float32)
    factor = _factor_dtype(features)
    wide: dict[str, Any] = {} if factor == dtype else {"out_dtype": dtype}
    used = kernel.to(features.dtype).to(factor)
    used = used.T if formula.transposed else used
    losses, seen = torch.zeros_like(weights), None
    if formula.figures:
        seen = losses.new_zeros((len(losses), 1 + len(formula.figures)))
    sums = [
        torch.zeros(x.shape, dtype=dtype, device=x.device) if want else None
        for x, want in zip(linear, wanted, strict=True)
    ]
    by_features, by_kernel, by_bias = sums
    for rows in weights.nonzero().squeeze(1).split(formula.plan.chunk):
        x = features[rows].to(factor)
        if known is None:
            scores = (
                torch.mm(x, used, **wide)
                if bias is None
                else torch.addmm(bias.to(dtype), x, used, **wide)
            )
            logits = formula.squash.masked(formula.squash.logits(scores), bias)
        else:
            logits = known[rows]
        batch = (labels[rows], logits, weights[rows])
        found = _evaluate(formula.softmax, *batch, (class_weights,), any(wanted))
        losses[rows] = found.losses
        if seen is not None:
            seen[rows] = figures(formula.softmax, formula.figures, labels[rows], logits)
        if not any(wanted):
            continue
        gradient = formula.squash.times_slope(found.gradient, logits)
        if by_bias is not None:
            by_bias += gradient.sum(0)
        gradient = gradient.to(factor)
        if by_features is not None:
            by_features[rows] = torch.mm(gradient, used.T, **wide)
        if by_kernel is not None:
            pair = (gradient.T, x) if formula.transposed else (x.T, gradient)
            torch.addmm(by_kernel, *pair, out=by_kernel, **wide)
    return Found(losses, Linear(*sums), seen)


def _factor_dtype(features: Tensor) -> torch.dtype:
    """That of what is multiplied: bfloat16 for features in it, on a GPU.

    In float32 a pass took thirteen times as long there as a plain loss in bfloat16, now
    1.7 times. Its range is that of float32; float16 would lose small probabilities.
    """
    if features.is_cuda and features.dtype == torch.bfloat16:
        return torch.bfloat16
    return torch.promote_types(features.dtype, torch.float32)


def buffers_of(formula: SoftmaxFormula) -> int:
    """Arrays as large as a chunk's logits that torch was seen to hold at a time.

    More than XLA does: it fuses nothing, and what a formula names is there.
    """
    if formula.plain:
        return 2
    return 6 if formula.closed else 15


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function itself: torch compiles nothing unasked."""
    return function


def total_over_replicas(total: Tensor) -> Tensor:
    return total


read = ops.convert_to_tensor


def device() -> str:
    return "accelerator" if torch.cuda.is_available() else "cpu"


def is_concrete(tensor: Tensor) -> bool:
    return tensor.device.type != "meta" and not torch.compiler.is_compiling()


def is_sparse(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.layout is not torch.strided


def is_distributed(*tensors: Tensor | None) -> bool:
    """False: replicas hold whole arrays, each of its own part of the batch."""
    return False
