"""Logits of a head that go to a loss of Keras which takes them for probabilities.

That trains badly without a word, so the first step in which it happens says so. The
head looks for the model whose step it runs in, and at the losses that it was compiled
with. Only where one of them is suspect is that step's `compute_loss` followed by a look
at what it was given.
"""

import functools
import inspect
import sys
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import keras

from keras_logits._keras_private import in_symbolic_scope
from keras_logits._typing import Tensor
from keras_logits.kernels import tensors
from keras_logits.provenance import Mark, origin_of

_LOSS_OF = {"softmax": "SoftmaxCrossEntropy()", "sigmoid": "SigmoidCrossEntropy()"}


class LossesOfItsModel:
    """What a head knows of the losses that its model was compiled with."""

    def __init__(self, head: Any) -> None:
        self._get = head._keras.losses.get
        self._model: weakref.ref[Any] | None = None
        self._looked_at: Any = None

    def look(self) -> None:
        """Has the losses of this step judged, unless they were before."""
        if tensors.trace() or in_symbolic_scope():
            return
        model: Any = None if self._model is None else self._model()
        if model is None:
            model = next(_models_in_a_step(), None)
            if model is None:
                return
            self._model = weakref.ref(model)
        if model.loss is self._looked_at:
            return
        self._looked_at = model.loss
        suspects = [loss for loss in _leaves(model.loss) if self._is_suspect(loss)]
        if suspects:
            _judge_next_step(model, suspects)

    def _is_suspect(self, loss: Any) -> bool:
        if isinstance(loss, str):
            try:
                loss = self._get(loss)
            except ValueError:  # Keras says so itself
                return False
        return _takes_probabilities(loss)


def _models_in_a_step() -> Iterator[Any]:
    """The compiled models in one of whose steps this code runs."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ("train_step", "test_step"):
            model = frame.f_locals.get("self")
            if getattr(model, "loss", None) is not None:
                yield model
        frame = frame.f_back  # type: ignore[assignment]


def _leaves(structure: Any) -> list[Any]:
    leaves: list[Any] = keras.tree.flatten(structure)
    return leaves


def _takes_probabilities(loss: Any) -> bool:
    """Whether this is a loss of Keras that is not told that it is given logits."""
    if isinstance(loss, functools.partial):
        return not loss.keywords.get("from_logits") and _takes_probabilities(loss.func)
    known = loss if inspect.isroutine(loss) else type(loss)
    if known.__module__.partition(".")[0] not in ("keras", "tf_keras"):
        return False
    if inspect.isroutine(loss):
        return "from_logits" in inspect.signature(loss).parameters
    told = {**getattr(loss, "_fn_kwargs", {}), **vars(loss)}
    return "from_logits" in told and not told["from_logits"]


def _judge_next_step(model: Any, suspects: list[Any]) -> None:
    """Has one call of the model's `compute_loss` followed by a judgement of it."""
    before, compute = vars(model).get("compute_loss"), model.compute_loss
    if getattr(before, "judges", False):  # for another head of the model
        return

    @functools.wraps(compute)
    def compute_and_judge(*args: Any, **kwargs: Any) -> Tensor:
        # Not by the model's own `__setattr__`, which tracks what it is given.
        vars(model).pop("compute_loss", None)
        if before is not None:
            vars(model)["compute_loss"] = before
        value = compute(*args, **kwargs)
        given = dict(zip(("x", "y", "y_pred"), args, strict=False), **kwargs)
        _judge(model, given.get("y_pred"), suspects)
        return value

    compute_and_judge.judges = True  # type: ignore[attr-defined]
    vars(model)["compute_loss"] = compute_and_judge


def _judge(model: Any, y_pred: Any, suspects: list[Any]) -> None:
    for index, (path, output) in enumerate(keras.tree.flatten_with_path(y_pred)):
        mark = origin_of(output)
        if mark is None or mark.logits is not None or "loss" in mark.readers:
            continue
        of_output = _leaves(_losses_of(model, index, path))
        found = [loss for loss in of_output if any(loss is s for s in suspects)]
        if found:
            _warn(found[0], mark)


def _losses_of(model: Any, index: int, path: tuple[Any, ...]) -> Any:
    """The losses that belong to an output, as far as their structure tells."""
    losses, names = model.loss, getattr(model, "output_names", None) or []
    name = path[-1] if path and isinstance(path[-1], str) else None
    if isinstance(losses, dict):
        name = name if name in losses else dict(enumerate(names)).get(index)
        return losses.get(name)
    if isinstance(losses, list | tuple) and index < len(losses):
        return losses[index]
    return losses


def _warn(loss: Any, mark: Mark) -> None:
    name = loss if isinstance(loss, str) else getattr(loss, "name", None)
    shown = repr(name or getattr(loss, "__name__", type(loss).__name__))
    head = "a head" if mark.head is None else repr(mark.head.name)
    warnings.warn(
        f"`loss` expects probabilities, but receives the logits of {head}. The model "
        "will train badly.\n"
        f"Received: loss={shown} without from_logits=True\n"
        f"Fix: model.compile(..., loss={_LOSS_OF[mark.activation]})\n"
        "To keep the Keras loss, pass it from_logits=True.",
        stacklevel=2,
    )
