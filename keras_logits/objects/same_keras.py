"""Keras 3 and tf-keras objects do not mix: they only seem to, until training fails."""

from typing import Any

_NAMES = {"keras": "Keras 3", "tf_keras": "tf-keras (Keras 2)"}
_MODULES = {"keras": "keras_logits", "tf_keras": "keras_logits.tf_keras"}


def keras_of(thing: Any) -> str | None:
    """'keras' or 'tf_keras', if a thing's class belongs to one of the two."""
    for parent in type(thing).__mro__:
        root = parent.__module__.partition(".")[0]
        if root in _NAMES:
            return root
    return None


def check_same_keras(owner: Any, thing: Any, argument: str) -> None:
    """Refuses what belongs to the other Keras than its user."""
    mine, theirs = keras_of(owner), keras_of(thing)
    if mine is None or theirs is None or mine == theirs:
        return
    name = type(owner).__name__
    raise TypeError(
        f"`{argument}` must belong to {_NAMES[mine]}, as this {name} does.\n"
        f"Received: {type(thing).__module__}.{type(thing).__name__}, of "
        f"{_NAMES[theirs]}\n"
        f"Fix: from {_MODULES[theirs]} import {name}"
    )


def is_symbolic(tensor: Any) -> bool:
    """Whether it stands for values to come; tf-keras will not say so of an array."""
    return any(parent.__name__ == "KerasTensor" for parent in type(tensor).__mro__)
