"""A loss on one batch: labels and scores read, ready to be weighted.

The functions and the loss classes are two ways into the same task: shape the labels,
say which positions count and what share of a mean each has, and hand the rest to a
kernel.
"""

from numbers import Real
from typing import Any

import numpy as np
from keras import ops

from keras_logits import kernels
from keras_logits._keras_private import in_symbolic_scope
from keras_logits._typing import Tensor
from keras_logits.kernels import Weighted
from keras_logits.maths import diagnosis
from keras_logits.maths.labels import class_labels, known_rank, unit_labels
from keras_logits.maths.links import (
    accurate_dtype,
    at_least_float32,
    check_softmax,
)
from keras_logits.maths.probabilities import no_probabilities
from keras_logits.maths.shapes import (
    Shape,
    agree,
    checked_axis,
    fixed,
    sizes,
    static_shape,
)
from keras_logits.maths.sigmoid import SigmoidFormula
from keras_logits.maths.softmax import SoftmaxFormula
from keras_logits.maths.weights import class_weights, nonzero
from keras_logits.options import SigmoidOptions, SoftmaxOptions


class SoftmaxTask:
    """One true class for each position."""

    def __init__(
        self,
        labels: Tensor,
        scores: Tensor,
        options: SoftmaxOptions,
        from_probabilities: bool = False,
    ) -> None:
        if from_probabilities and options.z_loss:
            raise ValueError(
                "`z_loss` needs logits. It penalises their logsumexp, which is lost in "
                "probabilities.\n"
                f"Received: z_loss={options.z_loss!r} and from_logits=False\n"
                "Fix: end the model with LogitsHead(units) and omit from_logits.\n"
                "To keep the probabilities: z_loss=0.0."
            )
        shape = known_rank(scores)
        axis = checked_axis(options.axis, shape)
        check_softmax(shape, axis, _ONE_CLASS)
        self.axis, self.scores = axis, scores
        self.labels, self.are_ids = class_labels(labels, scores, axis)
        self.formula = SoftmaxFormula(
            ids=self.are_ids,
            classes=shape[axis],
            axis=axis,
            label_smoothing=float(options.label_smoothing),
            focal_gamma=float(options.focal_gamma),
            z_loss=float(options.z_loss),
            from_probabilities=from_probabilities,
        )
        self.positions = _ones(fixed(sizes(scores), axis), scores)
        self.per_class, self.mass, self.scale = None, None, None
        if options.class_weight is not None:
            classes = _known_classes(shape, axis, "class_weight")
            values = class_weights(options.class_weight, classes, "class_weight")
            self.per_class = ops.convert_to_tensor(values, self.positions.dtype)
            self.mass = kernels.mass(self.formula, self.labels, scores, self.per_class)
        self.not_ignored = self._not_ignored(options.ignore_index)

    def weighted(
        self, weights: Tensor, summed: bool, figures: tuple[str, ...] = ()
    ) -> Weighted:
        batch = (self.labels, self.scores, weights, (self.per_class,))
        return kernels.weighted(self.formula, *batch, summed, figures)

    def given_weights(self, weights: Tensor) -> Tensor:
        """What the weights of positions stand for: here these themselves."""
        return weights

    def weights_of_figures(self, weights: Tensor) -> Tensor:
        """One weight for each row of the figures."""
        return weights

    def explain(self, counts: np.ndarray) -> None:
        labels = ops.convert_to_numpy(self.labels)
        if self.are_ids:
            classes = self.scores.shape[self.axis]
            diagnosis.explain_class_ids(labels, counts, classes)
        else:
            diagnosis.explain_distributions(labels, counts, self.axis)
        _explain_scores(self, np.expand_dims(counts, self.axis))

    def _not_ignored(self, ignore_index: int | None) -> Tensor | None:
        if ignore_index is None:
            return None
        if self.are_ids:
            return ops.not_equal(self.labels, ignore_index)
        classes = _known_classes(known_rank(self.scores), self.axis, "ignore_index")
        if not 0 <= ignore_index < classes:
            raise ValueError(
                "`ignore_index` must be one of the classes if labels are "
                "distributions. They cannot hold any other value.\n"
                f"Received: ignore_index={ignore_index} and labels of the shape of the "
                f"logits, {tuple(self.scores.shape)}\n"
                "Fix: sample_weight=0 for the positions to ignore."
            )
        ignored = ops.take(self.labels, ignore_index, axis=self.axis)
        total = ops.sum(self.labels, axis=self.axis)
        return ops.logical_not(
            ops.logical_and(ops.equal(ignored, total), ops.not_equal(total, 0))
        )


