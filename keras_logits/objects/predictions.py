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
    "If the model ends with LogitsHead or MarkLogits, one of these dropped the mark:\n"
    "- a layer after it, such as Softmax or Reshape, which made a new tensor\n"
    "- TimeDistributed around it (LogitsHead takes any rank by itself)\n"
    "- a RematScope around the whole model\n"
    "- a model compiled apart from the loss (torch.compile does so at a graph break)\n"
    "- autocast, if it converted the input of the layer that calls the loss\n"
    "- the loss in a metric on JAX\n"
    "- predict(), whose output is never marked"
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
            "`from_logits` must be 'auto' (read the mark), True or False.\n"
            f"Received: from_logits={from_logits!r}\n"
            "Fix: omit from_logits, if the model ends with LogitsHead."
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
            f"`y_pred` must be logits of a {activation}.\n"
            f"Received: {mark!r}\n"
            f"Fix: loss={_LOSS_OF[mark.activation]}, to match the model.\n"
            f"Or LogitsHead(units, activation={activation!r}), to match the loss."
        )
    if mark.logits is not None:
        if from_logits is True:
            raise ValueError(
                "`from_logits=True` is wrong here. `y_pred` holds probabilities.\n"
                f"Received: {mark!r}\n"
                f"Fix: {_LOSS_OF[activation]}, without from_logits. The loss finds the "
                "logits behind the probabilities."
            )
        return Scores(_logits_behind(y_pred, mark), False, mark)
    if from_logits is False:
        raise ValueError(
            "`from_logits=False` is wrong here. `y_pred` holds logits.\n"
            f"Received: {mark!r}\n"
            f"Fix: {_LOSS_OF[activation]}, without from_logits."
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
            "`y_pred` no longer holds the probabilities that were marked.\n"
            "Received: values that differ by up to "
            f"{float(ops.max(difference)):.2g} from those of {mark!r}\n"
            "Fix: p = p * scale, in place of p.data.mul_(scale).\n"
            "The result has no mark. For probabilities, write from_logits=False."
        )
    return logits


def _unmarked(owner: Any, y_pred: Tensor, activation: Activation) -> str:
    made, loss = producer(y_pred), type(owner).__name__
    if made:
        return (
            "`y_pred` must be marked as logits, but it is the output of a softmax or "
            "sigmoid.\n"
            f"Received: an unmarked tensor that is {made}\n"
            f"Fix: {_without_activation(activation)}\n"
            f"To keep the probabilities: {loss}(from_logits=False)."
        )
    if was_compiled_apart(y_pred):
        return (
            "`y_pred` must be marked as logits, but its mark was set in another "
            "function of torch.compile.\n"
            f"Received: a tensor of shape {tuple(y_pred.shape)}, whose mark cannot be "
            "read here\n"
            "Fix: torch.compile(step, fullgraph=True) for head and loss together, or "
            "compile neither.\n"
            "A graph break divides a function in two, and fused=True makes one."
        )
    found = _seen_in(owner, y_pred, activation)
    return (
        "`y_pred` must be marked as logits, the scores before a softmax or sigmoid.\n"
        f"Received: an unmarked tensor of shape {tuple(y_pred.shape)}{found}\n"
        f"Fix: end the model with LogitsHead(units, activation={activation!r}).\n"
        f"To keep your last layer, put MarkLogits({activation!r}) after it.\n"
        f"Without a mark: {loss}(from_logits=True) for logits, from_logits=False for "
        "probabilities.\n"
        f"{_CAUSES}"
    )


def _without_activation(activation: Activation) -> str:
    return (
        "remove that softmax or sigmoid if a LogitsHead comes before it. Otherwise, "
        f"replace it with LogitsHead(units, activation={activation!r})."
    )


def _refuse_probabilities(owner: Any, y_pred: Tensor, activation: Activation) -> None:
    produced, loss = producer(y_pred), type(owner).__name__
    if produced:
        raise ValueError(
            "`from_logits=True` is wrong here. `y_pred` holds probabilities.\n"
            f"Received: a tensor that is {produced}\n"
            f"Fix: {_without_activation(activation)}\n"
            f"Then write {loss}() without from_logits.\n"
            f"To keep the probabilities: {loss}(from_logits=False)."
        )
    if owner._looked_at_values or not is_concrete(y_pred):
        return
    owner._looked_at_values = True
    seen = _seen_in_values(owner, y_pred, activation)
    if seen:
        warnings.warn(
            "`from_logits=True` seems wrong here. `y_pred` looks like probabilities: "
            f"{seen}.\n"
            "A softmax or sigmoid that is applied twice slows training down.\n"
            f"Fix: LogitsHead(units, activation={activation!r}) as the last layer and "
            f"{loss}() as the loss, or from_logits=False.",
            stacklevel=5,
        )


def _seen_in(owner: Any, y_pred: Tensor, activation: Activation) -> str:
    seen = is_concrete(y_pred) and _seen_in_values(owner, y_pred, activation)
    return f", which looks like probabilities: {seen}" if seen else ""


def producer(y_pred: Tensor) -> str | None:
    """What Keras itself notes of a tensor: that an activation of its own made it."""
    if getattr(y_pred, "_keras_logits", None) is None:
        return None
    return "the output of a Keras softmax or sigmoid (probabilities)"


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
