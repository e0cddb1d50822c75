"""What a softmax needs to know of all of its classes.

Sums of some classes merge with those of others, so that logits can be read a block of
classes at a time, as they are made. XLA holds what it sums over many classes as an
array; in blocks it holds one of them.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.blocks import block_of, fold_blocks
from keras_logits.maths.shapes import static_shape

BLOCK = 2048  # classes that are summed together

SCALE = 2.0**-20
"""What keeps a sum of logits finite whose mean is. A power of two rounds nothing."""

Sums = dict[str, Tensor]
"""Of each position, along the axis of the classes:

    highest  the highest logit; -inf where every class is masked
    total    sum of exp(z - highest)
    drop     sum of exp(z - highest) * (z - highest), for the entropy
    count    how many classes are open, which is: not masked by -inf; for smoothing
    share    sum of the class weights of the open classes, if there are any
    drawn    sum over the open classes of the class weight times z - highest, times
             SCALE
"""


def sums_of(
    z: Tensor,
    axis: int,
    columns: Tensor | None = None,
    *,
    smoothed: bool = False,
    entropy: bool = False,
    open_classes: Tensor | None = None,
) -> Sums:
    """The sums of logits, with class weights that broadcast with them.

    Of one block of classes it may be known which are open: `open_classes` spares a look
    at each logit, and blocks within the block.
    """
    block = BLOCK if open_classes is None else z.shape[axis]
    highest = highest_of(z, axis)
    shift = finite(highest)
    exp = ops.exp(z - shift)
    sums = {"highest": highest, "total": ops.sum(exp, axis=axis, keepdims=True)}

    def drop(z: Tensor) -> Tensor:
        exp = ops.exp(z - shift)
        return ops.where(exp > 0, exp * (z - shift), ops.zeros_like(z))

    def where_open(z: Tensor, values: Tensor) -> Tensor:
        is_open = are_open(z, open_classes)
        return ops.where(is_open, values, ops.zeros((), dtype=z.dtype))

    def scaled_gap(z: Tensor) -> Tensor:
        # TensorFlow would take out a factor that both terms share, and overflow.
        return SCALE * z + -SCALE * shift

    def over_classes(terms: Callable[..., Tensor]) -> Tensor:
        wide = (z,) if columns is None else (z, columns)
        return sum_over_classes(terms, axis, *wide, block=block)

    if entropy:
        sums["drop"] = sum_over_classes(drop, axis, z, block=block)
    if smoothed:
        one = ops.ones((), dtype=z.dtype)
        sums["count"] = sum_over_classes(
            lambda z: where_open(z, one), axis, z, block=block
        )
        sums["drawn"] = over_classes(lambda z, c=1.0: where_open(z, c * scaled_gap(z)))
        if columns is not None:
            sums["share"] = over_classes(lambda z, c: where_open(z, c))
    return sums


def highest_of(z: Tensor, axis: int) -> Tensor:
    # torch.compile cannot follow `ops.max`.
    return ops.stop_gradient(ops.amax(z, axis=axis, keepdims=True))


def are_open(z: Tensor, known: Tensor | None = None) -> Tensor:
    """Which classes are not masked: by their logits, unless it is known already."""
    return ops.not_equal(z, -float("inf")) if known is None else known


def merged(one: Sums, other: Sums) -> Sums:
    """The sums over the classes of both."""
    highest = ops.maximum(one["highest"], other["highest"])
    one, other = _moved(one, highest), _moved(other, highest)
    return {"highest": highest, **{name: one[name] + other[name] for name in one}}


def of_no_classes(like: Sums) -> Sums:
    """What any sums merge with to themselves."""
    none = {name: ops.zeros_like(values) for name, values in like.items()}
    return {**none, "highest": ops.full_like(like["highest"], -float("inf"))}


def _moved(sums: Sums, highest: Tensor) -> Sums:
    """All but the highest logit, relative to a higher one."""
    was = sums["highest"]
    step = ops.where(ops.equal(was, -float("inf")), ops.zeros_like(was), was - highest)
    scale = ops.exp(step)
    moved = {**sums, "total": scale * sums["total"]}
    del moved["highest"]
    if "drop" in sums:
        drop = scale * (sums["drop"] + step * sums["total"])
        # The step may be as large as floats get, and its product infinite.
        moved["drop"] = ops.where(scale > 0, drop, ops.zeros_like(drop))
    if "drawn" in sums:
        step = ops.where(
            ops.equal(was, -float("inf")),
            ops.zeros_like(was),
            SCALE * was + -SCALE * highest,
        )
        moved["drawn"] = sums["drawn"] + step * sums.get("share", sums["count"])
    return moved


def finite(highest: Tensor) -> Tensor:
    """What logits are shifted by: 0 where every class is masked."""
    empty = ops.equal(highest, -float("inf"))
    return ops.where(empty, ops.zeros_like(highest), highest)


def sum_over_classes(
    terms: Callable[..., Tensor], axis: int, *wide: Tensor, block: int = BLOCK
) -> Tensor:
    """The sum over the classes of `terms(*wide)`, which nobody differentiates."""
    shape = static_shape(wide[0])
    classes = None if shape is None else shape[axis]

    def add(start: Any, width: int, total: Tensor) -> Tensor:
        part = [block_of(x, start, width, axis) for x in wide]
        return total + ops.sum(terms(*part), axis=axis, keepdims=True)

    if classes is None or classes <= block:
        return ops.sum(terms(*wide), axis=axis, keepdims=True)
    first = [block_of(x, 0, 1, axis) for x in wide]
    none = ops.zeros_like(terms(*first))
    return ops.stop_gradient(fold_blocks(add, none, classes, block))
