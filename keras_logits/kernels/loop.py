"""The fused pass: from features to losses and gradients, a chunk of tokens at a time.

One body for the backends that XLA compiles. It equals

    losses, gradient = formula.evaluate(labels, squash(features @ kernel + bias), ...)

with the gradient taken on to features, kernel and bias, but never holds the logits of
more than one chunk. Tokens of weight 0 are left out of all products.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.kernels.chunk import (
    Classes,
    GradientOf,
    Label,
    Verbs,
    carried_back,
    summed,
)
from keras_logits.kernels.contract import Linear
from keras_logits.kernels.plan import BUFFERS, Plan
from keras_logits.maths.blocks import block_of
from keras_logits.maths.figures import of_classes
from keras_logits.maths.links import accurate_dtype
from keras_logits.maths.softmax import SoftmaxFormula
from keras_logits.maths.squash import Squash
from keras_logits.maths.sums import Sums


@dataclass(frozen=True)
class LinearFormula:
    """All that is fixed of a fused pass. Hashable: it keys compiled functions."""

    softmax: SoftmaxFormula
    squash: Squash
    transposed: bool
    plan: Plan
    figures: tuple[str, ...] = ()


def buffers_of(formula: SoftmaxFormula) -> int:
    """Arrays as large as a chunk's logits that XLA was seen to hold at a time."""
    if formula.closed:
        return BUFFERS
    return 8 if formula.focal_gamma else 4


class Wanted(NamedTuple):
    """Which gradients somebody asks for."""

    features: bool
    kernel: bool
    bias: bool


NOTHING = Wanted(features=False, kernel=False, bias=False)


class Found(NamedTuple):
    """One loss for each token, 0 where its weight is 0, and what was asked for.

    Gradients are as accurate as they were summed: a caller rounds them to the dtypes of
    what they are by, once, when it has multiplied them by what comes from upstream.
    """

    losses: Tensor
    gradients: Linear
    figures: Tensor | None


def pass_over(
    formula: LinearFormula,
    wanted: Wanted,
    verbs: Verbs,
    linear: Linear,
    labels: Tensor,
    weights: Tensor,
    class_weights: Tensor | None,
) -> Found:
    """Losses, and the gradients of their weighted sum, of `[N, D]` features."""
    features, kernel, bias = linear
    softmax, plan = formula.softmax, formula.plan
    dtype = accurate_dtype(features.dtype)
    kernel = ops.cast(kernel, features.dtype)
    used = ops.transpose(kernel) if formula.transposed else kernel
    classes = Classes(
        kernel,
        formula.transposed,
        bias,
        formula.squash,
        class_weights,
        plan.vocabulary,
        plan.columns,
    )
    last = ops.shape(features)[0] - 1
    # Tokens that count come first, and the loop ends where they do.
    counts = ops.not_equal(weights, 0)
    order = ops.argsort(ops.cast(ops.logical_not(counts), "int32"))
    count = ops.sum(ops.cast(counts, "int32"))

    def step(i: Tensor, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        place = i * plan.chunk + ops.arange(plan.chunk, dtype="int32")
        rows = ops.take(order, ops.minimum(place, last), axis=0)
        w = ops.take(weights, rows, axis=0)
        w = ops.where(place < count, w, ops.zeros_like(w))
        counted = ops.not_equal(w, 0)
        x = ops.take(features, rows, axis=0)
        x = ops.where(counted[:, None], x, ops.zeros_like(x))
        y = ops.take(labels, rows, axis=0)

        def placed(name: str, values: Tensor) -> Tensor:
            some = counted if len(values.shape) == 1 else counted[:, None]
            values = ops.where(some, values, ops.zeros_like(values))
            return verbs.add_rows(totals[name], rows, values)

        products = verbs.matmul(x, used)
        entropy = bool(formula.figures)
        scores, sums = summed(classes, softmax, products, entropy)
        true = softmax.true_classes(y)
        label = Label(classes.logits_at(scores, true), true)
        whole = classes.logits(scores)  # of which most formulas read nothing
        batch = (y, whole, label.logit, w, sums)
        losses, gradient_of = _evaluated(softmax, classes, *batch)
        found = {"losses": placed("losses", losses)}
        begun: dict[str, Tensor] = {
            name: totals[name] for name in ("kernel", "bias") if name in totals
        }
        if wanted.features:
            begun["features"] = ops.zeros_like(x, dtype=dtype)
        if formula.figures:
            begun["rank"] = ops.zeros_like(label.logit)
        if begun:
            begun = carried_back(classes, verbs, x, scores, gradient_of, label, begun)
        if formula.figures:
            rank = begun.pop("rank")
            seen = of_classes(
                softmax, formula.figures, y, whole, label.logit, sums, rank
            )
            found["figures"] = placed("figures", seen)
        if wanted.features:
            found["features"] = placed("features", begun.pop("features"))
        return {**found, **begun}

    totals = {"losses": ops.zeros_like(weights)}
    if formula.figures:
        size = (ops.shape(features)[0], 1 + len(formula.figures))
        totals["figures"] = ops.zeros(size, dtype=dtype)
    for name, tensor in zip(Wanted._fields, linear, strict=True):
        if getattr(wanted, name):
            totals[name] = ops.zeros(ops.shape(tensor), dtype=dtype)
    chunks = (count + plan.chunk - 1) // plan.chunk
    totals = ops.fori_loop(0, chunks, step, totals)
    gradients = Linear(*(totals.get(name) for name in Wanted._fields))
    return Found(totals["losses"], gradients, totals.get("figures"))


def _evaluated(
    softmax: SoftmaxFormula,
    classes: Classes,
    labels: Tensor,
    logits: Tensor,
    own: Tensor,
    weights: Tensor,
    sums: Sums,
) -> tuple[Tensor, GradientOf]:
    """Losses, and the gradient by blocks: computed so, or cut out of a whole."""
    if softmax.closed:
        found = softmax.positions(labels, own, weights, sums, classes.weights)

        def by_block(z: Tensor, start: Any, width: int) -> Tensor:
            ids = classes.ids_of(start, width)
            return softmax.gradient(found, z, ids, classes.weights_of(start, width))

        return found.losses, by_block
    losses, whole = softmax.evaluate(labels, logits, weights, classes.weights)
    return losses, lambda z, start, width: block_of(whole, start, width, axis=1)
