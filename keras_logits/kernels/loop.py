"""The fused pass: from features to losses and gradients, a chunk of tokens at a time.

One body for the backends that XLA compiles. It equals

    losses, gradient = formula.evaluate(labels, squash(features @ kernel + bias), ...)

with the gradient taken on to features, kernel and bias, but never holds the logits of
more than one chunk. Tokens of weight 0 are left out of all products.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.kernels.contract import Linear
from keras_logits.kernels.plan import BUFFERS, Plan
from keras_logits.maths.blocks import block_of, fold_blocks
from keras_logits.maths.figures import figures
from keras_logits.maths.links import accurate_dtype
from keras_logits.maths.softmax import BLOCK, SoftmaxFormula
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
    return 8 if formula.focal_gamma else 6


class Wanted(NamedTuple):
    """Which gradients somebody asks for."""

    features: bool
    kernel: bool
    bias: bool


NOTHING = Wanted(features=False, kernel=False, bias=False)


class Verbs(NamedTuple):
    """What `keras.ops` cannot say, from the backend's own file."""

    matmul: Callable[[Tensor, Tensor], Tensor]  # accumulates in float32
    add_rows: Callable[[Tensor, Tensor, Tensor], Tensor]  # into[rows] += values


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
    dtype = accurate_dtype(features.dtype)
    used = ops.cast(kernel, features.dtype)
    used = ops.transpose(used) if formula.transposed else used
    chunk = formula.plan.chunk
    last = ops.shape(features)[0] - 1
    # Tokens that count come first, and the loop ends where they do.
    counts = ops.not_equal(weights, 0)
    order = ops.argsort(ops.cast(ops.logical_not(counts), "int32"))
    count = ops.sum(ops.cast(counts, "int32"))

    def step(i: Tensor, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        place = i * chunk + ops.arange(chunk, dtype="int32")
        rows = ops.take(order, ops.minimum(place, last), axis=0)
        w = ops.take(weights, rows, axis=0)
        w = ops.where(place < count, w, ops.zeros_like(w))
        counted = ops.not_equal(w, 0)
        x = ops.take(features, rows, axis=0)
        x = ops.where(counted[:, None], x, ops.zeros_like(x))

        logits = _logits(formula, verbs.matmul(x, used), bias)
        y = ops.take(labels, rows, axis=0)
        found = formula.softmax.evaluate(y, logits, w, class_weights)
        gradient = formula.squash.times_slope(found.gradient, logits)

        losses = ops.where(counted, found.losses, ops.zeros_like(w))
        sums = {**sums, "losses": verbs.add_rows(sums["losses"], rows, losses)}
        if formula.figures:
            seen = figures(formula.softmax, formula.figures, y, logits)
            seen = ops.where(counted[:, None], seen, ops.zeros_like(seen))
            sums["figures"] = verbs.add_rows(sums["figures"], rows, seen)
        if wanted.features:
            back = verbs.matmul(gradient, ops.transpose(used))
            sums["features"] = verbs.add_rows(sums["features"], rows, back)
        if wanted.bias:
            sums["bias"] = sums["bias"] + _sum_of_rows(gradient)
        if wanted.kernel:
            sums["kernel"] = _add_product(formula, verbs, sums["kernel"], x, gradient)
        return sums

    sums = {"losses": ops.zeros_like(weights)}
    if formula.figures:
        size = (ops.shape(features)[0], 1 + len(formula.figures))
        sums["figures"] = ops.zeros(size, dtype=dtype)
    for name, tensor in zip(Wanted._fields, linear, strict=True):
        if getattr(wanted, name):
            sums[name] = ops.zeros(ops.shape(tensor), dtype=dtype)
    sums = ops.fori_loop(0, (count + chunk - 1) // chunk, step, sums)
    gradients = Linear(*(sums.get(name) for name in Wanted._fields))
    return Found(sums["losses"], gradients, sums.get("figures"))


def _logits(formula: LinearFormula, products: Tensor, bias: Tensor | None) -> Tensor:
    """The logits, in place of the products if sums are to go over blocks of them.

    XLA adds a bias anew wherever the logits are read, which costs nothing; but a loop
    reads an array, which would then lie beside that of the products.
    """

    def of(products: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            products = products + ops.cast(bias, products.dtype)
        return formula.squash.logits(products)

    def replace_block(start: Any, width: int, whole: Tensor) -> Tensor:
        offsets = None if bias is None else block_of(bias, start, width, axis=0)
        block = of(block_of(whole, start, width, axis=1), offsets)
        return ops.slice_update(whole, (0, start), block)

    if not (formula.figures or formula.softmax.label_smoothing):
        return of(products, bias)
    return fold_blocks(replace_block, products, formula.plan.vocabulary, BLOCK)


def _sum_of_rows(x: Tensor) -> Tensor:
    """By halves: the sum of XLA's CPU compiler took a quarter of the whole pass."""
    odd = []
    while x.shape[0] > 1:
        half, is_odd = divmod(x.shape[0], 2)
        odd += [x[-1]] * is_odd
        x = x[:half] + x[half : 2 * half]
    return sum(odd, start=x[0])


def _add_product(
    formula: LinearFormula, verbs: Verbs, total: Tensor, x: Tensor, gradient: Tensor
) -> Tensor:
    """`total + x.T @ gradient`, in place, a block of columns at a time."""
    width, classes = formula.plan.columns, formula.plan.vocabulary
    axis = 0 if formula.transposed else 1
    x = ops.transpose(ops.cast(x, gradient.dtype))

    def added(start: Any, width: int, total: Tensor) -> Tensor:
        product = verbs.matmul(x, block_of(gradient, start, width, axis=1))
        if formula.transposed:
            product = ops.transpose(product)
        at = (start, 0) if formula.transposed else (0, start)
        before = block_of(total, start, width, axis)
        return ops.slice_update(total, at, before + product)

    return fold_blocks(added, total, classes, width)
