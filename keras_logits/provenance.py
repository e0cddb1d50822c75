"""The mark: what a tensor of scores is, and where it comes from.

A head sets the mark on its output and a loss reads it. It is lost rather than wrong:
any operation that makes a new tensor drops it, and nothing guesses it back.
"""

import weakref
from dataclasses import dataclass, replace
from typing import Any

from keras_logits import kernels
from keras_logits._typing import Activation, Tensor
from keras_logits.kernels.contract import LinearLogits

_ATTRIBUTE = "_keras_logits_mark"


@dataclass(frozen=True, eq=False)
class Mark:
    """What is known of a marked tensor.

    Args:
        activation: what turns the logits into probabilities.
        logits: the logits, where the marked tensor holds the probabilities made of
            them; None where it holds the logits. Never the marked tensor itself,
            which could then never be freed.
        head: the layer of ours that set the mark, while somebody else holds it.
        features: what the head computed the logits from, if it did.
        linear: how it did, with its weights as they were in the step that is being
            compiled. On JAX the head itself holds them only while Keras says so.
    """

    activation: Activation
    logits: Tensor | None = None
    head: Any = None
    features: Tensor | None = None
    linear: LinearLogits | None = None

    def __repr__(self) -> str:
        holds = "logits" if self.logits is None else "probabilities"
        origin = f", from {self.head.name!r}" if self.head is not None else ""
        return f"Mark({holds} of a {self.activation}{origin})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles of a tensor must not drag the model along.
        return _no_mark, ()


def _no_mark() -> None:
    return None


@dataclass(frozen=True, eq=False)
class _Entry:
    """A mark as its tensor keeps it.

    The head is held weakly: a tensor may outlive its model (TensorFlow never frees a
    graph with a custom gradient, nor JAX a trace that an error broke off), and must not
    keep the weights.
    """

    mark: Mark
    head: weakref.ref[Any] | None
    owner: int | None
    version: int | None

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_mark, ()


# For tensors that take no attributes (JAX). The id finds the entry, and the reference
# says whether it is still that tensor: an id alone is used again after its tensor died.
_table: dict[int, tuple[weakref.ref[Any], _Entry]] = {}


def mark(tensor: Tensor, mark: Mark) -> None:
    """Marks a tensor."""
    head = None if mark.head is None else weakref.ref(mark.head)
    # A compiled step has other tensors than the code that it was compiled from.
    owner = id(tensor) if kernels.is_concrete(tensor) else None
    entry = _Entry(replace(mark, head=None), head, owner, owner and _version(tensor))
    try:
        setattr(tensor, _ATTRIBUTE, entry)
    except AttributeError:
        key = id(tensor)
        _table[key] = (weakref.ref(tensor, lambda dead: _forget(key, dead)), entry)


def origin_of(tensor: Tensor) -> Mark | None:
    """The mark of a tensor; None where it has none.

    Raises:
        ValueError: if the tensor was changed in place after it was marked.
    """
    entry = _entry_of(tensor)
    if entry is None:
        return None
    if entry.owner is None or not kernels.is_concrete(tensor):
        return _of(entry)
    if entry.owner != id(tensor):  # copy.copy() of a torch tensor copies attributes
        return None
    if entry.version != _version(tensor):
        raise ValueError(
            "`y_pred` was changed in place after it was marked as logits, so that its "
            f"mark {entry.mark!r} no longer describes it. Received: version "
            f"{_version(tensor)} of a tensor that was marked at {entry.version}. "
            "Write y_pred = y_pred * scale in place of y_pred *= scale, and mark the "
            "result with MarkLogits()."
        )
    return _of(entry)


def _entry_of(tensor: Tensor) -> _Entry | None:
    entry: _Entry | None = getattr(tensor, _ATTRIBUTE, None)
    if entry is not None:
        return entry
    reference, entry = _table.get(id(tensor), (None, None))
    return entry if reference is not None and reference() is tensor else None


def _of(entry: _Entry) -> Mark:
    return replace(entry.mark, head=entry.head and entry.head())


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; torch counts it, the others cannot."""
    try:
        version = getattr(tensor, "_version", None)
    except RuntimeError:  # it does not count under torch.inference_mode()
        return None
    return version if isinstance(version, int) else None


def _forget(key: int, dead: weakref.ref[Any]) -> None:
    entry = _table.get(key)
    if entry is not None and entry[0] is dead:
        del _table[key]
