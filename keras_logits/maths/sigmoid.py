r"""Sigmoid cross-entropy of independent yes/no units, together with its gradient.

One unit with logit $z$, $s = \operatorname{sigmoid}(z)$, label $y$ in [0, 1], smoothed
to $t = (1 - \varepsilon) y + \varepsilon / 2$, positive weight $\pi$ and focal
exponent $\gamma$:

$$\ell = -\pi t (1 - s)^\gamma \log s - (1 - t) s^\gamma \log (1 - s)$$
"""

from dataclasses import dataclass

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.alarms import nan_where
from keras_logits.maths.links import at_least_float32
from keras_logits.maths.probabilities import (
    Rounding,
    log_of,
    log_of_rest,
    no_probabilities,
    rounding_of,
)
from keras_logits.maths.softmax import Evaluated
from keras_logits.maths.weights import counting, usable

Sides = tuple[Tensor, Tensor, Tensor, Tensor]
"""The loss of a positive label, its derivative, and the same of a negative one."""


@dataclass(frozen=True)
class SigmoidFormula:
    """The options of a sigmoid cross-entropy. Hashable: it keys compiled functions."""

    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    from_probabilities: bool = False

    def over_scores(self, per_unit: Tensor) -> Tensor:
        """Losses have the shape of the scores already."""
        return per_unit

    def over_losses(self, per_score: Tensor) -> Tensor:
        return per_score

    def evaluate(
        self,
        labels: Tensor,
        scores: Tensor,
        weights: Tensor,
        pos_weight: Tensor | None = None,
    ) -> Evaluated:
        """Losses of all units, and the gradient of their weighted sum.

        A unit of weight 0 has gradient 0, whatever its logit is. A bad label or a NaN
        weight gives the loss NaN and the gradient 0: loud, and harmless.
        """
        z = at_least_float32(scores)
        y = ops.cast(labels, z.dtype)
        valid = ops.logical_and(y >= 0, y <= 1)
        if self.from_probabilities:
            valid = ops.logical_and(valid, ops.logical_not(no_probabilities(scores)))
        bad, w = usable(valid, weights)
        t = ops.where(valid, y, ops.zeros_like(y))
        if self.label_smoothing:
            t = (1.0 - self.label_smoothing) * t + 0.5 * self.label_smoothing

        if self.from_probabilities:
            sides = self._of_probabilities(z, rounding_of(scores.dtype))
        else:
            sides = self.two_sides(z)
        yes, yes_slope, no, no_slope = sides
        positive = t if pos_weight is None else t * ops.cast(pos_weight, z.dtype)
        losses = _selected(positive, yes) + _selected(1.0 - t, no)
        gradient = w * (positive * yes_slope + (1.0 - t) * no_slope)
        losses = losses + nan_where(bad, losses.dtype)
        return Evaluated(losses, counting(gradient, w))

    def two_sides(self, z: Tensor) -> Sides:
        """The loss of a positive and of a negative label, each with its derivative."""
        # By `where` and not by abs: the derivative at 0 must be that of one branch.
        positive = z >= 0
        magnitude = ops.where(positive, z, -z)
        e = ops.exp(-magnitude)
        tail, share = ops.log1p(e), 1.0 / (1.0 + e)
        zeros = ops.zeros_like(z)
        yes = ops.where(positive, zeros, -z) + tail  # -log s
        no = ops.where(positive, z, zeros) + tail  # -log (1 - s)
        s = ops.where(positive, share, e * share)
        r = ops.where(positive, e * share, share)
        if not self.focal_gamma:
            return yes, -r, no, s
        gamma = self.focal_gamma
        yes_factor, no_factor = ops.exp(-gamma * no), ops.exp(-gamma * yes)
        yes_slope = -yes_factor * (r + gamma * _selected(s, yes))
        no_slope = no_factor * (s + gamma * _selected(r, no))
        return (
            _selected(yes_factor, yes),
            yes_slope,
            _selected(no_factor, no),
            no_slope,
        )

    def _of_probabilities(self, s: Tensor, rounding: Rounding) -> Sides:
        log_s, slope_s = log_of(s, self.focal_gamma, rounding)
        log_r, slope_r = log_of_rest(s, self.focal_gamma, rounding)
        return -log_s, -slope_s, -log_r, -slope_r


def _selected(factor: Tensor, loss: Tensor) -> Tensor:
    """`factor * loss`, 0 where the factor is 0: an infinite loss does not leak."""
    return factor * counting(loss, factor)
