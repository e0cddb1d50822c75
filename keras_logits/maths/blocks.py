"""Going over classes a block at a time, so that nothing as large as the logits is held.

XLA holds what it sums as an array. A loop, because XLA would compute blocks that are
merely written one after the other all at once.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_logits._typing import Tensor


def fold_blocks(
    step: Callable[[Any, int, Any], Any], carry: Any, size: int, width: int
) -> Any:
    """`carry = step(start, width, carry)` for each block, the last of what is left."""
    width = min(width, size)
    blocks, rest = divmod(size, width)
    carry = ops.fori_loop(0, blocks, lambda j, c: step(j * width, width, c), carry)
    return step(blocks * width, rest, carry) if rest else carry


def ids_of(start: Any, width: int) -> Tensor:
    """The classes of a block."""
    return start + ops.arange(width, dtype="int32")


def block_of(values: Tensor, start: Any, width: int, axis: int) -> Tensor:
    """The values from `start` on along an axis."""
    at = [0] * len(values.shape)
    at[axis] = start
    shape = list(ops.shape(values))
    shape[axis] = width
    return ops.slice(values, at, shape)
