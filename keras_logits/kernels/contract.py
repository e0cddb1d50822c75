"""What a kernel is given and what it returns; the same for every backend.

    weighted(formula, labels, scores, weights, constants, summed)

returns the weighted losses of all positions, or their sum, such that

- the gradient by the scores is the one that `formula.evaluate` computed in the forward
  pass: backward is one multiplication;
- that gradient can be differentiated again, to any order;
- weights and floating labels get their gradients too, when somebody asks for them.
"""

from collections.abc import Hashable
from typing import Protocol

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.softmax import Evaluated


class Formula(Hashable, Protocol):
    """A loss: its options, how to compute it, and its gradient."""

    def evaluate(
        self, labels: Tensor, scores: Tensor, weights: Tensor, *constants: Tensor
    ) -> Evaluated: ...

    def over_scores(self, per_loss: Tensor) -> Tensor: ...

    def over_losses(self, per_score: Tensor) -> Tensor: ...


def counted(losses: Tensor, weights: Tensor) -> Tensor:
    """`weights * losses`, where a weight of 0 selects its loss out, NaN or not."""
    none = ops.equal(weights, 0)
    return ops.where(none, ops.zeros_like(losses), weights * losses)


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
