"""Whether a loss is computed from the operands of the logits instead of from them."""

import warnings
from dataclasses import replace
from typing import Any

from keras_logits import kernels
from keras_logits._keras_private import in_symbolic_scope
from keras_logits._typing import Tensor
from keras_logits.kernels import tensors
from keras_logits.kernels.contract import LinearLogits
from keras_logits.objects.predictions import Scores

FUSED_FROM = 8192
"""Classes from which "auto" takes the fused pass.

Read from the table "sizes" of `benchmarks/linear_cross_entropy.py`: from 2048 classes
on the fused pass takes the time of the plain one, with a quarter of its memory. Below
8192 there is little to save: the logits of 2048 tokens are less than 64 MiB.
"""


def check_fused(fused: object) -> None:
    if not isinstance(fused, bool) and not (isinstance(fused, str) and fused == "auto"):
        raise ValueError(
            "`fused` must be 'auto', True or False.\n"
            f"Received: fused={fused!r}\n"
            "Fix: omit fused. The default, 'auto', fuses where that pays off."
        )


def linear_logits(owner: Any, scores: Scores) -> LinearLogits | None:
    """The operands of marked logits, if the loss is to be computed from them.

    Raises:
        ValueError: if the loss insists on it and it is not possible.
    """
    if owner.fused is False or in_symbolic_scope():
        return None
    head = None if scores.mark is None else scores.mark.head
    of_head = head is not None and head.makes_logits
    if owner.fused == "auto" and not (of_head and _pays(scores.values)):
        return None
    proved, obstacle = None, _not_covered(owner, scores) if of_head else _NO_HEAD
    if obstacle is None:
        proved, obstacle = _proved(scores)
    if proved is not None:
        return replace(proved, memory_budget=owner.memory_budget)
    if owner.fused is True:
        raise ValueError(
            "`fused=True` is not possible here.\n"
            f"Received: {obstacle}\n"
            "Fix: fused='auto', which runs unfused here."
        )
    if not owner._warned_of_plain:
        owner._warned_of_plain = True
        warnings.warn(
            f"`fused='auto'` runs unfused here and allocates all logits: {obstacle}\n"
            "Pass fused=False to silence this warning.",
            stacklevel=5,
        )
    return None


_NO_HEAD = "scores that no LogitsHead computed. End the model with LogitsHead(units)."
Proved = tuple[LinearLogits, None] | tuple[None, str]


def _proved(scores: Scores) -> Proved:
    """The operands that are proved to give the logits at hand, or why there are none.

    The mark was read from the very tensor that the head made, so it names the operands
    of that tensor. Deferred logits (a trace of TensorFlow or JAX) cannot change between
    the head and the loss, nor can their operands: computing them again gives the same.
    All other logits have values already, and changes that nothing counts are possible.
    So those values are used, and operands only say where gradients go; a change that
    torch counts would make that wrong, as in any backward pass.
    """
    mark: Any = scores.mark
    logits, recipe = scores.values, mark.recipe
    if not recipe.is_unchanged:
        return None, (
            "features or weights that were changed in place after the head made "
            "`y_pred`. Call the loss before they change."
        )
    if tensors.gradient_is_seen(logits):
        return None, "logits whose gradient is requested by a hook or retain_grad()."
    linear = mark.head.with_frozen(recipe.linear.linear)
    if tensors.is_deferred(logits):
        return replace(recipe.linear, linear=linear), None
    linear = tensors.linked_like(logits, linear)
    return replace(recipe.linear, linear=linear, known=logits), None


def _pays(logits: Tensor) -> bool:
    # Logits that were computed already cost no memory any more.
    return bool(logits.shape[-1] >= FUSED_FROM and tensors.is_deferred(logits))


def _not_covered(owner: Any, scores: Scores) -> str | None:
    """What a fused pass cannot do, of all that is asked."""
    mark: Any = scores.mark
    rank = len(scores.values.shape)
    if owner._options.axis not in (-1, rank - 1):
        return f"axis={owner._options.axis}. Only axis=-1 can be fused."
    if owner._given_dtype not in (None, "float32"):
        return f"dtype={owner._given_dtype!r} in the loss. Only float32 can be fused."
    if mark.recipe is None:
        return "logits that a subclass of LogitsHead computed in its own way."
    found: str | None = kernels.obstacle_to_fusing(mark.recipe.linear.linear)
    return found
