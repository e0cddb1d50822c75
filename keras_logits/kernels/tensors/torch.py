"""torch: tensors change in place. It counts that, though not through `.data`.

In code that `torch.compile` is tracing there are no counts to read, but the tensors
that stand for values have theirs: `comptime` reads them while the code is traced, and
what it found is a constant of the compiled code.
"""

import itertools
import weakref
from typing import Any

import torch
from torch._guards import TracingContext

from keras_logits._typing import Tensor
from keras_logits.kernels.contract import Linear
from keras_logits.kernels.tensors.unchanging import as_frozen as as_frozen

CHANGES_IN_PLACE = True


def is_deferred(tensor: Tensor) -> bool:
    return False  # what is traced may still be changed, by a way that nothing counts


_numbers = itertools.count(1)
_traces: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


@torch.compiler.assume_constant_result
def trace() -> int:
    context = TracingContext.try_get()
    if context is None:
        return 0
    if context not in _traces:
        _traces[context] = next(_numbers)
    return _traces[context]


_version = 0


def version_of(tensor: Tensor) -> int | None:
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.comptime.comptime(_note_version)
        counted: int = _noted_version()
        return counted
    try:
        version = getattr(tensor, "_version", None)
    except RuntimeError:  # it does not count under torch.inference_mode()
        return None
    return version if isinstance(version, int) else None


def _note_version(context: Any) -> None:
    global _version
    _version = context.get_local("tensor").as_fake()._version


@torch.compiler.assume_constant_result
def _noted_version() -> int:
    return _version


outside_compiled_code = torch.compiler.disable


def gradient_is_seen(logits: Tensor) -> bool:
    return bool(logits.retains_grad or getattr(logits, "_backward_hooks", None))


def linked_like(logits: Tensor, linear: Linear) -> Linear:
    """As promised. Logits made under `torch.no_grad()` have none."""
    if logits.requires_grad:
        return linear
    return Linear(*(None if x is None else x.detach() for x in linear))
