"""Tensors that have their values and keep them. Says what each function promises."""

from collections.abc import Callable
from typing import Any

from keras_logits._typing import Tensor
from keras_logits.kernels.contract import Linear

CHANGES_IN_PLACE = False
"""Whether tensors can be changed in place."""


def is_deferred(tensor: Tensor) -> bool:
    """Whether a tensor is yet to be computed, and cannot change before it is."""
    return False


def trace() -> int:
    """The number of the compilation by torch that traces this code; 0 if none does."""
    return 0


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; None where nothing counts changes."""
    return None


def outside_compiled_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called with tensors that have their values."""
    return function


def gradient_is_seen(logits: Tensor) -> bool:
    """Whether a hook reads or changes the gradient by the logits."""
    return False


def linked_like(logits: Tensor, linear: Linear) -> Linear:
    """The operands, without derivatives if the logits made from them have none."""
    return linear


def as_frozen(tensor: Tensor) -> Tensor:
    """A frozen weight, without a derivative that would be computed unasked."""
    return tensor
