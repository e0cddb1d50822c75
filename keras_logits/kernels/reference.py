"""The obvious code: what every fast body has to equal, left to automatic derivation.

It is what runs where a backend has no body of its own (NumPy, which has no gradients),
and what the tests compare the bodies with.
"""

from collections.abc import Callable

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.kernels.contract import (
    Formula,
    Linear,
    LinearLogits,
    logits_of,
)
from keras_logits.kernels.contract import mass as mass
from keras_logits.kernels.loop import LinearFormula
from keras_logits.kernels.loop import buffers_of as buffers_of
from keras_logits.maths.figures import figures
from keras_logits.maths.weights import weighed


def weighted(
    formula: Formula,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
    summed: bool,
) -> Tensor:
    losses = formula.evaluate(labels, scores, weights, *constants).losses
    losses = weighed(losses, weights)
    return ops.sum(losses) if summed else losses


def weighted_linear(
    formula: LinearFormula,
    labels: Tensor,
    linear: Linear,
    weights: Tensor,
    class_weights: Tensor | None,
    summed: bool,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    scores = LinearLogits(linear, formula.squash, formula.transposed)
    logits = logits_of(scores, product) if known is None else known
    batch = (labels, logits, weights, (class_weights,))
    value = weighted(formula.softmax, *batch, summed)
    if not formula.figures:
        return value, None
    return value, figures(formula.softmax, formula.figures, labels, logits)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return function


def product(features: Tensor, kernel: Tensor) -> Tensor:
    return ops.matmul(ops.cast(features, "float32"), ops.cast(kernel, "float32"))


read = ops.convert_to_tensor


def device() -> str:
    return "cpu"


def total_over_replicas(total: Tensor) -> Tensor:
    return total


def is_concrete(tensor: Tensor) -> bool:
    return True


def is_sparse(tensor: Tensor) -> bool:
    return False


def is_distributed(*tensors: Tensor | None) -> bool:
    return False
