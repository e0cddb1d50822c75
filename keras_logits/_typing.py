"""The few types that the package's signatures share."""

from typing import Any, Literal, TypedDict

Tensor = Any
"""A tensor of the running Keras backend, or what `keras.ops` turns into one.

The backends' tensors have no common base class and Keras ships no type hints, so
that any narrower alias would be a fiction that type checkers trip over.
"""

Activation = Literal["softmax", "sigmoid"]
Reduction = Literal[
    "mean_with_sample_weight", "sum_over_batch_size", "mean", "sum", "none"
]
FromLogits = bool | Literal["auto"]
Fused = bool | Literal["auto"]
Returns = Literal["logits", "probabilities"]
Report = Literal[
    "accuracy",
    "top_5_accuracy",
    "cross_entropy",
    "perplexity",
    "entropy",
    "invalid_labels",
]
ClassWeight = list[float] | tuple[float, ...] | dict[int, float]


class LayerOptions(TypedDict, total=False):
    """The options that each Keras layer has; without it a checker takes any name."""

    trainable: bool
    dtype: Any