class SigmoidTask:
    """Independent yes/no units."""

    def __init__(
        self,
        labels: Tensor,
        scores: Tensor,
        options: SigmoidOptions,
        from_probabilities: bool = False,
    ) -> None:
        labels = unit_labels(labels, scores)
        if len(known_rank(scores)) == 1:
            labels, scores = labels[:, None], scores[:, None]
        shape = known_rank(scores)
        self.axis = checked_axis(options.axis, shape)
        self.labels, self.scores = labels, scores
        self.formula = SigmoidFormula(
            label_smoothing=float(options.label_smoothing),
            focal_gamma=float(options.focal_gamma),
            from_probabilities=from_probabilities,
        )
        self.positions = _ones(fixed(ops.shape(scores), self.axis), scores)
        self.not_ignored, self.known = None, None
        self.unit_weights = self._along_units(options.class_weight, "class_weight")
        self.pos_weight = self._along_units(options.pos_weight, "pos_weight")
        if options.ignore_index is not None:
            self.known = ops.not_equal(labels, options.ignore_index)
            self.not_ignored = ops.any(self.known, axis=self.axis)
            base = ops.ones((), self.positions.dtype)
            known = ops.cast(self.known, base.dtype)
            self.unit_weights = known * (
                base if self.unit_weights is None else self.unit_weights
            )
        self.mass = self._mass()
        self.scale = 1.0 / nonzero(self.mass)
        self.sample_weight: Tensor | None = None

    def weighted(
        self, weights: Tensor, summed: bool, figures: tuple[str, ...] = ()
    ) -> Weighted:
        found = self.per_unit(weights, summed, figures)
        if summed:
            return found
        return found._replace(value=ops.sum(found.value, axis=self.axis))

    def per_unit(
        self, weights: Tensor, summed: bool = False, figures: tuple[str, ...] = ()
    ) -> Weighted:
        weights = ops.expand_dims(weights, axis=self.axis)
        if self.unit_weights is not None:
            weights = weights * self.unit_weights
        batch = (self.labels, self.scores, weights, (self.pos_weight,))
        return kernels.weighted(self.formula, *batch, summed, figures)

    def of_units(self, sample_weight: Tensor | None) -> bool:
        """Whether there is a weight for each unit of each position."""
        if sample_weight is None:
            return False
        shape = static_shape(ops.convert_to_tensor(sample_weight))
        return shape is not None and agree(shape, known_rank(self.scores))

    def weigh_units(self, sample_weight: Tensor, counted: Tensor | None) -> None:
        """Takes a weight for each unit of each position, of those that count.

        It multiplies the class weight, and the share of a mean. The value of a position
        under another reduction is still divided by the class weights alone.
        """
        own = ops.cast(ops.convert_to_tensor(sample_weight), self.positions.dtype)
        for counts in (self.known, self._along_positions(counted)):
            if counts is not None:
                own = ops.where(counts, own, ops.zeros_like(own))
        self.sample_weight = own
        units = own if self.unit_weights is None else own * self.unit_weights
        self.unit_weights = units
        mass = ops.sum(units, axis=self.axis)
        # As of a position's weight, a negative one would flip the gradients of a mean.
        negative = ops.any(own < 0, axis=self.axis)
        self.mass = ops.where(negative, ops.full_like(mass, float("nan")), mass)

    def given_weights(self, weights: Tensor) -> Tensor:
        """What the weights of positions stand for: these, or those of their units."""
        return weights if self.sample_weight is None else self.sample_weight

    def weights_of_figures(self, weights: Tensor) -> Tensor:
        """One weight for each row of the figures: that of its position, if known."""
        whole = ops.ones_like(self.scores, dtype=weights.dtype)
        if self.sample_weight is not None:
            whole = self.sample_weight
        elif self.known is not None:
            whole = ops.cast(self.known, weights.dtype)
        return whole * ops.expand_dims(weights, axis=self.axis)

    def _along_positions(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else ops.expand_dims(values, axis=self.axis)

    def explain(self, counts: np.ndarray) -> None:
        counts = np.expand_dims(counts, self.axis)
        if self.unit_weights is not None:
            counts = counts & (ops.convert_to_numpy(self.unit_weights) != 0)
        diagnosis.explain_units(ops.convert_to_numpy(self.labels), counts)
        _explain_scores(self, counts)

    def _along_units(self, values: Any, name: str) -> Tensor | None:
        if values is None:
            return None
        dtype = self.positions.dtype
        if isinstance(values, Real):
            return ops.convert_to_tensor(float(values), dtype)
        units = _known_classes(known_rank(self.scores), self.axis, name)
        shape = [1] * len(self.scores.shape)
        shape[self.axis] = units
        tensor = ops.convert_to_tensor(class_weights(values, units, name), dtype)
        return ops.reshape(tensor, shape)

    def _mass(self) -> Tensor:
        """Each position's number of known units, by their class weights."""
        units = ops.cast(ops.shape(self.scores)[self.axis], self.positions.dtype)
        if self.unit_weights is None:
            return self.positions * units
        whole = self.unit_weights * ops.expand_dims(self.positions, self.axis)
        return ops.sum(whole, axis=self.axis)


def _ones(shape: list[Tensor], scores: Tensor) -> Tensor:
    return ops.ones(shape, dtype=accurate_dtype(scores.dtype))


def _explain_scores(task: "SoftmaxTask | SigmoidTask", counts: np.ndarray) -> None:
    if task.formula.from_probabilities and kernels.is_concrete(task.scores):
        wrong = ops.convert_to_numpy(no_probabilities(task.scores))
        scores = ops.convert_to_numpy(at_least_float32(task.scores))
        diagnosis.explain_probabilities(scores, counts & wrong)


def _known_classes(shape: Shape, axis: int, name: str) -> int:
    classes = shape[axis]
    if classes is None:
        raise ValueError(
            f"`{name}` needs a known number of classes.\n"
            f"Received: {name} and logits of shape {shape}, with axis={axis}\n"
            "Fix: logits = keras.ops.reshape(logits, (-1, number_of_classes))"
        )
    return classes


_ONE_CLASS = (
    "LogitsHead(1, 'sigmoid') with SigmoidCrossEntropy(), for a yes/no output.\n"
    "In a custom loop: sigmoid_cross_entropy(labels, logits)."
)


def check_result(
    task: SoftmaxTask | SigmoidTask,
    result: Tensor,
    weights: Tensor,
    reduction: object = None,
) -> None:
    """Raises if bad labels or weights made the result NaN; in eager code only.

    Where the result has no value yet (JAX, deriving without jit) but labels and
    weights have theirs, these are looked at in any case.
    """
    if in_symbolic_scope():
        return
    given = task.given_weights(weights)
    if kernels.is_concrete(result):
        if not np.isnan(ops.convert_to_numpy(result)).any():
            return
    elif not (kernels.is_concrete(task.labels) and kernels.is_concrete(given)):
        return
    diagnosis.explain_weights(ops.convert_to_numpy(given), reduction)
    task.explain(ops.convert_to_numpy(weights) != 0)
