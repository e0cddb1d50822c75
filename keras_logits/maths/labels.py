"""Labels: which form they have, whether they are good, and what is wrong with them.

Labels are class ids or distributions over the classes. Their shape tells which, and
nothing else does. They stay integers to the end: a float of half precision would turn
class 1025 into class 1024.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.shapes import (
    Shape,
    agree,
    fixed,
    sizes,
    static_shape,
    without,
)


def as_labels(labels: Tensor) -> Tensor:
    """Labels as a tensor; integers of any width as int32 or int64, never as floats."""
    _check_dense(labels)
    of_tensors = isinstance(labels, (list, tuple)) and any(map(ops.is_tensor, labels))
    if labels is None or isinstance(labels, (list, tuple, np.ndarray)):
        labels = labels if of_tensors else _as_numbers(labels)
    labels = ops.convert_to_tensor(labels)
    dtype = str(labels.dtype).rpartition(".")[2]
    if "complex" in dtype or "string" in dtype:
        raise ValueError(_no_numbers(dtype))
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if keras.backend.is_float_dtype(dtype) or dtype == "int64":
        return labels
    if dtype not in ("uint32", "uint64"):
        return ops.cast(labels, "int32")
    # What int64 is on JAX is told elsewhere.
    return ops.cast(labels, ops.convert_to_tensor(np.zeros((), "int64")).dtype)


def _check_dense(labels: Any) -> None:
    """Refuses labels that are ragged or sparse, of any framework."""
    kind, module = type(labels).__name__, type(labels).__module__
    ragged = "Ragged" in kind or getattr(labels, "is_nested", False) is True
    layout = str(getattr(labels, "layout", ""))  # torch tells it there
    if not ragged and "sparse" not in module + layout:
        return
    form = "ragged" if ragged else "sparse"
    fix = "tf.sparse.to_dense(labels), or labels.to_dense() in torch."
    if ragged:
        fix = "labels.to_tensor(-1), or pad them with -1, and ignore_index=-1."
    raise ValueError(
        "`labels` must be dense. Ragged and sparse labels are not supported.\n"
        f"Received: labels that are {form}, a {kind}\n"
        f"Fix: {fix}"
    )


def _as_numbers(labels: Any) -> np.ndarray:
    try:
        array = np.asarray(labels)
    except ValueError:  # lists of unlike lengths
        raise ValueError(_no_numbers("lists of unlike lengths")) from None
    if array.dtype.kind in "OSUc":
        raise ValueError(_no_numbers(array.dtype))
    if array.dtype.kind in "iu" and array.itemsize == 8:
        # JAX would wrap what int32 does not hold, to a class that may exist.
        bounds = np.iinfo("int32")
        array = array.clip(bounds.min, bounds.max).astype("int32")
    return array


def _no_numbers(received: object) -> str:
    return (
        "`labels` must be numbers: class ids, or distributions over the classes.\n"
        f"Received: {received}\n"
        "Fix: np.unique(labels, return_inverse=True)[1], to number named classes."
    )


def is_float(tensor: Tensor) -> bool:
    return bool(
        keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype))
    )


def class_labels(labels: Tensor, logits: Tensor, axis: int) -> tuple[Tensor, bool]:
    """Labels in the shape that their form has, and whether they are class ids.

    Returns:
        Class ids `[...]` and True, or distributions of the logits' shape and False.
    """
    labels = as_labels(labels)
    shape, expected = static_shape(labels), known_rank(logits)
    if shape is None:
        return _of_unknown_rank(labels, logits, axis)
    position = axis % len(expected)
    ids_shape = without(expected, axis)
    column = (*ids_shape[:position], 1, *ids_shape[position:])

    may_be_ids = agree(shape, column)
    if agree(shape, expected) and not (
        may_be_ids and (shape[position] != expected[position] or not is_float(labels))
    ):
        return labels, False
    if may_be_ids and shape[position] == 1:
        return ops.squeeze(labels, axis=axis), True
    if agree(shape, ids_shape):
        return labels, True
    if may_be_ids or agree(shape, expected):
        return _of_unknown_rank(labels, logits, axis)
    raise ValueError(
        f"`labels` must be class ids of shape {ids_shape} (or with size 1 on the class "
        f"axis), or distributions over the classes of shape {expected}.\n"
        f"Received: labels of shape {shape} and logits of shape {expected}, with "
        f"axis={axis}\n"
        f"Fix: {_fix(shape, expected, position)}"
    )


def unit_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels of independent units, in the shape of the logits: never broadcast."""
    labels = as_labels(labels)
    shape, expected = static_shape(labels), known_rank(logits)
    if shape is None:
        return ops.reshape(labels, ops.shape(logits))
    if agree(shape, expected):
        return labels
    missing, extra = agree((*shape, 1), expected), agree(shape, (*expected, 1))
    if (missing and expected[-1] == 1) or (extra and shape[-1] == 1):
        return ops.reshape(labels, ops.shape(logits))
    raise ValueError(
        "`labels` must have the shape of the logits, one label for each unit.\n"
        f"Received: labels of shape {shape} and logits of shape {expected}\n"
        "Fix: SoftmaxCrossEntropy() and LogitsHead(number_of_classes), if the labels "
        "are class ids."
    )


def valid_class_ids(labels: Tensor, classes: Any) -> tuple[Tensor, Tensor]:
    """Class ids as int32, 0 where they are bad, and whether each is good."""
    if not isinstance(classes, int):  # a size that only the step knows
        classes = ops.cast(classes, labels.dtype)
    valid = ops.logical_and(labels >= 0, labels < classes)
    if is_float(labels):
        valid = ops.logical_and(valid, ops.equal(labels, ops.floor(labels)))
    return ops.cast(ops.where(valid, labels, ops.zeros_like(labels)), "int32"), valid


def known_rank(logits: Tensor) -> Shape:
    shape = static_shape(logits)
    if shape is None or not shape:
        raise ValueError(
            "`logits` must have at least one axis, and a known rank.\n"
            f"Received: shape {'unknown' if shape is None else shape}\n"
            "Fix: logits = keras.ops.reshape(logits, (-1, number_of_classes))"
        )
    return shape


def _fix(shape: Shape, expected: Shape, axis: int) -> str:
    ids_shape = without(expected, axis)
    if len(shape) == len(expected) and agree(without(shape, axis), ids_shape):
        return f"LogitsHead({shape[axis]}), if there are that many classes."
    return f"labels of shape {ids_shape}, or axis=... if classes are on another axis."


def _of_unknown_rank(labels: Tensor, logits: Tensor, axis: int) -> tuple[Tensor, bool]:
    # Generators, and traces that Keras relaxed after (B,) and then (B, 1), hide the
    # rank. The reshape fails at run time if the number of labels does not fit.
    if is_float(labels):
        return ops.reshape(labels, sizes(logits)), False
    return ops.reshape(labels, fixed(sizes(logits), axis)), True
