r"""Softmax cross-entropy of one class among K, together with its gradient.

One position with logits $z$ over K classes, $p = \operatorname{softmax}(z)$, labels
as a distribution $y$ (a class id is a distribution with all mass on one class), class
weights $c$, smoothing $\varepsilon$, focal exponent $\gamma$:

$$\ell = -\sum_k c_k t_k (1 - p_k)^\gamma \log p_k
        + \zeta d \operatorname{logsumexp}(z)^2$$

with $t = (1 - \varepsilon) y + \varepsilon \sum y / K'$ over the $K'$ classes that
are not masked by -inf, and $d = \sum_k c_k y_k / \sum_k y_k$.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.blocks import block_of, fold_blocks
from keras_logits.maths.labels import valid_class_ids
from keras_logits.maths.links import accurate_dtype, at_least_float32
from keras_logits.maths.weights import nonzero

BLOCK = 2048  # classes that are summed together


class Evaluated(NamedTuple):
    """Losses, and the gradient of their weighted sum with respect to the scores.

    The gradient is as exact as it was computed. A kernel rounds it to the dtype of the
    scores, after what comes from above: a scaled loss lifts what float16 cannot hold.
    """

    losses: Tensor
    gradient: Tensor


class SoftmaxParts(NamedTuple):
    """A softmax in parts, each safe to differentiate where classes are masked."""

    shifted: Tensor  # z - max z
    exp: Tensor
    total: Tensor  # 1 where every class is masked
    log_total: Tensor
    shift: Tensor
    masked: Tensor


@dataclass(frozen=True)
class SoftmaxFormula:
    """The options of a softmax cross-entropy. Hashable: it keys compiled functions."""

    ids: bool
    classes: int
    axis: int = -1
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    z_loss: float = 0.0
    from_probabilities: bool = False

    @property
    def plain(self) -> bool:
        """Class ids and no option: what nearly every model is trained with."""
        return self.ids and not (
            self.label_smoothing
            or self.focal_gamma
            or self.z_loss
            or self.from_probabilities
        )

    @property
    def closed(self) -> bool:
        """Whether all but the gradient is a number per position."""
        return self.ids and not (self.label_smoothing and self.focal_gamma)

    def over_scores(self, per_position: Tensor) -> Tensor:
        """Values of positions, ready to multiply the scores of all their classes."""
        return ops.expand_dims(per_position, axis=self.axis)

    def over_losses(self, per_score: Tensor) -> Tensor:
        """Values of scores, summed over the classes of each position."""
        return ops.sum(per_score, axis=self.axis)

    def evaluate(
        self,
        labels: Tensor,
        scores: Tensor,
        weights: Tensor,
        class_weights: Tensor | None = None,
    ) -> Evaluated:
        """Losses of all positions, and the gradient of their weighted sum.

        A position of weight 0 has gradient 0, whatever its logits are. A bad label or
        a NaN weight gives the loss NaN and the gradient 0: loud, and harmless.
        """
        z = at_least_float32(scores)
        columns = self._along_classes(class_weights, z)
        given, valid, mass = self.read(labels, z.dtype, columns)
        usable = ops.logical_and(valid, ops.equal(weights, weights))
        w = ops.where(usable, weights, ops.zeros_like(weights))
        wide = ops.expand_dims(w, self.axis)
        if self.from_probabilities:
            losses, gradient = self._of_probabilities(given, z, columns)
            gradient = gradient * wide
        elif self.closed:
            losses, gradient = self._of_class_ids(given, z, columns, mass, wide)
        else:
            losses, gradient = self._of_targets(given, z, columns, mass)
            gradient = gradient * wide
        gradient = ops.where(ops.equal(wide, 0), ops.zeros_like(gradient), gradient)
        losses = ops.where(usable, losses, ops.full_like(losses, float("nan")))
        return Evaluated(losses, gradient)

    def mass(self, labels: Tensor, scores: Tensor, class_weights: Tensor) -> Tensor:
        """Each position's class weight d, its share of a mean's denominator."""
        columns = self._along_classes(class_weights, scores)
        read = self.read(labels, class_weights.dtype, columns)
        return ops.squeeze(read[2], self.axis)

    def read(
        self, labels: Tensor, dtype: str, columns: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Labels with the bad ones made harmless, which are good, and their mass d."""
        if self.ids:
            ids, valid = valid_class_ids(labels, self.classes)
            ids = ops.expand_dims(ids, self.axis)
            if columns is None:
                return ids, valid, ops.ones_like(ids, dtype=dtype)
            return ids, valid, ops.take(ops.reshape(columns, (-1,)), ids)
        y = ops.cast(labels, dtype)
        good = ops.logical_and(y >= 0, y < float("inf"))
        good = ops.all(good, axis=self.axis, keepdims=True)
        y = ops.where(good, y, ops.zeros_like(y))
        valid = ops.squeeze(good, self.axis)
        total = ops.sum(y, axis=self.axis, keepdims=True)
        if columns is None:
            return y, valid, ops.ones_like(total)
        weighted = ops.sum(y * columns, axis=self.axis, keepdims=True)
        empty = ops.equal(total, 0)
        mass = ops.where(empty, ops.ones_like(total), weighted / nonzero(total))
        return y, valid, mass

    def _of_class_ids(
        self,
        ids: Tensor,
        z: Tensor,
        columns: Tensor | None,
        mass: Tensor,
        w: Tensor,
    ) -> Evaluated:
        """Class ids, which read the logits and write the gradient, and nothing else.

        Weights enter here, and not after, because they multiply one number per
        position instead of one per class. A focal factor is that of the label alone,
        unless labels are smoothed.
        """
        parts = softmax_in_parts(z, self.axis)
        target = ops.take_along_axis(parts.shifted, ids, axis=self.axis)
        unreachable = ops.equal(target, -float("inf"))
        surprise = parts.log_total - target  # -log p
        surprise = ops.where(unreachable, ops.zeros_like(target), surprise)
        own = mass * (1.0 - self.label_smoothing)
        loss, pull = own * surprise, own
        if self.focal_gamma:
            p = ops.exp(target) / parts.total
            factor, slope = _focal(-surprise, p, unreachable, self.focal_gamma)
            loss, pull = loss * factor, own * slope
        lost = ops.where(own > 0, ops.full_like(own, float("inf")), own)
        loss = ops.where(unreachable, lost, loss)
        drop = ops.where(unreachable, ops.zeros_like(w), w * pull)
        hot = ops.equal(self.class_ids(z), ids)
        spread = None
        if self.label_smoothing:
            spread, share, drawn = self._smoothed(z, parts, columns)
            loss = loss + (share * parts.log_total - drawn)
            pull = pull + share
        if self.z_loss:
            lse = parts.shift + parts.log_total
            loss = loss + self.z_loss * mass * lse * lse
            pull = pull + 2.0 * self.z_loss * mass * lse

        gradient = parts.exp * (w * pull / parts.total)
        gradient = gradient - ops.where(hot, drop, ops.zeros_like(drop))
        if spread is not None:
            gradient = gradient - w * spread
        return Evaluated(ops.squeeze(loss, self.axis), gradient)

    def _smoothed(
        self, z: Tensor, parts: SoftmaxParts, columns: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What smoothing adds to each class, its sum, and that of it times shifted."""

        def open_(values: Tensor, z: Tensor) -> Tensor:
            masked = ops.equal(z, -float("inf"))
            return ops.where(masked, ops.zeros_like(z), values)

        total = self.sum_over_classes
        count = total(lambda z: open_(ops.ones_like(z), z), z)
        each = self.label_smoothing / nonzero(count)
        if columns is None:
            share = count
            columns = self._along_classes(ops.ones((self.classes,), z.dtype), z)
        else:
            share = total(lambda z, c: open_(c, z), z, columns)
        drawn = total(lambda z, c: c * open_(z - parts.shift, z), z, columns)
        return open_(each * columns, z), each * share, each * drawn

    def _of_targets(
        self, given: Tensor, z: Tensor, columns: Tensor | None, mass: Tensor
    ) -> Evaluated:
        """Any labels and any options, through the weighted target c * t."""
        parts = softmax_in_parts(z, self.axis)
        target = self._targets(given, z, parts.masked)
        if columns is not None:
            target = target * columns
        log_p = ops.where(
            parts.masked, ops.zeros_like(z), parts.shifted - parts.log_total
        )
        p = parts.exp / parts.total
        if self.focal_gamma:
            factor, slope = _focal(log_p, p, parts.masked, self.focal_gamma)
            terms, slopes = target * factor * log_p, target * slope
        else:
            terms, slopes = target * log_p, target

        unreachable = ops.logical_and(parts.masked, target > 0)
        loss = -ops.sum(terms, axis=self.axis, keepdims=True)
        lost = ops.any(unreachable, axis=self.axis, keepdims=True)
        loss = ops.where(lost, ops.full_like(loss, float("inf")), loss)
        pull = ops.sum(slopes, axis=self.axis, keepdims=True)
        if self.z_loss:
            lse = parts.shift + parts.log_total
            loss = loss + self.z_loss * mass * lse * lse
            pull = pull + 2.0 * self.z_loss * mass * lse
        gradient = p * pull - ops.where(parts.masked, ops.zeros_like(p), slopes)
        return Evaluated(ops.squeeze(loss, self.axis), gradient)

    def _of_probabilities(
        self, given: Tensor, p: Tensor, columns: Tensor | None
    ) -> Evaluated:
        """Exact logarithms of somebody else's probabilities, not renormalised."""
        target = self._targets(given, p, ops.zeros_like(p, dtype="bool"))
        if columns is not None:
            target = target * columns
        value, slope = focal_log(p, self.focal_gamma)
        loss = -ops.sum(target * value, axis=self.axis)
        return Evaluated(loss, -target * slope)

    def _targets(self, given: Tensor, z: Tensor, masked: Tensor) -> Tensor:
        """Labels as a distribution, smoothed over the classes that are not masked."""
        y = given
        if self.ids:
            y = ops.cast(ops.equal(self.class_ids(z), given), z.dtype)
        if not self.label_smoothing:
            return y
        open_ = ops.cast(ops.logical_not(masked), z.dtype)
        count = ops.sum(open_, axis=self.axis, keepdims=True)
        mass = ops.sum(y, axis=self.axis, keepdims=True)
        spread = self.label_smoothing * mass / nonzero(count)
        return (1.0 - self.label_smoothing) * y + spread * open_

    def sum_over_classes(self, terms: Callable[..., Tensor], *wide: Tensor) -> Tensor:
        """The sum over the classes of `terms(*wide)`, which nobody differentiates."""
        axis = self.axis

        def add(start: Any, width: int, total: Tensor) -> Tensor:
            block = [block_of(x, start, width, axis) for x in wide]
            return total + ops.sum(terms(*block), axis=axis, keepdims=True)

        if self.classes <= BLOCK:
            return ops.sum(terms(*wide), axis=axis, keepdims=True)
        first = [block_of(x, 0, 1, axis) for x in wide]
        none = ops.zeros_like(terms(*first))
        return ops.stop_gradient(fold_blocks(add, none, self.classes, BLOCK))

    def class_ids(self, z: Tensor) -> Tensor:
        """0 to K - 1 along the class axis, 1 elsewhere."""
        return self._along_classes(ops.arange(self.classes, dtype="int32"), z)

    def _along_classes(self, per_class: Tensor | None, z: Tensor) -> Tensor | None:
        if per_class is None:
            return None
        shape = [1] * len(z.shape)
        shape[self.axis] = self.classes
        return ops.reshape(per_class, shape)


def focal_log(p: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """`(1 - p)^gamma * log(p)` and its derivative; p is clipped from below only."""
    p = _positive(p)
    log_p = ops.log(p)
    if not gamma:
        return log_p, 1.0 / p
    rest = _positive(1.0 - p)
    factor = ops.exp(gamma * ops.log(rest))
    return factor * log_p, factor / p - gamma * factor * (log_p / rest)


def _focal(
    log_p: Tensor, p: Tensor, masked: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """`(1 - p)^gamma`, and the derivative of `(1 - p)^gamma * log p` by log p.

    In log space, from log p: `1 - p` would lose its digits where p is near 1, and a
    power of it has no finite derivative there.
    """
    rest = _positive(-ops.expm1(log_p))
    rest = ops.where(masked, ops.ones_like(rest), rest)  # log p is not -inf there
    factor = ops.exp(gamma * ops.log(rest))
    return factor, factor - gamma * factor * p * (log_p / rest)


def softmax_in_parts(z: Tensor, axis: int) -> SoftmaxParts:
    masked = ops.equal(z, -float("inf"))
    # torch.compile cannot follow `ops.max`.
    highest = ops.amax(z, axis=axis, keepdims=True)
    empty = ops.equal(highest, -float("inf"))
    shift = ops.stop_gradient(ops.where(empty, ops.zeros_like(highest), highest))
    shifted = z - shift
    exp = ops.exp(shifted)
    total = nonzero(ops.sum(exp, axis=axis, keepdims=True))
    return SoftmaxParts(shifted, exp, total, ops.log(total), shift, masked)


def _positive(values: Tensor) -> Tensor:
    """The values, clipped from below to the smallest normal number."""
    tiny = float(np.finfo(accurate_dtype(values.dtype)).tiny)
    # Not by `maximum`, which makes float32 of float64 on torch.
    return ops.where(values < tiny, ops.full_like(values, tiny), values)
