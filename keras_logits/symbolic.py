"""The functions on symbolic tensors: nodes of a model, as Keras' own ops are."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import keras

from keras_logits._typing import Tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])
_functions: dict[str, Callable[..., Any]] = {}


@keras.saving.register_keras_serializable(package="keras_logits")
class Function(keras.Operation):
    """A function of this package as an operation, with all of it that is no tensor."""

    def __init__(
        self, function: str, options: dict[str, Any], *, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.function, self.options = function, options

    def call(self, *tensors: Tensor, **named: Tensor) -> Tensor:
        return _functions[self.function](*tensors, **named, **self.options)

    def get_config(self) -> dict[str, Any]:
        options = dict(self.options)
        if isinstance(options.get("class_weight"), dict):
            # JSON knows no integer keys.
            options["class_weight"] = list(options["class_weight"].items())
            options["by_class"] = True
        return {"function": self.function, "options": options, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Function":
        options = dict(config["options"])
        if options.pop("by_class", False):
            pairs = options["class_weight"]
            options["class_weight"] = {int(key): value for key, value in pairs}
        return cls(**{**config, "options": options})


def symbolic_too(function: _Function) -> _Function:
    """The function, which gives a symbolic tensor where it is given one."""
    _functions[function.__name__] = function

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        symbolic = {
            key: value
            for key, value in named.items()
            if isinstance(value, keras.KerasTensor)
        }
        if symbolic or any(isinstance(x, keras.KerasTensor) for x in arguments):
            options = {k: v for k, v in named.items() if k not in symbolic}
            return Function(function.__name__, options)(*arguments, **symbolic)
        return function(*arguments, **named)

    return run  # type: ignore[return-value]
