"""The bodies of the public classes, which do not know which Keras they serve.

`keras_logits.keras3` and `keras_logits.tf_keras` make real Keras classes of them.
"""

from keras_logits.objects.head import LogitsHead, MarkLogits
from keras_logits.objects.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy

__all__ = ["LogitsHead", "MarkLogits", "SigmoidCrossEntropy", "SoftmaxCrossEntropy"]
