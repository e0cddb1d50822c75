"""NaN and infinity, made only where something calls for them.

A NaN that is selected away is harmless, but tools that look for the first NaN of a
program stop at it: `jax_debug_nans`, `tf.debugging.enable_check_numerics`. So it is not
written as a constant, but computed from numbers that are good wherever the batch is.
"""

from typing import Any

from keras import ops

from keras_logits._typing import Tensor


def nan_where(bad: Tensor, dtype: Any) -> Tensor:
    """What to add: NaN where something is bad, elsewhere -0, which changes nothing."""
    return ops.cast(ops.sqrt(-ops.cast(bad, dtype)), dtype)


def inf_where(lost: Tensor, dtype: Any) -> Tensor:
    """What to add: infinity where a loss is infinite, elsewhere -0."""
    return ops.cast(-ops.log(1 - ops.cast(lost, dtype)), dtype)
