"""What a user may ask of a loss, checked when it is asked."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from keras import ops

from keras_logits import kernels
from keras_logits._typing import ClassWeight, Tensor
from keras_logits.maths.weights import LARGEST, check_class_weight, shown

SMALLEST = float(np.finfo("float32").tiny)
"""What divides has to be at least that, or it would be 0 in float32."""


def check_number(name: str, value: Any, highest: float = LARGEST) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= highest:
        upper = "finite" if highest == LARGEST else f"at most {highest:g}"
        raise ValueError(
            f"`{name}` must be a number, at least 0 and {upper}.\n"
            f"Received: {name}={shown(value)}\n"
            f"Fix: {name}=0.0, to turn it off."
        )
    return float(value)


def check_positive(name: str, value: Any, optional: bool = False) -> None:
    if value is None and optional:
        return
    number = isinstance(value, Real) and not isinstance(value, bool)
    if number and SMALLEST <= value <= LARGEST:
        return
    neutral = "None" if optional else "1.0"
    raise ValueError(
        f"`{name}` must be a finite number above 0.\n"
        f"Received: {name}={shown(value)}\n"
        f"Fix: {name}={neutral}, to turn it off."
    )


def check_memory_budget(memory_budget: Any) -> None:
    if memory_budget is None:
        return
    whole = isinstance(memory_budget, int) and not isinstance(memory_budget, bool)
    if not whole or memory_budget < 1:
        raise ValueError(
            "`memory_budget` must be a whole number of bytes, or None.\n"
            f"Received: memory_budget={memory_budget!r}\n"
            "Fix: memory_budget=2**28, for 256 MiB."
        )


def check_linear(
    features: Tensor, kernel: Tensor, bias: Tensor | None, transposed: bool
) -> None:
    """Refuses a kernel or a bias that does not fit the features."""
    inner, outer = (1, 0) if transposed else (0, 1)
    rank = len(kernel.shape)
    if rank != 2 or kernel.shape[inner] != features.shape[-1]:
        form = "[V, D]" if transposed else "[D, V]"
        transpose, other = ("[D, V]", False) if transposed else ("[V, D]", True)
        raise ValueError(
            f"`kernel` must be {form} for features [..., D].\n"
            f"Received: features of shape {tuple(features.shape)} and a kernel of "
            f"shape {tuple(kernel.shape)}, with transpose_kernel={transposed}\n"
            f"Fix: transpose_kernel={other}, if the kernel is {transpose} instead."
        )
    if bias is not None and tuple(bias.shape) != (kernel.shape[outer],):
        raise ValueError(
            "`bias` must have one value for each class.\n"
            f"Received: a bias of shape {tuple(bias.shape)} and a kernel of shape "
            f"{tuple(kernel.shape)}\n"
            f"Fix: a bias of shape ({kernel.shape[outer]},)."
        )


def check_ignore_index(ignore_index: Any) -> None:
    if ignore_index is None:
        return
    whole = isinstance(ignore_index, int | np.integer)
    bounds = np.iinfo("int32")
    if (
        not whole
        or isinstance(ignore_index, bool)
        or not bounds.min <= ignore_index <= bounds.max
    ):
        raise ValueError(
            "`ignore_index` must be a 32-bit integer, the label of the positions to "
            "ignore.\n"
            f"Received: ignore_index={shown(ignore_index)}\n"
            "Fix: ignore_index=-1, or None to ignore nothing."
        )


def check_axis(axis: Any) -> None:
    if not isinstance(axis, int | np.integer) or isinstance(axis, bool):
        raise ValueError(
            "`axis` must be an integer, the axis of the classes.\n"
            f"Received: axis={axis!r}\n"
            "Fix: axis=-1, if the classes are on the last axis."
        )


def _of_python(weights: Any) -> Any:
    """What an array or a tensor holds, as Python's numbers: saved as they are.

    Nothing else is read: a tensor that has no values yet, and what is neither a number
    nor a list of them, are left for the check to refuse.
    """
    if isinstance(weights, np.ndarray) or ops.is_tensor(weights):
        if ops.is_tensor(weights) and not kernels.is_concrete(weights):
            return weights
        weights = ops.convert_to_numpy(weights).tolist()
    if isinstance(weights, list | tuple):
        return [_of_python(value) for value in weights]
    if isinstance(weights, dict):
        return {key: _of_python(value) for key, value in weights.items()}
    number = isinstance(weights, Real) and not isinstance(weights, bool)
    return float(weights) if number and abs(weights) <= LARGEST else weights


def checked_class_weight(name: str, weights: Any, *, number: bool = False) -> Any:
    """Class weights as Python's own numbers; a number alone, where that is enough."""
    weights = _of_python(weights)
    if number and isinstance(weights, Real):
        return check_number(name, weights)
    check_class_weight(weights, name)
    if isinstance(weights, dict):
        return {int(key): value for key, value in weights.items()}
    return weights


@dataclass(frozen=True)
class SoftmaxOptions:
    """The options of a softmax cross-entropy, as a user gives them, checked."""

    class_weight: ClassWeight | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    z_loss: float = 0.0
    ignore_index: int | None = None
    axis: int = -1

    def __post_init__(self) -> None:
        class_weight = checked_class_weight("class_weight", self.class_weight)
        object.__setattr__(self, "class_weight", class_weight)
        check_number("label_smoothing", self.label_smoothing, 1.0)
        check_number("focal_gamma", self.focal_gamma)
        check_number("z_loss", self.z_loss)
        check_ignore_index(self.ignore_index)
        check_axis(self.axis)


@dataclass(frozen=True)
class SigmoidOptions:
    """The options of a sigmoid cross-entropy, as a user gives them, checked."""

    class_weight: ClassWeight | None = None
    pos_weight: float | list[float] | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    ignore_index: int | None = None
    axis: int = -1

    def __post_init__(self) -> None:
        class_weight = checked_class_weight("class_weight", self.class_weight)
        object.__setattr__(self, "class_weight", class_weight)
        pos_weight = checked_class_weight("pos_weight", self.pos_weight, number=True)
        object.__setattr__(self, "pos_weight", pos_weight)
        check_number("label_smoothing", self.label_smoothing, 1.0)
        check_number("focal_gamma", self.focal_gamma)
        check_ignore_index(self.ignore_index)
        check_axis(self.axis)
