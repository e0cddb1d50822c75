"""TensorFlow: tensors never change, and tapes watch the variables of frozen layers."""

import tensorflow as tf

from keras_logits._typing import Tensor
from keras_logits.kernels.contract import Linear
from keras_logits.kernels.tensorflow_scores import is_watched
from keras_logits.kernels.tensors.unchanging import CHANGES_IN_PLACE as CHANGES_IN_PLACE
from keras_logits.kernels.tensors.unchanging import gradient_is_seen as gradient_is_seen
from keras_logits.kernels.tensors.unchanging import (
    outside_compiled_code as outside_compiled_code,
)
from keras_logits.kernels.tensors.unchanging import trace as trace
from keras_logits.kernels.tensors.unchanging import version_of as version_of


def is_deferred(tensor: Tensor) -> bool:
    return bool(tf.is_symbolic_tensor(tensor))


def linked_like(logits: Tensor, linear: Linear) -> Linear:
    """As promised. Logits have none where a tape was stopped, or began after them."""
    operands = [x for x in linear if x is not None]
    if is_watched(logits) or not any(map(is_watched, operands)):
        return linear
    return Linear(*(x if x is None else tf.stop_gradient(x) for x in linear))


def as_frozen(tensor: Tensor) -> Tensor:
    """As promised. Keras freezes a variable without a word to TensorFlow."""
    return tf.stop_gradient(tensor)
