r"""Softmax cross-entropy of one class among K, together with its gradient.

One position with logits $z$ over K classes, $p = \operatorname{softmax}(z)$, labels
as a distribution $y$ (a class id is a distribution with all mass on one class), class
weights $c$, smoothing $\varepsilon$, focal exponent $\gamma$:

$$\ell = -\sum_k c_k t_k (1 - p_k)^\gamma \log p_k
        + \zeta d \operatorname{logsumexp}(z)^2$$

with $t = (1 - \varepsilon) y + \varepsilon \sum y / K'$ over the $K'$ classes that
are not masked by -inf, and $d = \sum_k c_k y_k / \sum_k y_k$.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.alarms import inf_where, nan_where
from keras_logits.maths.labels import valid_class_ids
from keras_logits.maths.links import accurate_dtype, at_least_float32
from keras_logits.maths.probabilities import (
    Rounding,
    log_of,
    no_probabilities,
    rounding_of,
)
from keras_logits.maths.sums import (
    SCALE,
    Sums,
    are_open,
    finite,
    highest_of,
    sums_of,
)
from keras_logits.maths.weights import counting, nonzero, usable


class Evaluated(NamedTuple):
    """Losses, and the gradient of their weighted sum with respect to the scores.

    The gradient is as exact as it was computed. A kernel rounds it to the dtype of the
    scores, after what comes from above: a scaled loss lifts what float16 cannot hold.
    """

    losses: Tensor
    gradient: Tensor


class Positions(NamedTuple):
    """Losses, and the numbers of each position that the gradient is made of."""

    losses: Tensor
    weights: Tensor  # along the axis of the classes, as the following are
    ids: Tensor
    shift: Tensor
    pull: Tensor  # times exp(z - shift), by every class
    drop: Tensor  # by the label's class
    spread: Tensor | None  # by every open class, times its weight


class SoftmaxParts(NamedTuple):
    """A softmax in parts, each safe to differentiate where classes are masked."""

    exp: Tensor  # exp(z - max z)
    total: Tensor  # 1 where every class is masked
    log_total: Tensor
    shift: Tensor
    masked: Tensor


@dataclass(frozen=True)
class SoftmaxFormula:
    """The options of a softmax cross-entropy. Hashable: it keys compiled functions."""

    ids: bool
    classes: Any  # how many; None where only the logits know, see `sized`
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
        """Whether all follows from sums over the classes, and the label's logit."""
        smoothed_and_focal = self.label_smoothing and self.focal_gamma
        return self.ids and not (self.from_probabilities or smoothed_and_focal)

    def sized(self, scores: Tensor) -> "SoftmaxFormula":
        """The formula with a number of classes, which a trace may not know yet."""
        if self.classes is not None:
            return self
        return replace(self, classes=ops.shape(scores)[self.axis])

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
        if self.classes is None:
            return self.sized(scores).evaluate(labels, scores, weights, class_weights)
        z = at_least_float32(scores)
        columns = self._along_classes(class_weights, z)
        if self.closed:
            sums = self.sums(z, columns)
            own = ops.take_along_axis(z, self.true_classes(labels), axis=self.axis)
            found = self.positions(labels, own, weights, sums, columns)
            by_class = self.gradient(found, z, self.class_ids(z), columns)
            return Evaluated(found.losses, by_class)
        given, valid, mass = self.read(labels, z.dtype, columns)
        if self.from_probabilities:
            rounding = rounding_of(scores.dtype)
            losses, gradient = self._of_probabilities(given, z, columns, rounding)
            wrong = ops.any(no_probabilities(scores), axis=self.axis)
            valid = ops.logical_and(valid, ops.logical_not(wrong))
        else:
            losses, gradient = self._of_targets(given, z, columns, mass)
        bad, wide = self._used(valid, weights)
        losses = losses + nan_where(bad, losses.dtype)
        return Evaluated(losses, counting(gradient * wide, wide))

    def _used(self, valid: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Which positions have no loss, and the weights of others along the classes.

        A bad label behind a weight of 0 is nothing bad.
        """
        bad, w = usable(valid, weights)
        return bad, ops.expand_dims(w, self.axis)

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
        good = ops.logical_and(y >= 0, ops.isfinite(y))
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

    def sums(
        self,
        z: Tensor,
        columns: Tensor | None,
        open_classes: Tensor | None = None,
        *,
        entropy: bool = False,
    ) -> Sums:
        """What a closed formula needs of the classes, all of them or a block."""
        asked = {"smoothed": bool(self.label_smoothing), "entropy": entropy}
        return sums_of(z, self.axis, columns, **asked, open_classes=open_classes)

    def positions(
        self,
        labels: Tensor,
        own: Tensor,
        weights: Tensor,
        sums: Sums,
        columns: Tensor | None,
    ) -> Positions:
        """A closed formula, from the labels' own logits and the sums over all classes.

        Weights enter here, because they multiply one number per position instead of one
        per class. A focal factor is that of the label alone: where labels are smoothed
        the formula is not closed.
        """
        ids, valid, mass = self.read(labels, own.dtype, columns)
        bad, w = self._used(valid, weights)
        shift, total = finite(sums["highest"]), nonzero(sums["total"])
        log_total = ops.log(total)
        unreachable = ops.logical_not(are_open(own))
        half = half_surprise(own, shift, log_total, unreachable)
        known = mass * (1.0 - self.label_smoothing)
        pull = known
        if self.focal_gamma:
            p = ops.exp(own - shift) / total
            factor, slope = _focal(half, p, unreachable, self.focal_gamma)
            known, pull = known * factor, known * slope
        part = known * half
        # Not twice the part: TensorFlow would double the surprise, and overflow.
        loss = part + ops.where(unreachable, ops.zeros_like(part), part)
        loss = loss + inf_where(ops.logical_and(unreachable, known > 0), loss.dtype)
        drop = ops.where(unreachable, ops.zeros_like(w), w * pull)
        spread = None
        if self.label_smoothing:
            each = self.label_smoothing / nonzero(sums["count"])
            share = each * sums.get("share", sums["count"])
            loss = loss + (share * log_total - each * sums["drawn"] / SCALE)
            pull, spread = pull + share, w * each
        if self.z_loss:
            lse = shift + log_total
            loss = loss + self.z_loss * mass * lse * lse
            pull = _bounded(pull + 2.0 * self.z_loss * mass * lse)
        loss = ops.squeeze(loss, self.axis)
        loss = loss + nan_where(bad, loss.dtype)
        return Positions(loss, w, ids, shift, w * pull / total, drop, spread)

    def gradient(
        self,
        found: Positions,
        z: Tensor,
        classes: Tensor,
        columns: Tensor | None,
        open_classes: Tensor | None = None,
    ) -> Tensor:
        """By the logits of some classes, given which they are and what they weigh."""
        gradient = ops.exp(z - found.shift) * found.pull
        hot = ops.equal(classes, found.ids)
        gradient = gradient - ops.where(hot, found.drop, ops.zeros_like(found.drop))
        if found.spread is not None:
            spread = found.spread if columns is None else found.spread * columns
            is_open = are_open(z, open_classes)
            gradient = gradient - ops.where(is_open, spread, ops.zeros_like(spread))
        return counting(gradient, found.weights)

    def _of_targets(
        self, given: Tensor, z: Tensor, columns: Tensor | None, mass: Tensor
    ) -> Evaluated:
        """Any labels and any options, through the weighted target c * t."""
        parts = softmax_in_blocks(z, self.axis)
        target = self._targets(given, z, parts.masked)
        if columns is not None:
            target = target * columns
        half = half_surprise(z, parts.shift, parts.log_total, parts.masked)
        p = parts.exp / parts.total
        if self.focal_gamma:
            factor, slope = _focal(half, p, parts.masked, self.focal_gamma)
            terms, slopes = target * factor * half, target * slope
        else:
            terms, slopes = target * half, target

        unreachable = ops.logical_and(parts.masked, target > 0)
        loss = 2.0 * ops.sum(terms, axis=self.axis, keepdims=True)
        lost = ops.any(unreachable, axis=self.axis, keepdims=True)
        loss = ops.where(lost, ops.zeros_like(loss), loss) + inf_where(lost, loss.dtype)
        pull = ops.sum(slopes, axis=self.axis, keepdims=True)
        if self.z_loss:
            lse = parts.shift + parts.log_total
            loss = loss + self.z_loss * mass * lse * lse
            pull = _bounded(pull + 2.0 * self.z_loss * mass * lse)
        gradient = p * pull - ops.where(parts.masked, ops.zeros_like(p), slopes)
        return Evaluated(ops.squeeze(loss, self.axis), gradient)

    def _of_probabilities(
        self, given: Tensor, p: Tensor, columns: Tensor | None, rounding: Rounding
    ) -> Evaluated:
        """Exact logarithms of somebody else's probabilities, not renormalised."""
        target = self._targets(given, p, ops.zeros_like(p, dtype="bool"))
        if columns is not None:
            target = target * columns
        value, slope = log_of(p, self.focal_gamma, rounding)
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

    def true_classes(self, labels: Tensor) -> Tensor:
        """Class ids along the axis of the classes: of distributions, the likeliest."""
        if self.ids:
            ids, _ = valid_class_ids(labels, self.classes)
            return ops.expand_dims(ids, self.axis)
        likeliest = ops.argmax(labels, axis=self.axis)
        return ops.expand_dims(ops.cast(likeliest, "int32"), self.axis)

    def class_ids(self, z: Tensor) -> Tensor:
        """0 to K - 1 along the class axis, 1 elsewhere."""
        return self._along_classes(ops.arange(self.classes, dtype="int32"), z)

    def _along_classes(self, per_class: Tensor | None, z: Tensor) -> Tensor | None:
        if per_class is None:
            return None
        shape = [1] * len(z.shape)
        shape[self.axis] = self.classes
        return ops.reshape(per_class, shape)


def half_surprise(
    z: Tensor, shift: Tensor, log_total: Tensor, masked: Tensor
) -> Tensor:
    """Half of -log p, which is finite for finite logits; 0 where they are masked.

    Two logits may lie further apart than floats reach, and a small target makes that
    finite again.
    """
    # TensorFlow would take out a factor that both terms share, and overflow after all.
    half = 0.5 * log_total - (0.5 * z + -0.5 * shift)
    return ops.where(masked, ops.zeros_like(half), half)


def _focal(
    half: Tensor, p: Tensor, masked: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """`(1 - p)^gamma`, and the derivative of `(1 - p)^gamma * log p` by log p.

    In log space, from half of -log p: `1 - p` would lose its digits where p is near 1,
    and a power of it has no finite derivative there.
    """
    rest = _positive(-ops.expm1(-2.0 * half))
    rest = ops.where(masked, ops.ones_like(rest), rest)  # log p is not -inf there
    factor = ops.exp(gamma * ops.log(rest))
    return factor, factor + 2.0 * gamma * factor * p * (half / rest)


def _bounded(values: Tensor) -> Tensor:
    """Finite, so that a class of probability 0 still has gradient 0."""
    most = float(np.finfo(accurate_dtype(values.dtype)).max)
    return ops.clip(values, -most, most)


def softmax_in_blocks(z: Tensor, axis: int) -> SoftmaxParts:
    masked, shift = ops.equal(z, -float("inf")), finite(highest_of(z, axis))
    exp = ops.exp(z - shift)
    total = nonzero(ops.sum(exp, axis=axis, keepdims=True))
    return SoftmaxParts(exp, total, ops.log(total), shift, masked)


def _positive(values: Tensor) -> Tensor:
    """The values, clipped from below to the smallest normal number."""
    tiny = float(np.finfo(accurate_dtype(values.dtype)).tiny)
    # Not by `maximum`, which makes float32 of float64 on torch.
    return ops.where(values < tiny, ops.full_like(values, tiny), values)
