"""What may happen to a tensor between the layer that makes it and the loss.

On TensorFlow and JAX nothing can: tensors never change. On torch they change in place,
and torch counts most of these changes, also in code that it is compiling.
"""

import importlib

import keras

_name = keras.config.backend()
_known = _name if _name in ("tensorflow", "jax", "torch") else "unchanging"
_body = importlib.import_module(f"keras_logits.kernels.tensors.{_known}")

CHANGES_IN_PLACE: bool = _body.CHANGES_IN_PLACE
as_frozen = _body.as_frozen
gradient_is_seen = _body.gradient_is_seen
is_deferred = _body.is_deferred
linked_like = _body.linked_like
outside_compiled_code = _body.outside_compiled_code
trace = _body.trace
version_of = _body.version_of
