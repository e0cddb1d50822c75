"""Whether a loss goes from the features to its value without holding the logits."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from keras import ops

from keras_logits._keras_private import in_symbolic_scope
from keras_logits._typing import Tensor
from keras_logits.kernels import is_concrete, logits_of, obstacle_to_fusing
from keras_logits.kernels.contract import Linear, LinearLogits
from keras_logits.objects.predictions import Scores
from keras_logits.provenance import Mark

FUSED_FROM = 8192
"""Classes from which "auto" takes the fused pass.

Read from the table "sizes" of `benchmarks/linear_cross_entropy.py`: from 2048 classes
on the fused pass takes the time of the plain one, with a quarter of its memory. Below
8192 there is little to save: the logits of 2048 tokens are less than 64 MiB.
"""


def check_fused(fused: object) -> None:
    if not isinstance(fused, bool) and not (isinstance(fused, str) and fused == "auto"):
        raise ValueError(
            "`fused` must be 'auto' (where it pays), True (or an error) or False. "
            f"Received: fused={fused!r}. Leave it out."
        )


def linear_logits(owner: Any, scores: Scores) -> LinearLogits | None:
    """The recipe behind marked logits, if the loss is to be computed from that.

    Raises:
        ValueError: if the loss insists on it and it is not possible.
    """
    if owner.fused is False or in_symbolic_scope():
        return None
    mark = scores.mark
    if mark is None or mark.head is None or mark.features is None:
        mark = None
    if owner.fused == "auto" and (mark is None or not _pays(scores.values)):
        return None
    found, obstacle = _recipe(owner, mark)
    if obstacle is not None and owner.fused is True:
        raise ValueError(
            "`fused=True` asks for a loss that never holds the logits. Received: "
            f"{obstacle} Write fused='auto' to run plain there."
        )
    if obstacle is not None and not owner._warned_of_plain:
        owner._warned_of_plain = True
        warnings.warn(
            f"`fused='auto'` runs plain here, and holds all logits: {obstacle} "
            "Write fused=False to be told no more.",
            stacklevel=5,
        )
    if found is not None and is_concrete(scores.values):
        _check_unchanged(found, scores.values)
    return found


def _check_unchanged(recipe: LinearLogits, logits: Tensor) -> None:
    """Refuses a recipe that no longer gives the logits: their first row tells."""
    if 0 in logits.shape:
        return
    features, kernel, bias = recipe.linear
    first = ops.reshape(features, (-1, features.shape[-1]))[:1]
    again = logits_of(replace(recipe, linear=Linear(first, kernel, bias)))
    row = ops.convert_to_numpy(ops.reshape(logits, (-1, logits.shape[-1]))[0])
    again = ops.convert_to_numpy(again[0])
    finite = row[np.isfinite(row)]
    rounding = 1e-3 * np.abs(finite).max(initial=1e-30)
    if not np.allclose(again, row, rtol=0, atol=rounding, equal_nan=True):
        raise ValueError(
            "`fused=True` computes the logits again, from the features and weights of "
            "the head. Received: features or weights that have changed since the head "
            "made `y_pred`. Call the loss before they change, or write fused=False."
        )


def _pays(logits: Tensor) -> bool:
    # Logits that were computed already cost no memory any more.
    return logits.shape[-1] >= FUSED_FROM and not is_concrete(logits)


Recipe = tuple[LinearLogits, None] | tuple[None, str]


def _recipe(owner: Any, mark: Mark | None) -> Recipe:
    """The recipe, or why there is none and what to write."""
    if mark is None:
        return None, "scores of no LogitsHead. End the model with LogitsHead(units)."
    rank = len(mark.features.shape)  # type: ignore[union-attr]
    if owner._options.axis not in (-1, rank - 1):
        return None, f"axis={owner._options.axis}. Write axis=-1."
    if owner._given_dtype not in (None, "float32"):
        return None, f"dtype={owner._given_dtype!r} of the loss. Leave dtype out."
    found: Recipe = mark.head.recipe(mark, owner.memory_budget)
    obstacle = None if found[0] is None else obstacle_to_fusing(found[0].linear)
    return found if obstacle is None else (None, obstacle)


def usable_kernel(kernel: Any, shape: tuple[int, int], layer: Any) -> str | None:
    """Why a kernel cannot be read as it is, if that is so."""
    if tuple(kernel.shape) != shape:
        return f"a kernel of shape {tuple(kernel.shape)}, not {shape}. Build it anew."
    if getattr(layer, "quantization_mode", None) is not None:
        return f"a quantised {layer.name!r}. Train before you quantise."
    if getattr(layer, "lora_enabled", False):
        return f"a {layer.name!r} with LoRA."
    return None
