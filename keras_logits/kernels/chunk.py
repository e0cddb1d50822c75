"""One chunk of tokens of the fused pass, which goes over the classes twice.

First the logits are summed over the classes. Then each block of them becomes a block of
the gradient, which is multiplied by features and kernel while it is in the cache. All
that is held of a chunk as a whole is the product of its features and the kernel.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.blocks import block_of, fold_blocks
from keras_logits.maths.figures import come_before, of_classes
from keras_logits.maths.softmax import Positions, SoftmaxFormula
from keras_logits.maths.squash import Squash
from keras_logits.maths.sums import Sums, merged, of_no_classes


class Verbs(NamedTuple):
    """What `keras.ops` cannot say, from the backend's own file."""

    matmul: Callable[[Tensor, Tensor], Tensor]  # accumulates in float32
    add_rows: Callable[[Tensor, Tensor, Tensor], Tensor]  # into[rows] += values


GradientOf = Callable[[Tensor, Any, int], Tensor]
"""The gradient by a block of logits, from where the block begins and its width."""


class Label(NamedTuple):
    """The logit and the class of each token's label, `[tokens, 1]`."""

    logit: Tensor
    id: Tensor


class Scores(NamedTuple):
    """Products of features and kernel, or the logits that they became."""

    values: Tensor
    are_logits: bool = False


class Classes(NamedTuple):
    """What belongs to each class, as much of it as is taken at a time."""

    kernel: Tensor
    transposed: bool
    bias: Tensor | None
    squash: Squash
    weights: Tensor | None
    vocabulary: int
    columns: int

    def whole_kernel(self) -> Tensor:
        return ops.transpose(self.kernel) if self.transposed else self.kernel

    def kernel_of(self, start: Any, width: int) -> Tensor:
        """The kernel of a block, `[width, D]`."""
        block = block_of(self.kernel, start, width, 0 if self.transposed else 1)
        return block if self.transposed else ops.transpose(block)

    def logits(self, scores: Scores) -> Tensor:
        return self._logits(scores, scores.values, self.bias)

    def logits_of(self, scores: Scores, start: Any, width: int) -> Tensor:
        """The logits of a block."""
        block = block_of(scores.values, start, width, axis=1)
        return self._logits(scores, block, _of_block(self.bias, start, width))

    def logits_at(self, scores: Scores, ids: Tensor) -> Tensor:
        """The logits of one class for each token, `[tokens, 1]`."""
        bias = None if self.bias is None else ops.take(self.bias, ids)
        values = ops.take_along_axis(scores.values, ids, axis=1)
        return self._logits(scores, values, bias)

    def _logits(self, scores: Scores, values: Tensor, bias: Tensor | None) -> Tensor:
        return values if scores.are_logits else self.squash.of_products(values, bias)

    def ids_of(self, start: Any, width: int) -> Tensor:
        return (start + ops.arange(width, dtype="int32"))[None, :]

    def weights_of(self, start: Any, width: int) -> Tensor | None:
        return _of_block(self.weights, start, width)


OF_CLASSES = {"kernel", "bias"}
"""What all chunks add to; the rest that is found has a row for each token."""


