"""The logits of a chunk, kept block by block, and the rank of a label among them.

The rank is found without going over all classes once more. The highest logit of each
block is known from the sums, and a block that reaches the label's logit holds at least
one class before it. Where `FIRST` blocks do, no more need be known; for other tokens
these few and the label's own are read again.
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

    def of_tokens(self, tokens: Tensor, blocks: Tensor) -> Tensor:
        """The logits of tokens, each in a block of its own, `[tokens, columns]`."""
        _, chunk, columns = self.whole.shape
        rows = ops.reshape(self.whole, (-1, columns))
        return ops.take(rows, blocks * chunk + tokens, axis=0)


def rank_of(label: Label, kept: Kept) -> Tensor:
    """How many classes come before the label's: exact, or at least `FIRST`."""
    blocks, _, columns = kept.whole.shape
    own_block, ids = label.id // columns, ids_of(0, blocks)
    ahead = come_before(kept.peaks, ids, label.logit, own_block)
    late = _count(ahead) >= FIRST
    # The label's own block is read for certain, whether or not a class in it is ahead.
    asked = ops.where(ops.equal(ids, own_block), 1.0, ahead)
    rank = _count_in_blocks(ops.where(late, 0.0, asked), label, kept)
    rank = rank + FIRST * ops.cast(late, rank.dtype)
    if kept.rest is None:
        return rank
    ids = ids_of(blocks * columns, kept.rest.shape[1])
    return rank + _count(come_before(kept.rest, ids, *label))


def _count_in_blocks(asked: Tensor, label: Label, kept: Kept) -> Tensor:
    """How many classes come before the label's in its `FIRST` blocks that are asked."""
    blocks, tokens, columns = kept.whole.shape
    most = min(FIRST, blocks)
    asked, which = (ops.reshape(x, (-1,)) for x in ops.top_k(asked, most))
    # Blocks that are asked, of whatever tokens, come first, and the loop ends there. Of
    # others it may read some, which hold nothing that counts, or are of a late token.
    order = ops.argsort(-asked)

    def add(i: Tensor, counts: Tensor) -> Tensor:
        place = block_of(order, i * tokens, tokens, axis=0)
        token, block = place // most, ops.cast(ops.take(which, place), "int32")
        of_token = Label(*(ops.take(values, token, axis=0) for values in label))
        ids = ids_of(block[:, None] * columns, columns)
        count = _count(come_before(kept.of_tokens(token, block), ids, *of_token))
        return counts + ops.segment_sum(count, token, tokens)

    rounds = (ops.cast(ops.sum(asked), "int32") + tokens - 1) // tokens
    return ops.fori_loop(0, rounds, add, ops.zeros_like(label.logit))


def _count(ones: Tensor) -> Tensor:
    return ops.sum(ones, axis=1, keepdims=True)
