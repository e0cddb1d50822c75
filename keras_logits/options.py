"""What a user may ask of a loss, checked when it is asked."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from keras_logits._typing import ClassWeight, Tensor
from keras_logits.maths.weights import check_class_weight


def check_number(name: str, value: Any, highest: float = math.inf) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= highest or value == math.inf:
        upper = "" if highest == math.inf else f" and at most {highest:g}"
        raise ValueError(
            f"`{name}` must be a number, at least 0{upper}. Received: {name}={value!r}."
            f" Write {name}=0.0 to do without it."
        )
    return float(value)


def check_positive(name: str, value: Any, optional: bool = False) -> None:
    if value is None and optional:
        return
    number = isinstance(value, Real) and not isinstance(value, bool)
    if number and 0 < float(value) < math.inf:
        return
    neutral = "None" if optional else "1.0"
    raise ValueError(
        f"`{name}` must be a finite number above 0. Received: {name}={value!r}. "
        f"Write {name}={neutral} to do without it."
    )


def check_memory_budget(memory_budget: Any) -> None:
    if memory_budget is None:
        return
    whole = isinstance(memory_budget, int) and not isinstance(memory_budget, bool)
    if not whole or memory_budget < 1:
        raise ValueError(
            "`memory_budget` must be a number of bytes, or None. Received: "
            f"memory_budget={memory_budget!r}. Write memory_budget=2**28 for 256 MiB."
        )


def check_linear(
    features: Tensor, kernel: Tensor, bias: Tensor | None, transposed: bool
) -> None:
    """Refuses a kernel or a bias that does not fit the features."""
    inner, outer = (1, 0) if transposed else (0, 1)
    rank = len(kernel.shape)
    if rank != 2 or kernel.shape[inner] != features.shape[-1]:
        form = "[V, D]" if transposed else "[D, V]"
        other = "False" if transposed else "True"
        raise ValueError(
            f"`kernel` must be {form} for features [..., D]. Received: features of "
            f"shape {tuple(features.shape)} and a kernel of shape "
            f"{tuple(kernel.shape)}, with transpose_kernel={transposed}. Write "
            f"transpose_kernel={other} if its axes are the other way round."
        )
    if bias is not None and tuple(bias.shape) != (kernel.shape[outer],):
        raise ValueError(
            f"`bias` must have one value for each class. Received: a bias of shape "
            f"{tuple(bias.shape)} and a kernel of shape {tuple(kernel.shape)}. Write a "
            f"bias of shape ({kernel.shape[outer]},)."
        )


def check_ignore_index(ignore_index: Any) -> None:
    if ignore_index is None or (
        isinstance(ignore_index, int | np.integer)
        and not isinstance(ignore_index, bool)
    ):
        return
    raise ValueError(
        "`ignore_index` must be an integer, the label of positions that do not count. "
        f"Received: ignore_index={ignore_index!r}. Write ignore_index=-1, or None."
    )


def check_axis(axis: Any) -> None:
    if not isinstance(axis, int | np.integer) or isinstance(axis, bool):
        raise ValueError(
            "`axis` must be an integer, the axis of the classes. Received: "
            f"axis={axis!r}. Write axis=-1 for classes on the last axis."
        )


def _of_python(weights: Any) -> Any:
    """Weights as Python's own numbers, which are saved and loaded as they are."""
    if weights is None or isinstance(weights, Real):
        return None if weights is None else float(weights)
    if isinstance(weights, dict):
        return {int(key): float(value) for key, value in weights.items()}
    return [float(value) for value in weights]


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
        check_class_weight(self.class_weight, "class_weight")
        object.__setattr__(self, "class_weight", _of_python(self.class_weight))
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
        check_class_weight(self.class_weight, "class_weight")
        if isinstance(self.pos_weight, Real):
            check_number("pos_weight", self.pos_weight)
        else:
            check_class_weight(self.pos_weight, "pos_weight")
        object.__setattr__(self, "class_weight", _of_python(self.class_weight))
        object.__setattr__(self, "pos_weight", _of_python(self.pos_weight))
        check_number("label_smoothing", self.label_smoothing, 1.0)
        check_number("focal_gamma", self.focal_gamma)
        check_ignore_index(self.ignore_index)
        check_axis(self.axis)