def evaluated(
    classes: Classes,
    softmax: SoftmaxFormula,
    names: tuple[str, ...],
    verbs: Verbs,
    x: Tensor,
    labels: Tensor,
    weights: Tensor,
    begun: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Losses, the named figures, and the gradients that were begun."""
    products = verbs.matmul(x, classes.whole_kernel())
    scores, sums = _summed(classes, softmax, products, entropy=bool(names))
    true = softmax.true_classes(labels)
    label = Label(classes.logits_at(scores, true), true)
    logits = classes.logits(scores)  # of which most formulas read nothing
    if softmax.closed:
        found = softmax.positions(labels, label.logit, weights, sums, classes.weights)
        losses, gradient_of = found.losses, _by_block(classes, softmax, found)
    else:
        losses, gradient = softmax.evaluate(labels, logits, weights, classes.weights)
        gradient_of = _out_of(gradient)
    if names:
        begun = {**begun, "rank": ops.zeros_like(label.logit)}
    if begun:
        begun = _carried_back(classes, verbs, x, scores, gradient_of, label, begun)
    if names:
        rank = begun.pop("rank")
        seen = of_classes(softmax, names, labels, logits, label.logit, sums, rank)
        begun["figures"] = seen
    return {**begun, "losses": losses}


def _by_block(
    classes: Classes, softmax: SoftmaxFormula, found: Positions
) -> GradientOf:
    def gradient_of(z: Tensor, start: Any, width: int) -> Tensor:
        weights = classes.weights_of(start, width)
        return softmax.gradient(found, z, classes.ids_of(start, width), weights)

    return gradient_of


def _out_of(gradient: Tensor) -> GradientOf:
    return lambda z, start, width: block_of(gradient, start, width, axis=1)


def _summed(
    classes: Classes, softmax: SoftmaxFormula, products: Tensor, entropy: bool
) -> tuple[Scores, Sums]:
    """The sums of the logits over the classes.

    A soft-cap is too slow to be computed again, and is left in place of the products.
    A bias alone must not be: XLA adds it in each operation that reads the block, among
    them the one that overwrites it, and would copy all products to keep them apart.
    """
    in_place = classes.squash.softcap is not None

    def sums_of(z: Tensor, start: Any, width: int) -> Sums:
        return softmax.sums(z, classes.weights_of(start, width), entropy=entropy)

    def add(start: Any, width: int, carry: tuple[Tensor, Sums]) -> tuple[Tensor, Sums]:
        values, sums = carry
        z = classes.logits_of(Scores(values), start, width)
        if in_place:
            values = ops.slice_update(values, (0, start), z)
        return values, merged(sums, sums_of(z, start, width))

    none = of_no_classes(sums_of(block_of(products, 0, 1, axis=1), 0, 1))
    begun = (products, none)
    values, sums = fold_blocks(add, begun, classes.vocabulary, classes.columns)
    return Scores(values, in_place), sums


def _carried_back(
    classes: Classes,
    verbs: Verbs,
    x: Tensor,
    scores: Scores,
    gradient_of: GradientOf,
    label: Label,
    totals: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The totals that are given, with what this chunk adds to them.

    They are the gradients that somebody wants, and for figures the rank of the label.
    """
    along = ops.transpose(ops.cast(x, scores.values.dtype))

    def add(start: Any, width: int, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        z = classes.logits_of(scores, start, width)
        gradient = classes.squash.times_slope(gradient_of(z, start, width), z)
        totals = dict(totals)
        if "rank" in totals:
            before = come_before(z, classes.ids_of(start, width), *label)
            before = ops.sum(before, axis=1, keepdims=True)
            totals["rank"] = totals["rank"] + before
        if "features" in totals:
            back = verbs.matmul(gradient, classes.kernel_of(start, width))
            totals["features"] = totals["features"] + back
        if "kernel" in totals:
            product = verbs.matmul(along, gradient)
            product = ops.transpose(product) if classes.transposed else product
            axis = 0 if classes.transposed else 1
            totals["kernel"] = _added(totals["kernel"], product, start, axis)
        if "bias" in totals:
            totals["bias"] = _added(totals["bias"], _sum_of_rows(gradient), start, 0)
        return totals

    sizes = (classes.vocabulary, classes.columns)
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


def _sum_of_rows(x: Tensor) -> Tensor:
    """By halves: the sum of XLA's CPU compiler took a quarter of the whole pass."""
    odd = []
    while x.shape[0] > 1:
        half, is_odd = divmod(x.shape[0], 2)
        odd += [x[-1]] * is_odd
        x = x[:half] + x[half : 2 * half]
    return sum(odd, start=x[0])
