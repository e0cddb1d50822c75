"""How layers and losses show themselves: in a REPL, and in `model.summary()`."""

import inspect
import reprlib
from collections.abc import Collection
from typing import Any


def default_name(keras: Any, prefix: str) -> str:
    """A layer's name that says what it is for: `softmax_head`, `softmax_head_1`."""
    number: int = keras.backend.get_uid(prefix)
    return prefix if number == 1 else f"{prefix}_{number - 1}"


def as_call(
    thing: Any, hidden: Collection[str] = (), values: dict[str, Any] | None = None
) -> str:
    """The call that makes it, without hidden arguments and those left at a default.

    Args:
        thing: a layer or a loss.
        hidden: names of arguments.
        values: the arguments; by default the attributes of their names.
    """
    shown: list[str] = []
    for parameter in inspect.signature(type(thing).__init__).parameters.values():
        name, default = parameter.name, parameter.default
        value = values.get(name) if values else getattr(thing, name, default)
        if name in ("self", *hidden) or _same(value, default):
            continue
        text = getattr(value, "name", None) or reprlib.repr(value)
        is_first = not shown and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        shown.append(text if is_first else f"{name}={text}")
    return f"{type(thing).__name__}({', '.join(shown)})"


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)
