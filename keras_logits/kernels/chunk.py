"""One chunk of tokens of the fused pass, which goes over the classes twice.

First each block of logits is made, summed over the classes, and put aside. Then it
becomes a block of the gradient, which is multiplied by features and kernel while it is
in the cache. All that is held of a chunk as a whole is its logits. (On an accelerator
there is one block, and so the gradient is held as well.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.kernels.kept import Kept, Label, rank_of
from keras_logits.kernels.plan import Plan
from keras_logits.maths.blocks import block_of, fold_blocks, ids_of
from keras_logits.maths.figures import of_classes
from keras_logits.maths.links import accurate_dtype
from keras_logits.maths.softmax import Positions, SoftmaxFormula
from keras_logits.maths.squash import Squash
from keras_logits.maths.sums import Sums, are_open, merged, of_no_classes


class Verbs(NamedTuple):
    """What `keras.ops` cannot say, from the backend's own file."""

    matmul: Callable[[Tensor, Tensor], Tensor]  # accumulates in float32
    factor_dtype: Callable[[Any], str]  # of gradients in products, by that of features
    add_rows: Callable[[Tensor, Tensor, Tensor], Tensor]  # into[rows] += values


GradientOf = Callable[[Tensor, Any, int], Tensor]
"""The gradient by a block of logits, from where the block begins and its width."""


