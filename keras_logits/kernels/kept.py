"""The logits of a chunk, kept block by block, and the rank of a label among them.

The rank is found without going over all classes once more. The highest logit of each
block is known from the sums, and a block that reaches the label's logit holds at least
one class before it: as many such blocks as decide about the rank are read again.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.blocks import block_of, ids_of
from keras_logits.maths.figures import FIRST, come_before


class Label(NamedTuple):
    """The logit and the class of each token's label, `[tokens, 1]`."""

    logit: Tensor
    id: Tensor


class Kept(NamedTuple):
    """The logits of a chunk, each block of them in one piece of memory."""

    whole: Tensor  # [blocks, tokens, columns]; None where there is no place for them
    rest: Tensor | None  # of the classes that are left, if any are
    peaks: Tensor | None  # the highest of each block, [tokens, blocks], for figures

    def block(self, start: Any, width: int) -> Tensor:
        columns = self.whole.shape[-1]
        if width < columns:
            return self.rest
        return ops.squeeze(block_of(self.whole, start // columns, 1, axis=0), 0)

    def joined(self) -> Tensor:
        """The logits, `[tokens, classes]`."""
        tokens = self.whole.shape[1]
        whole = ops.reshape(ops.transpose(self.whole, (1, 0, 2)), (tokens, -1))
        return whole if self.rest is None else ops.concatenate([whole, self.rest], 1)

    def of_tokens(self, blocks: Tensor) -> Tensor:
        """The logits of each token in a block of its own, `[tokens, columns]`."""
        _, tokens, columns = self.whole.shape
        rows = ops.reshape(self.whole, (-1, columns))
        return ops.take(
            rows, blocks * tokens + ops.arange(tokens, dtype="int32"), axis=0
        )


def rank_of(label: Label, kept: Kept) -> Tensor:
    """How many classes come before the label's: exact, or at least `FIRST`."""
    blocks, _, columns = kept.whole.shape
    own_block = label.id // columns
    ahead = come_before(kept.peaks, ids_of(0, blocks), label.logit, own_block)
    # The label's own block is read for certain, whether or not a class in it is ahead.
    ahead = ops.where(ops.equal(ids_of(0, blocks), own_block), 2.0, ahead)
    reads = min(FIRST + 1, blocks)
    _, which = ops.top_k(ahead, reads)
    which = ops.cast(which, "int32")

    def add(i: Tensor, rank: Tensor) -> Tensor:
        block = ops.squeeze(block_of(which, i, 1, axis=1), 1)
        ids = ids_of(block[:, None] * columns, columns)
        return rank + _count(come_before(kept.of_tokens(block), ids, *label))

    rank = ops.fori_loop(0, reads, add, ops.zeros_like(label.logit))
    if kept.rest is None:
        return rank
    ids = ids_of(blocks * columns, kept.rest.shape[1])
    return rank + _count(come_before(kept.rest, ids, *label))


def _count(ones: Tensor) -> Tensor:
    return ops.sum(ones, axis=1, keepdims=True)
