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
from keras_logits.maths.weights import counting, weighed

NO_SECOND_DERIVATIVE = (
    "`fused` gradients cannot be differentiated again.\n"
    "Received: a second derivative through a fused loss\n"
    "Fix: fused=False in the loss.\n"
    "In a custom loop: softmax_cross_entropy(labels, logits)."
)


NO_GRADIENT_BY_LABELS = (
    "`labels` get no gradient from a fused loss.\n"
    "Received: labels that are being differentiated\n"
    "Fix: keras.ops.stop_gradient(labels), or fused=False in the loss."
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
        known: the logits, where they have values already. Losses then follow from
            these, and the operands are only what gradients are passed on to.
    """

    linear: Linear
    squash: Squash
    transposed: bool = False
    memory_budget: int | None = None
    known: Tensor | None = None

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
    scores: LinearLogits, product: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The logits themselves, by a product that accumulates in float32.

    Features that are not finite make their own logits so. Where the gradient by these
    is 0, behind a mask or a weight of 0, they pass 0 on to the kernel, not 0 times NaN.
    """
    features, kernel, bias = scores.linear
    kernel = ops.cast(kernel, features.dtype)
    kernel = ops.transpose(kernel) if scores.transposed else kernel
    return scores.squash.past_nan(product(features, kernel), bias)


def sparse_matmul(features: Tensor, kernel: Tensor) -> Tensor:
    """A product with sparse features, which Keras knows how to multiply."""
    dtype = accurate_dtype(features.dtype)
    return ops.matmul(ops.cast(features, dtype), ops.cast(kernel, dtype))


def counted(losses: Tensor, weights: Tensor) -> Tensor:
    """`weights * losses`, where a weight of 0 selects its loss out, NaN or not."""
    return weights * counting(losses, weights)


def mass(
    formula: SoftmaxFormula, labels: Tensor, scores: Tensor, class_weights: Tensor
) -> Tensor:
    """Each position's class weight, its share of a mean's denominator."""
    return formula.mass(labels, scores, class_weights)


def evaluated_again(
    formula: Formula,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
) -> Evaluated:
    """What `formula.evaluate` gives, in operations that can be differentiated.

    The gradient is linear in the weights: they multiply that of weights of 1, so that
    a weight of 0 has its derivative too. Where a weight is 0 and the loss not finite,
    scores are selected out first, since 0 times the derivative of NaN would be NaN.
    """
    problem = (labels, ops.stop_gradient(scores), ops.ones_like(weights))
    alone = ops.stop_gradient(formula.evaluate(*problem, *constants).losses)
    none = ops.equal(weights, 0)
    hidden = ops.logical_and(none, ops.logical_not(ops.isfinite(alone)))
    # A half is a good score of either kind, a logit or a probability.
    wide = formula.over_scores(hidden)
    scores = ops.where(wide, ops.full_like(scores, 0.5), scores)
    known = ops.equal(weights, weights)
    one = ops.where(known, ops.ones_like(weights), weights)
    one = ops.where(hidden, ops.zeros_like(weights), one)
    losses, gradient = formula.evaluate(labels, scores, one, *constants)
    losses = ops.where(hidden, alone, losses)
    w = ops.where(known, weights, ops.zeros_like(weights))
    return Evaluated(losses, weighed(gradient, formula.over_scores(w)))


def sum_of_losses(
    formula: Formula,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
    upstream: Tensor,
) -> Tensor:
    """What labels and weights are differentiated through, when somebody asks."""
    losses = evaluated_again(formula, labels, scores, weights, constants).losses
    return ops.sum(upstream * weighed(losses, weights))


def left_out(weights: Tensor) -> Tensor:
    """Weights that are 1 where these are 0, and 0 elsewhere."""
    return ops.cast(ops.equal(weights, 0), weights.dtype)


def finite_or_zero(losses: Tensor) -> Tensor:
    """Losses as derivatives by weights of 0, of which one that hides has none."""
    return ops.where(ops.isfinite(losses), losses, ops.zeros_like(losses))
