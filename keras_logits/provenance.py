"""The mark: what a tensor of scores is, and what it was computed from.

A head sets the mark on its output and a loss reads it. It is lost rather than wrong:
any operation that makes a new tensor drops it, and nothing guesses it back.
"""

import weakref
from dataclasses import dataclass, field, replace
from typing import Any

from keras_logits._typing import Activation, Tensor
from keras_logits.kernels import tensors
from keras_logits.kernels.contract import LinearLogits

_ATTRIBUTE = "_keras_logits_mark"


@dataclass(frozen=True, eq=False)
class Recipe:
    """The operands that logits were computed from, as they were then.

    Args:
        linear: the operands themselves, and never a layer that may hold others by now.
        versions: how often each had been changed in place, on torch.
    """

    linear: LinearLogits
    versions: tuple[int | None, ...]

    @classmethod
    def of(cls, linear: LinearLogits) -> "Recipe":
        return cls(linear, _versions(linear))

    @property
    def is_unchanged(self) -> bool:
        return self.versions == _versions(self.linear)


@dataclass(frozen=True, eq=False)
class Mark:
    """What is known of a marked tensor.

    Args:
        activation: what turns the logits into probabilities.
        logits: the logits, where the marked tensor holds the probabilities made of
            them; None where it holds the logits. Never the marked tensor itself,
            which could then never be freed.
        head: the layer that set the mark, while anything else still holds it.
        recipe: what that layer computed the logits from, where it recorded that.
        readers: which of a loss and the head's reports have read the mark.
    """

    activation: Activation
    logits: Tensor | None = None
    head: Any = None
    recipe: Recipe | None = None
    readers: set[str] = field(default_factory=set)

    @property
    def features(self) -> Tensor | None:
        return None if self.recipe is None else self.recipe.linear.linear.features

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

    Args:
        mark: the mark, without its head.
        head: held weakly. A tensor may outlive its model (TensorFlow never frees a
            graph with a custom gradient, nor JAX a trace that an error broke off).
        owner: the marked tensor: `copy.copy` of a torch tensor copies attributes.
            None in code that torch is compiling, which knows no references.
        trace: which compilation by torch made the mark; 0 in all other code.
        version: how often the tensor had been changed in place, on torch.
    """

    mark: Mark
    head: weakref.ref[Any] | None
    owner: weakref.ref[Any] | None
    trace: int
    version: int | None

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_mark, ()


# For tensors that take no attributes (JAX). The id finds the entry, and the reference
# says whether it is still that tensor: an id is used again after its tensor died.
_table: dict[int, tuple[weakref.ref[Any], _Entry]] = {}


def mark(tensor: Tensor, mark: Mark) -> None:
    """Marks a tensor."""
    head = None if mark.head is None else weakref.ref(mark.head)
    trace = tensors.trace()
    owner = None if trace else weakref.ref(tensor)
    entry = _Entry(
        replace(mark, head=None), head, owner, trace, tensors.version_of(tensor)
    )
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
    if entry is not None and tensors.trace() and not entry.trace:
        # Changes since then are counted only where the tensor has its values.
        of_values: Mark | None = tensors.outside_compiled_code(origin_of)(tensor)
        return of_values
    if entry is None or not _is_of(entry, tensor):
        return None
    version = tensors.version_of(tensor)
    if entry.version != version:
        raise ValueError(
            "`y_pred` was changed in place after it was marked, so its mark is no "
            "longer valid.\n"
            f"Received: version {version} of a tensor with {entry.mark!r}, marked at "
            f"version {entry.version}\n"
            "Fix: y_pred = y_pred * scale, in place of y_pred *= scale.\n"
            "If the result holds logits, mark it with "
            f"MarkLogits({entry.mark.activation!r})."
        )
    return _of(entry)


def was_compiled_apart(tensor: Tensor) -> bool:
    """Whether a tensor has a mark that cannot be read here, as torch compiled it."""
    entry = _entry_of(tensor)
    return entry is not None and entry.trace not in (0, tensors.trace())


def recorded(tensor: Tensor) -> Recipe | None:
    """The recipe noted on this very tensor, if neither has been changed since."""
    entry = _entry_of(tensor)
    if entry is None or not _is_of(entry, tensor):
        return None
    return entry.mark.recipe if entry.version == tensors.version_of(tensor) else None


def _entry_of(tensor: Tensor) -> _Entry | None:
    entry: _Entry | None = getattr(tensor, _ATTRIBUTE, None)
    if entry is not None:
        return entry
    reference, entry = _table.get(id(tensor), (None, None))
    return entry if reference is not None and reference() is tensor else None


def _is_of(entry: _Entry, tensor: Tensor) -> bool:
    """Whether the entry was made for this very tensor, where it can be checked.

    A compiled function of torch hands on what it marked, but no count of changes. So a
    mark that was made in one is read in that one and nowhere else.
    """
    if entry.trace or tensors.trace():
        return bool(entry.trace == tensors.trace())
    return entry.owner is not None and entry.owner() is tensor


def _of(entry: _Entry) -> Mark:
    return replace(entry.mark, head=entry.head and entry.head())


def _versions(linear: LinearLogits) -> tuple[int | None, ...]:
    return tuple(None if x is None else tensors.version_of(x) for x in linear.linear)


def _forget(key: int, dead: weakref.ref[Any]) -> None:
    entry = _table.get(key)
    if entry is not None and entry[0] is dead:
        del _table[key]
