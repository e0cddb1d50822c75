"""The fused pass: from features to losses and gradients, a chunk of tokens at a time.

One body for the backends that XLA compiles. It equals

    losses, gradient = formula.evaluate(labels, squash(features @ kernel + bias), ...)

with the gradient taken on to features, kernel and bias, but never holds the logits of
more than one chunk. Tokens of weight 0 are left out of all products.
"""

from dataclasses import dataclass
from typing import NamedTuple

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.kernels.chunk import HANDED_ON, LOGITS, Classes, Verbs, evaluated
from keras_logits.kernels.contract import Linear
from keras_logits.kernels.plan import BUFFERS, Plan
from keras_logits.maths.links import accurate_dtype
from keras_logits.maths.softmax import SoftmaxFormula
from keras_logits.maths.squash import Squash


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
    known: Tensor | None = None,
) -> Found:
    """Losses, and the gradients of their weighted sum, of `[N, D]` features.

    Logits that are known, `[N, V]`, are read and not computed.
    """
    features, kernel, bias = linear
    plan, dtype = formula.plan, accurate_dtype(features.dtype)
    classes = Classes(
        ops.cast(kernel, features.dtype),
        formula.transposed,
        bias,
        formula.squash,
        class_weights,
        plan,
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

        def of_rows(values: Tensor) -> Tensor:
            values = ops.take(values, rows, axis=0)
            return ops.where(counted[:, None], values, ops.zeros_like(values))

        x, z = of_rows(features), None if known is None else of_rows(known)
        y = ops.take(labels, rows, axis=0)

        begun = {name: totals[name] for name in totals if name in HANDED_ON}
        if wanted.features:
            begun["features"] = ops.zeros_like(x, dtype=dtype)
        of_chunk = (classes, formula.softmax, formula.figures, verbs)
        found = evaluated(*of_chunk, x, y, w, begun, z)

        def placed(name: str, values: Tensor) -> Tensor:
            some = counted if len(values.shape) == 1 else counted[:, None]
            values = ops.where(some, values, ops.zeros_like(values))
            return verbs.add_rows(totals[name], rows, values)

        return {
            name: values if name in HANDED_ON else placed(name, values)
            for name, values in found.items()
        }

    totals = {"losses": ops.zeros_like(weights)}
    if formula.figures:
        size = (ops.shape(features)[0], 1 + len(formula.figures))
        totals["figures"] = ops.zeros(size, dtype=dtype)
    for name, tensor in zip(Wanted._fields, linear, strict=True):
        if getattr(wanted, name):
            totals[name] = ops.zeros_like(tensor, dtype=dtype)
    if any(wanted) or formula.figures or not formula.softmax.closed:
        totals[LOGITS] = classes.place_for_logits()
    chunks = (count + plan.chunk - 1) // plan.chunk
    totals = ops.fori_loop(0, chunks, step, totals)
    gradients = Linear(*(totals.get(name) for name in Wanted._fields))
    return Found(totals["losses"], gradients, totals.get("figures"))
