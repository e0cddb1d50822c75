"""The mark alone, for a model whose last layer is somebody else's."""

from typing import Any, Unpack

import keras
from keras import ops

from keras_logits._typing import Activation, LayerOptions, Tensor
from keras_logits.maths.links import check_activation
from keras_logits.objects.predictions import producer
from keras_logits.objects.same_keras import check_same_keras, is_symbolic
from keras_logits.objects.shown import as_call, default_name
from keras_logits.provenance import Mark, mark


class MarkLogits:
    """Marks the output of any last layer as logits.

    The output is a new tensor with the same values, because two marks on one tensor
    would overwrite each other.

    Args:
        activation: the function that turns these logits into probabilities, "softmax"
            or "sigmoid".
        name: the name of the layer, by default `softmax_logits` or `sigmoid_logits`.
        **kwargs: `trainable` and `dtype`.

    Call arguments:
        inputs: `[..., K]`, logits, never probabilities. If Keras has recorded (on
            TensorFlow and torch) that its own softmax or sigmoid made them, that is an
            error. Nothing else can be checked.

    Returns:
        The same values, marked.

    Raises:
        ValueError: if `activation` is neither "softmax" nor "sigmoid", or if `inputs`
            are known to be probabilities.

    Example:
        >>> model = keras.Sequential([backbone_with_logits, MarkLogits("softmax")])

    See also:
        `LogitsHead`, which also computes the logits.
    """

    _keras: Any
    reports = ()  # these are a head's
    makes_logits = False

    def __init__(
        self,
        activation: Activation = "softmax",
        *,
        name: str | None = None,
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        check_activation(activation)
        name = name or default_name(self._keras, f"{activation}_logits")
        # Half precision would round the logits of a float32 layer.
        options = {"name": name, "autocast": False, **kwargs}
        super().__init__(**options)
        self.activation = activation
        self.supports_masking = True

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_same_keras(self, inputs, "inputs")
        made = producer(inputs)
        if made:
            raise ValueError(
                "`inputs` must be logits, not probabilities.\n"
                f"Received: a tensor that is {made}\n"
                "Fix: Dense(units) without activation before MarkLogits, or "
                f"LogitsHead(units, {self.activation!r}) in place of both."
            )
        outputs = super().__call__(inputs, *args, **kwargs)  # type: ignore[misc]
        if not is_symbolic(outputs):
            mark(outputs, Mark(self.activation, head=self))
        return outputs

    def call(self, inputs: Tensor) -> Tensor:
        return ops.copy(inputs)

    def __repr__(self) -> str:
        return as_call(self)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def compute_output_spec(self, inputs: Tensor) -> Any:
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),  # type: ignore[misc]
            "activation": self.activation,
        }
