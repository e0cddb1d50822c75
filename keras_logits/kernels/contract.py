"""What a kernel is given and what it returns; the same for every backend.

    weighted(formula, labels, scores, weights, constants, summed)

returns the weighted losses of all positions, or their sum, such that

- the gradient by the scores is the one that `formula.evaluate` computed in the forward
  pass: backward is one multiplication;
- that gradient can be differentiated again, to any order;
- weights and floating labels get their gradients too, when somebody asks for them.

Where the scores are `LinearLogits`, the logits are never made as a whole. Gradients are
then those by features, kernel, bias and weights, and cannot be differentiated again.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.links import accurate_dtype
from keras_logits.maths.shapes import Shape, static_shape
from keras_logits.maths.softmax import Evaluated, SoftmaxFormula
from keras_logits.maths.squash import Squash

NO_SECOND_DERIVATIVE = (
    "`fused` gives gradients that cannot be differentiated again, since the logits are "
    "never held. Received: a second derivative through a fused pass. Write fused=False "
    "in the loss; in a loop of your own, softmax_cross_entropy(labels, logits)."
)


NO_GRADIENT_BY_LABELS = (
    "`labels` get no gradient from a fused pass. Received: labels that are being "
    "differentiated. Write fused=False in the loss, or stop_gradient(labels)."
)


class Formula(Hashable, Protocol):
    """A loss: its options, how to compute it, and its gradient."""

    def evaluate(
        self, labels: Tensor, scores: Tensor, weights: Tensor, *constants: Tensor
    ) -> Evaluated: ...

    def over_scores(self, per_loss: Tensor) -> Tensor: ...

    def over_losses(self, per_score: Tensor) -> Tensor: ...


class Linear(NamedTuple):
    """What scores are computed from: `features @ kernel + bias`."""

    features: Tensor
    kernel: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class LinearLogits:
    """Logits as the recipe for them: `squash(features @ kernel + bias)`.

    Args:
        linear: features `[..., D]`, kernel `[D, V]`, and bias `[V]` or None.
        squash: soft-cap and temperature.
        transposed: whether the kernel is `[V, D]`, as the matrix of an Embedding is.
        memory_budget: bytes beside inputs and gradients; None for a default.
    """

    linear: Linear
    squash: Squash
    transposed: bool = False
    memory_budget: int | None = None

    @property
    def classes(self) -> int:
        return int(self.linear.kernel.shape[0 if self.transposed else 1])

    @property
    def shape(self) -> Shape:
        shape = static_shape(self.linear.features)
        assert shape is not None  # noqa: S101
        return (*shape[:-1], self.classes)

    @property
    def dtype(self) -> str:
        return accurate_dtype(self.linear.features.dtype)

    def sizes(self) -> list[Tensor]:
        """The shape, with symbolic sizes where they are not known yet."""
        return [*ops.shape(self.linear.features)[:-1], self.classes]


def logits_of(
    scores: LinearLogits, matmul: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The logits themselves, by a product that accumulates in float32."""
    features, kernel, bias = scores.linear
    kernel = ops.cast(kernel, features.dtype)
    kernel = ops.transpose(kernel) if scores.transposed else kernel
    products = matmul(features, kernel)
    return scores.squash.of_products(products, bias)


def sparse_matmul(features: Tensor, kernel: Tensor) -> Tensor:
    """A product with sparse features, which Keras knows how to multiply."""
    dtype = accurate_dtype(features.dtype)
    return ops.matmul(ops.cast(features, dtype), ops.cast(kernel, dtype))


def counted(losses: Tensor, weights: Tensor) -> Tensor:
    """`weights * losses`, where a weight of 0 selects its loss out, NaN or not."""
    none = ops.equal(weights, 0)
    # Selected before the product, or the weight's own derivative would be NaN.
    return weights * ops.where(none, ops.zeros_like(losses), losses)


def mass(
    formula: SoftmaxFormula, labels: Tensor, scores: Tensor, class_weights: Tensor
) -> Tensor:
    """Each position's class weight, its share of a mean's denominator."""
    return formula.mass(labels, scores, class_weights)


def gradient_of_scores(
    formula: Formula,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
) -> Tensor:
    """The gradient in closed form, in operations that can be differentiated again."""
    return formula.evaluate(labels, scores, weights, *constants).gradient


def sum_of_losses(
    formula: Formula,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
    upstream: Tensor,
) -> Tensor:
    """What labels and weights are differentiated through, when somebody asks."""
    losses = formula.evaluate(labels, scores, weights, *constants).losses
    return ops.sum(upstream * counted(losses, weights))
