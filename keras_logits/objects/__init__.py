"""The bodies of the public classes, which do not know which Keras they serve.

`keras_logits.keras3` and `keras_logits.tf_keras` make real Keras classes of them.
"""

from keras_logits.objects.head import LogitsHead
from keras_logits.objects.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy
from keras_logits.objects.mark import MarkLogits
from keras_logits.objects.reports import ExponentialOfMean

__all__ = [
    "ExponentialOfMean",
    "LogitsHead",
    "MarkLogits",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
]
