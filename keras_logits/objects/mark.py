"""The mark alone, for a model whose last layer is somebody else's."""

from typing import Any

import keras
from keras import ops

from keras_logits._typing import Activation, Tensor
from keras_logits.maths.links import check_activation
from keras_logits.objects.predictions import producer
from keras_logits.objects.same_keras import check_same_keras, is_symbolic
from keras_logits.provenance import Mark, mark


class MarkLogits:
    """Marks the output of somebody else's last layer as logits.

    The same values as a new tensor: two marks on one tensor would overwrite each other.

    Args:
        activation: what turns these logits into probabilities: "softmax" or "sigmoid".
        **kwargs: `name`, `dtype`.

    Call arguments:
        inputs: `[..., K]`, logits. Never probabilities: what Keras notes of its own
            activations (TensorFlow, torch) is an error, and no more can be checked.

    Returns:
        The same values, marked.

    Raises:
        ValueError: if `activation` is neither of the two, or `inputs` are visibly
            probabilities.

    Example:
        >>> model = keras.Sequential([backbone_with_logits, MarkLogits("softmax")])

    See also:
        `LogitsHead`, which computes the logits too.
    """

    _keras: Any
    reports = ()  # these are a head's
    makes_logits = False

    def __init__(self, activation: Activation = "softmax", **kwargs: Any) -> None:
        check_activation(activation)
        # Half precision would round the logits of a float32 layer.
        super().__init__(autocast=False, **kwargs)  # type: ignore[call-arg]
        self.activation = activation
        self.supports_masking = True

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_same_keras(self, inputs, "inputs")
        made = producer(inputs)
        if made:
            raise ValueError(
                f"`inputs` must be logits. Received: a tensor that is {made}. Write "
                "Dense(units) without activation before MarkLogits, or "
                f"LogitsHead(units, {self.activation!r}) in the place of both."
            )
        outputs = super().__call__(inputs, *args, **kwargs)  # type: ignore[misc]
        if not is_symbolic(outputs):
            mark(outputs, Mark(self.activation, head=self))
        return outputs

    def call(self, inputs: Tensor) -> Tensor:
        return ops.copy(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def compute_output_spec(self, inputs: Tensor) -> Any:
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),  # type: ignore[misc]
            "activation": self.activation,
        }
