"""Weighted losses with their gradients: one signature, a body for each backend.

This is the one place that picks the body. `contract.py` says what a body promises.
"""

import importlib

import keras

from keras_logits.kernels import reference

_BODIES = ("tensorflow", "jax", "torch")

_name = keras.config.backend()
_body = (
    importlib.import_module(f"keras_logits.kernels.{_name}")
    if _name in _BODIES
    else reference
)

weighted = _body.weighted
matmul = _body.matmul
total_over_replicas = _body.total_over_replicas
is_concrete = _body.is_concrete

__all__ = [
    "check_tensorflow",
    "is_concrete",
    "matmul",
    "total_over_replicas",
    "weighted",
]


def check_tensorflow(user: str) -> None:
    """Refuses a backend that cannot compute on TensorFlow's tensors."""
    if _name != "tensorflow":
        raise ImportError(
            f"`{user}` computes on TensorFlow tensors and needs that backend. Received:"
            f" KERAS_BACKEND={_name}. Set KERAS_BACKEND=tensorflow before the first "
            "import of keras."
        )
