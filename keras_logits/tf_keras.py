"""The back door: real tf-keras (Keras 2) classes of the bodies in `objects`.

`keras3.py` is this same text for Keras 3, but for the lines above `serializable`.
"""

import tf_keras as keras

from keras_logits import objects
from keras_logits.kernels import check_tensorflow

check_tensorflow("keras_logits.tf_keras")

serializable = keras.saving.register_keras_serializable(package="keras_logits")

__all__ = ["LogitsHead", "MarkLogits", "SigmoidCrossEntropy", "SoftmaxCrossEntropy"]


class ExponentialOfMean(objects.ExponentialOfMean, keras.metrics.Mean):
    __doc__ = objects.ExponentialOfMean.__doc__


@serializable
class LogitsHead(objects.LogitsHead, keras.layers.Layer):
    __doc__ = objects.LogitsHead.__doc__
    _keras = keras
    _exponential_of_mean = ExponentialOfMean


@serializable
class MarkLogits(objects.MarkLogits, keras.layers.Layer):
    __doc__ = objects.MarkLogits.__doc__
    _keras = keras


@serializable
class SoftmaxCrossEntropy(objects.SoftmaxCrossEntropy, keras.losses.Loss):
    __doc__ = objects.SoftmaxCrossEntropy.__doc__


@serializable
class SigmoidCrossEntropy(objects.SigmoidCrossEntropy, keras.losses.Loss):
    __doc__ = objects.SigmoidCrossEntropy.__doc__
