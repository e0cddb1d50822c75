"""What a loss was given: logits or probabilities, and by what evidence.

The whole table of `from_logits` is here. Marks decide; where there is none, the user
says it, and what is visibly something else is refused.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_logits._keras_private import in_symbolic_scope
from keras_logits._typing import Activation, Tensor
from keras_logits.kernels import is_concrete, tensors
from keras_logits.maths.links import probabilities
from keras_logits.objects.same_keras import check_same_keras
from keras_logits.provenance import Mark, origin_of, was_compiled_apart

_LOSS_OF = {"softmax": "SoftmaxCrossEntropy()", "sigmoid": "SigmoidCrossEntropy()"}
_CAUSES = (
    "A mark is absent if a layer after the head made a new tensor, if the head is "
    "inside TimeDistributed (it takes any rank by itself), if a RematScope covers the "
    "whole model, if the forward pass was compiled apart from the loss (torch.compile "
    "does that at every graph break), if autocast converted the tensor on its way into "
    "the layer that calls the loss, in a metric on JAX, and on the output of predict()."
)


class Scores(NamedTuple):
    """What the loss is computed from."""

    values: Tensor
    are_probabilities: bool
    mark: Mark | None = None


def check_from_logits(from_logits: object) -> None:
    if not isinstance(from_logits, bool) and not (
        isinstance(from_logits, str) and from_logits == "auto"
    ):
        raise ValueError(
            "`from_logits` must be 'auto' (read the mark), True or False. Received: "
            f"from_logits={from_logits!r}. Leave it out for a model that ends with "
            "LogitsHead."
        )


def read_scores(
    owner: Any, y_pred: Tensor, activation: Activation, from_logits: Any
) -> Scores:
    """The logits or probabilities in `y_pred`, or an error that says what to write."""
    mark = origin_of(y_pred)
    if mark is not None:
        check_same_keras(owner, mark.head, "y_pred")
        return _marked(y_pred, mark, activation, from_logits)
    y_pred = ops.convert_to_tensor(y_pred)
    if in_symbolic_scope():
        # The build before training runs without values and, on some backends, without
        # marks. What it lets pass, the first training step still judges.
        return Scores(y_pred, from_logits is False)
    if from_logits == "auto":
        raise ValueError(_unmarked(owner, y_pred, activation))
    if from_logits:
        _refuse_probabilities(owner, y_pred, activation)
    return Scores(y_pred, not from_logits)


def _marked(
    y_pred: Tensor, mark: Mark, activation: Activation, from_logits: Any
) -> Scores:
    if mark.activation != activation:
        raise ValueError(
            f"`y_pred` must be logits of a {activation}. Received: {mark!r}. "
            f"Write loss={_LOSS_OF[mark.activation]}, or "
            f"LogitsHead(units, activation={activation!r})."
        )
    if mark.logits is not None:
        if from_logits is True:
            raise ValueError(
                "`from_logits=True` says that `y_pred` holds logits. Received: "
                f"{mark!r}. Leave from_logits out: the loss finds the logits behind "
                "the probabilities."
            )
        return Scores(_logits_behind(y_pred, mark), False, mark)
    if from_logits is False:
        raise ValueError(
            "`from_logits=False` says that `y_pred` holds probabilities. Received: "
            f"{mark!r}. Leave from_logits out."
        )
    return Scores(y_pred, False, mark)


def _logits_behind(y_pred: Tensor, mark: Mark) -> Tensor:
    """The logits that marked probabilities were made of, if they still are those.

    Torch counts changes in place, but not all: those through `.data`, a NumPy array
    that shares the memory, or in inference mode it does not see.
    """
    logits: Tensor = mark.logits
    if not tensors.CHANGES_IN_PLACE:
        return logits
    made = probabilities(ops.stop_gradient(logits), mark.activation)
    difference = ops.abs(ops.stop_gradient(y_pred) - made)
    changed = ops.any(difference > 1e-5)
    if not is_concrete(y_pred):
        return logits + ops.sqrt(-ops.cast(changed, logits.dtype))  # NaN, or itself
    if changed:
        raise ValueError(
            "`y_pred` no longer holds the probabilities that were marked. Received: "
            f"values that differ by up to {float(ops.max(difference)):.2g} from those "
            f"of {mark!r}. Write p = p * scale in place of p.data.mul_(scale), and end "
            "the model with MarkLogits()."
        )
    return logits


def _unmarked(owner: Any, y_pred: Tensor, activation: Activation) -> str:
    made = producer(y_pred)
    if made:
        return (
            "`y_pred` must be marked as logits, the scores before a softmax or a "
            f"sigmoid. Received: an unmarked tensor that is {made}. Write "
            f"LogitsHead(units, activation={activation!r}) in the place of that last "
            f"layer, or {type(owner).__name__}(from_logits=False)."
        )
    if was_compiled_apart(y_pred):
        found = (
            "that was marked in another function of torch.compile, which hands on no "
            "count of changes. A graph break divides a function in two, and fused=True "
            "makes one: compile head and loss together with fullgraph=True, or neither"
        )
    else:
        found = _seen_in(owner, y_pred, activation) or "of which nothing is known"
    return (
        "`y_pred` must be marked as logits, the scores before a softmax or a sigmoid, "
        f"for the loss to be sure of them. Received: an unmarked tensor of shape "
        f"{tuple(y_pred.shape)}, {found}. End the model with "
        f"LogitsHead(units, activation={activation!r}) or, after a last layer of your "
        f"own, MarkLogits({activation!r}); or write {type(owner).__name__}("
        "from_logits=True) for logits and from_logits=False for probabilities. "
        f"{_CAUSES}"
    )


def _refuse_probabilities(owner: Any, y_pred: Tensor, activation: Activation) -> None:
    remedy = (
        f"Write LogitsHead(units, activation={activation!r}) for the last layer and "
        f"{type(owner).__name__}() for the loss, or from_logits=False."
    )
    produced = producer(y_pred)
    if produced:
        raise ValueError(
            "`from_logits=True` says that `y_pred` holds logits. Received: a tensor "
            f"that is {produced}. {remedy}"
        )
    if owner._looked_at_values or not is_concrete(y_pred):
        return
    owner._looked_at_values = True
    seen = _seen_in_values(owner, y_pred, activation)
    if seen:
        warnings.warn(
            "`from_logits=True` says that `y_pred` holds logits, but it looks like "
            f"probabilities: {seen}. If it is, the model trains slowly. {remedy}",
            stacklevel=5,
        )


def _seen_in(owner: Any, y_pred: Tensor, activation: Activation) -> str | None:
    seen = is_concrete(y_pred) and _seen_in_values(owner, y_pred, activation)
    return f"which looks like probabilities: {seen}" if seen else None


def producer(y_pred: Tensor) -> str | None:
    """What Keras itself notes of a tensor: that an activation of its own made it."""
    if getattr(y_pred, "_keras_logits", None) is None:
        return None
    return "the output of a Keras softmax or sigmoid, that is, probabilities"


def _seen_in_values(owner: Any, y_pred: Tensor, activation: Activation) -> str | None:
    values = ops.convert_to_numpy(y_pred).astype("float32")
    if values.size == 0 or not (values.min() >= 0 and values.max() <= 1):
        return None
    if activation == "sigmoid":
        return "all values are in [0, 1]"
    axis = owner._options.axis
    known = -values.ndim <= axis < values.ndim  # what is not, is refused after this
    if known and np.allclose(values.sum(axis=axis), 1.0, atol=1e-3):
        return "all rows are in [0, 1] and sum to 1"
    return None
