"""JAX: arrays and tracers never change."""

import jax

from keras_logits._typing import Tensor
from keras_logits.kernels.tensors.unchanging import CHANGES_IN_PLACE as CHANGES_IN_PLACE
from keras_logits.kernels.tensors.unchanging import as_frozen as as_frozen
from keras_logits.kernels.tensors.unchanging import gradient_is_seen as gradient_is_seen
from keras_logits.kernels.tensors.unchanging import linked_like as linked_like
from keras_logits.kernels.tensors.unchanging import (
    outside_compiled_code as outside_compiled_code,
)
from keras_logits.kernels.tensors.unchanging import trace as trace
from keras_logits.kernels.tensors.unchanging import version_of as version_of


def is_deferred(tensor: Tensor) -> bool:
    return isinstance(tensor, jax.core.Tracer)
