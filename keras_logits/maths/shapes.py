"""What can be known of a tensor's shape before it has values."""

from collections.abc import Sequence

from keras import ops

from keras_logits._typing import Tensor

Shape = tuple[int | None, ...]


def static_shape(tensor: Tensor) -> Shape | None:
    """The shape with None for unknown sizes; None where even the rank is unknown."""
    shape = tensor.shape
    if getattr(shape, "rank", 0) is None:
        return None
    # JAX has names, and no numbers, for sizes that are not known yet.
    return tuple(size if isinstance(size, int) else None for size in shape)


def sizes(tensor: Tensor) -> list[Tensor]:
    """The shape, with symbolic sizes where they are not known yet."""
    if hasattr(tensor, "sizes"):  # a recipe for logits, which are never made
        return list(tensor.sizes())
    return list(ops.shape(tensor))


def agree(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    """Whether two shapes can be equal, as far as their sizes are known."""
    return len(one) == len(other) and all(
        a is None or b is None or a == b for a, b in zip(one, other, strict=True)
    )


def without(shape: Shape, axis: int) -> Shape:
    """The shape less one axis."""
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def fixed(shape: Sequence[Tensor], axis: int) -> list[Tensor]:
    """The (possibly symbolic) sizes of a shape less one axis."""
    sizes = list(shape)
    del sizes[axis]
    return sizes


def checked_axis(axis: int, shape: Sequence[int | None]) -> int:
    """The axis as a position from the left, if logits of this shape have it."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            "`axis` must be an axis of the logits.\n"
            f"Received: axis={axis} and logits of shape {tuple(shape)}\n"
            "Fix: axis=-1, if the classes are on the last axis."
        )
    return int(axis) % len(shape)


def number_of_features(input_shape: Sequence[int | None]) -> int:
    size = tuple(input_shape)[-1]
    if size is None:
        raise ValueError(
            "`inputs` must have a known last size, the number of features.\n"
            f"Received: shape {tuple(input_shape)}\n"
            "Fix: keras.Input((number_of_features,))"
        )
    return int(size)
