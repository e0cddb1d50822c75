"""Everything that the package takes from `keras.src`, and nothing else.

These names are private to Keras and may move between its versions. Each has one
test in `tests/test_keras_private.py`, so that a move shows there first.
"""

from keras.src.backend import AutocastScope
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

__all__ = ["AutocastScope", "get_keras_mask", "in_symbolic_scope", "set_keras_mask"]
