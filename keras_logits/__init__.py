"""A Keras head that marks its output as logits, and losses that read the mark."""

from keras_logits._version import __version__
from keras_logits.functions import (
    linear_softmax_cross_entropy,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from keras_logits.keras3 import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
)
from keras_logits.maths.links import logit, probabilities

__all__ = [
    "LogitsHead",
    "MarkLogits",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "__version__",
    "linear_softmax_cross_entropy",
    "logit",
    "probabilities",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
]