class Classes(NamedTuple):
    """What belongs to each class, as much of it as is taken at a time."""

    kernel: Tensor
    transposed: bool
    bias: Tensor | None
    squash: Squash
    weights: Tensor | None
    plan: Plan

    def kernel_of(self, start: Any, width: int) -> Tensor:
        """The kernel of a block, `[D, width]`."""
        block = block_of(self.kernel, start, width, 0 if self.transposed else 1)
        return ops.transpose(block) if self.transposed else block

    def logits_of(self, products: Tensor, start: Any, width: int) -> Tensor:
        """The logits of a block, from the products of features and kernel."""
        bias = _of_block(self.bias, start, width)
        # Not in blocks is on an accelerator, where the quotient costs more.
        as_quotient = self.plan.in_blocks
        return self.squash.of_products(products, bias, as_quotient=as_quotient)

    def place_for_logits(self) -> Tensor:
        """What `Kept.whole` is to be written into. Its values are read by nobody.

        They are not constants, of which TensorFlow would make such an array beside the
        program while it compiles it, and keep the memory.
        """
        plan, dtype = self.plan, accurate_dtype(self.kernel.dtype)
        blocks = (plan.vocabulary // plan.columns, plan.chunk, plan.columns)
        return ops.full(blocks, ops.cast(self.kernel[0, 0], dtype), dtype=dtype)

    def known_of(self, start: Any, width: int) -> tuple[Tensor | None, Tensor]:
        """Class weights, and which classes are open, before there are logits.

        A class is masked by its bias. What else makes a logit -inf, a product out of
        range, makes a smoothed loss infinite.
        """
        none = ops.zeros((width,), dtype=accurate_dtype(self.kernel.dtype))
        is_open = are_open(self.logits_of(none, start, width))
        return _of_block(self.weights, start, width), is_open


LOGITS = "logits"
"""Where a chunk puts its logits, in place of those of the chunk before."""

HANDED_ON = {"kernel", "bias", LOGITS}
"""What goes from chunk to chunk; the rest that is found has a row for each token."""


def evaluated(
    classes: Classes,
    softmax: SoftmaxFormula,
    names: tuple[str, ...],
    verbs: Verbs,
    x: Tensor,
    labels: Tensor,
    weights: Tensor,
    begun: dict[str, Tensor],
    known: Tensor | None = None,
) -> dict[str, Tensor]:
    """Losses, the named figures, and the gradients that were begun.

    Logits that are known are not computed from the features. Without a place for its
    logits the chunk is gone over once, which is enough for the losses of a closed
    formula.
    """
    totals, true = dict(begun), softmax.true_classes(labels)
    place = totals.pop(LOGITS, None)

    def logits_of(start: Any, width: int) -> Tensor:
        if known is not None:
            return block_of(known, start, width, axis=1)
        products = verbs.matmul(x, classes.kernel_of(start, width))
        return classes.logits_of(products, start, width)

    kept, sums, own = _summed(
        classes, softmax, logits_of, true, place, watched=bool(names)
    )
    if softmax.closed:
        found = softmax.positions(labels, own, weights, sums, classes.weights)
        losses, gradient_of = found.losses, _by_block(classes, softmax, found)
    else:
        evaluate = softmax.evaluate
        losses, gradient = evaluate(labels, kept.joined(), weights, classes.weights)
        gradient_of = _out_of(gradient)
    if totals:
        totals = _carried_back(classes, verbs, x, kept, gradient_of, totals)
    if names:
        rank, logits = rank_of(Label(own, true), kept), kept.joined()
        seen = of_classes(softmax, names, labels, logits, own, sums, rank)
        totals["figures"] = seen
    if place is not None:
        totals[LOGITS] = kept.whole
    return {**totals, "losses": losses}


def _by_block(
    classes: Classes, softmax: SoftmaxFormula, found: Positions
) -> GradientOf:
    def gradient_of(z: Tensor, start: Any, width: int) -> Tensor:
        ids = ids_of(start, width)
        return softmax.gradient(found, z, ids, *classes.known_of(start, width))

    return gradient_of


def _out_of(gradient: Tensor) -> GradientOf:
    return lambda z, start, width: block_of(gradient, start, width, axis=1)


def _summed(
    classes: Classes,
    softmax: SoftmaxFormula,
    logits_of: Callable[[Any, int], Tensor],
    true: Tensor,
    place: Tensor | None,
    *,
    watched: bool,
) -> tuple[Kept, Sums, Tensor]:
    """The logits, if there is a place for them; their sums; those of true classes."""
    columns = classes.plan.columns

    def sums_of(z: Tensor, start: Any, width: int) -> Sums:
        return softmax.sums(z, *classes.known_of(start, width), entropy=watched)

    def add(start: Any, width: int, carry: dict[str, Any]) -> dict[str, Any]:
        z = logits_of(start, width)
        carry, sums = dict(carry), sums_of(z, start, width)
        if width < columns:
            carry["rest"] = z
        elif "whole" in carry:
            block, peaks = start // columns, carry.get("peaks")
            carry["whole"] = ops.slice_update(carry["whole"], (block, 0, 0), z[None])
            if peaks is not None:
                highest = sums["highest"]
                carry["peaks"] = ops.slice_update(peaks, (0, block), highest)
        column = true - start
        here = ops.logical_and(column >= 0, column < width)
        own = ops.take_along_axis(z, ops.clip(column, 0, width - 1), axis=1)
        carry["own"] = ops.where(here, own, carry["own"])
        carry["sums"] = merged(carry["sums"], sums)
        return carry

    tokens, dtype = true.shape[0], accurate_dtype(classes.kernel.dtype)
    own = ops.zeros((tokens, 1), dtype=dtype)
    carry = {"own": own, "sums": of_no_classes(sums_of(own, 0, 1))}
    if place is not None:
        carry["whole"] = place
    if watched:
        blocks = classes.plan.vocabulary // columns
        carry["peaks"] = ops.zeros((tokens, blocks), dtype=own.dtype)
    found = fold_blocks(add, carry, classes.plan.vocabulary, columns)
    kept = Kept(*(found.get(name) for name in Kept._fields))
    return kept, found["sums"], found["own"]


def _carried_back(
    classes: Classes,
    verbs: Verbs,
    x: Tensor,
    kept: Kept,
    gradient_of: GradientOf,
    totals: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The gradients that are given, with what this chunk adds to them."""
    dtype = verbs.factor_dtype(x.dtype)
    along = ops.transpose(ops.cast(x, dtype))

    def add(start: Any, width: int, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        z = kept.block(start, width)
        gradient = classes.squash.times_slope(gradient_of(z, start, width), z)
        factor = ops.cast(gradient, dtype)
        totals = dict(totals)
        if "features" in totals:
            back = verbs.matmul(factor, ops.transpose(classes.kernel_of(start, width)))
            totals["features"] = totals["features"] + back
        if "kernel" in totals:
            product = verbs.matmul(along, factor)
            product = ops.transpose(product) if classes.transposed else product
            axis = 0 if classes.transposed else 1
            totals["kernel"] = _added(totals["kernel"], product, start, axis)
        if "bias" in totals:
            rows = ops.sum(gradient, axis=0)
            totals["bias"] = _added(totals["bias"], rows, start, 0)
        return totals

    sizes = (classes.plan.vocabulary, classes.plan.columns)
    found: dict[str, Tensor] = fold_blocks(add, totals, *sizes)
    return found


def _added(total: Tensor, block: Tensor, start: Any, axis: int) -> Tensor:
    """The total, with a block added in place."""
    before = block_of(total, start, block.shape[axis], axis)
    at = [0] * len(total.shape)
    at[axis] = start
    return ops.slice_update(total, at, before + block)


def _of_block(values: Tensor | None, start: Any, width: int) -> Tensor | None:
    return None if values is None else block_of(values, start, width, axis=0)
