"""The losses: from `y_true, y_pred` to a scalar."""

from abc import abstractmethod
from typing import Any

import keras
from keras import ops

from keras_logits._keras_private import get_keras_mask, in_symbolic_scope
from keras_logits._typing import (
    Activation,
    ClassWeight,
    FromLogits,
    Fused,
    Reduction,
    Tensor,
)
from keras_logits.functions import losses_of, reduced_loss
from keras_logits.maths.links import accurate_dtype
from keras_logits.maths.weights import check_reduction
from keras_logits.objects.fusing import (
    check_fused,
    linear_logits,
)
from keras_logits.objects.predictions import Scores, check_from_logits, read_scores
from keras_logits.objects.same_keras import keras_of
from keras_logits.objects.shown import as_call
from keras_logits.options import SigmoidOptions, SoftmaxOptions, check_memory_budget
from keras_logits.provenance import Mark
from keras_logits.tasks import SigmoidTask, SoftmaxTask


class LogitsLoss:
    """What the losses share: reading the mark, weights, reduction, and loud errors."""

    _activation: Activation
    _options: SoftmaxOptions | SigmoidOptions

    def __init__(
        self,
        *,
        from_logits: FromLogits,
        reduction: Reduction | None,
        name: str,
        dtype: Any,
    ) -> None:
        check_from_logits(from_logits)
        check_reduction(reduction)
        super().__init__(name=name, reduction="sum")  # type: ignore[call-arg]
        self.from_logits = from_logits
        self._reduction = reduction
        if keras_of(self) == "keras":
            # tf-keras scales a loss that is not a "sum" by the number of replicas. Ours
            # needs no scaling: its denominator is that of all replicas already.
            self.reduction = reduction
        self._given_dtype = _dtype_name(dtype)
        self._looked_at_values = False

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        mask = get_keras_mask(y_pred)
        scores = self._scores(y_pred)
        task = self._new_task(y_true, scores)
        names = _reports_to_fill(scores.mark)
        found = reduced_loss(task, sample_weight, mask, self._reduction, names)
        if names:
            scores.mark.head.report(found.figures, found.weights)  # type: ignore[union-attr]
        return found.value

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns one loss per position, neither weighted nor reduced."""
        return losses_of(self._new_task(y_true, self._scores(y_pred)))

    def __repr__(self) -> str:
        return as_call(self, values=self.get_config())

    def get_config(self) -> dict[str, Any]:
        return {
            "from_logits": self.from_logits,
            **vars(self._options),
            "reduction": self._reduction,
            "name": self.name,  # type: ignore[attr-defined]
            "dtype": self._given_dtype,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LogitsLoss":
        config = dict(config)
        for name in ("class_weight", "pos_weight"):
            if isinstance(config.get(name), dict):  # JSON knows no integer keys
                config[name] = {int(k): v for k, v in config[name].items()}
        return cls(**config)

    def _scores(self, y_pred: Tensor) -> Scores:
        return read_scores(self, y_pred, self._activation, self.from_logits)

    def _cast(self, scores: Tensor) -> Tensor:
        return scores if self._given_dtype is None else _cast(scores, self._given_dtype)

    @abstractmethod
    def _new_task(self, labels: Tensor, scores: Scores) -> SoftmaxTask | SigmoidTask:
        """The loss's task on one batch."""


class SoftmaxCrossEntropy(LogitsLoss):
    r"""Cross-entropy of one true class among K, computed from logits.

    The loss reads the mark that `LogitsHead` or `MarkLogits` set on `y_pred`, so it
    knows whether it receives logits. It replaces Keras' `CategoricalCrossentropy`,
    `SparseCategoricalCrossentropy` and `CategoricalFocalCrossentropy`.

    The loss of one position, $\ell_i$, is that of `softmax_cross_entropy`. The mean is
    $\sum_i w_i \ell_i / \sum_i w_i d_i$, where $w_i$ is the sample weight, or 0 if the
    position is masked or ignored, and $d_i$ is the class weight of the label, or 1
    without class weights. If every weight is 0, the mean is 0. A position of weight 0
    is excluded, so NaN and bad labels behind a mask have no effect.

    Labels are class ids or distributions, and the shape decides which. Class ids have
    any integer dtype and the shape of the logits, with the class axis left out or of
    size 1. Distributions have the shape of the logits.

    In eager code, a bad label is an error. Compiled code cannot raise, so the loss
    becomes NaN instead. The gradient for that label is 0, so the weights stay intact.
    The same holds for values outside [0, 1] under `from_logits=False`.
    Callbacks that watch the training loss see that NaN, so let them watch `val_loss`.

    Args:
        from_logits: "auto" reads the mark and rejects a tensor without one. True and
            False declare that an unmarked tensor holds logits or probabilities. For
            probabilities, the slope of the logarithm is capped at 1e25.
        class_weight: a list with one weight per class, or a dict with the weights of
            some classes, for labels of any shape.
        label_smoothing: the share of each label that is spread over the classes, from 0
            to 1. Classes that are masked by a logit of -inf get none.
        focal_gamma: the exponent of the focal factor `(1 - p)^gamma`.
        z_loss: the weight of the penalty `logsumexp(logits)^2`.
        ignore_index: positions with this class id do not count.
        axis: the axis of the classes.
        fused: whether to compute the loss chunk by chunk, without allocating the
            logits. "auto" does so for logits of a `LogitsHead` with at least 8192
            classes, in compiled code. True always does, or raises if that is not
            possible. False never does.
        memory_budget: the bytes that a fused loss may allocate on top of its inputs and
            gradients; None means 256 MiB on a CPU and 2 GiB on an accelerator.
        reduction: "mean_with_sample_weight" (the mean above), "sum_over_batch_size" or
            "mean" (divide by the number of positions that are neither masked nor
            ignored), "sum", or None for one value per position.
        name: the name of the loss.
        dtype: "float64" computes in float64; the minimum is float32.

    Returns:
        A scalar in nats, or `[...]`, one value per position, under `reduction=None`.

    Raises:
        ValueError: if an option is out of range, if `y_pred` is not what `from_logits`
            says, or if shapes do not fit; in eager code, also for bad labels, and for
            negative weights under a mean that divides by them.

    Example:
        >>> model.compile("adam", loss=SoftmaxCrossEntropy())

    See also:
        `SigmoidCrossEntropy`, for independent yes/no labels.
    """

    _activation = "softmax"

    def __init__(
        self,
        from_logits: FromLogits = "auto",
        *,
        class_weight: ClassWeight | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        z_loss: float = 0.0,
        ignore_index: int | None = None,
        axis: int = -1,
        fused: Fused = "auto",
        memory_budget: int | None = None,
        reduction: Reduction | None = "mean_with_sample_weight",
        name: str = "softmax_cross_entropy",
        dtype: Any = None,
    ) -> None:
        check_fused(fused)
        check_memory_budget(memory_budget)
        super().__init__(
            from_logits=from_logits, reduction=reduction, name=name, dtype=dtype
        )
        self._options: SoftmaxOptions = SoftmaxOptions(
            class_weight, label_smoothing, focal_gamma, z_loss, ignore_index, axis
        )
        self.fused = fused
        self.memory_budget = memory_budget
        self._warned_of_plain = False

    def __repr__(self) -> str:
        return as_call(self, values=self.get_config())

    def get_config(self) -> dict[str, Any]:
        own = {"fused": self.fused, "memory_budget": self.memory_budget}
        return {**super().get_config(), **own}

    def _new_task(self, labels: Tensor, scores: Scores) -> SoftmaxTask:
        linear = linear_logits(self, scores)
        if linear is not None:
            return SoftmaxTask(labels, linear, self._options)
        values = self._cast(scores.values)
        return SoftmaxTask(labels, values, self._options, scores.are_probabilities)


class SigmoidCrossEntropy(LogitsLoss):
    r"""Cross-entropy of independent yes/no units, computed from logits.

    Use it for binary and multi-label classification. The loss reads the mark that
    `LogitsHead(units, "sigmoid")` or `MarkLogits("sigmoid")` set on `y_pred`, so it
    knows whether it receives logits. It replaces Keras' `BinaryCrossentropy`,
    `BinaryFocalCrossentropy` and `tf.nn.weighted_cross_entropy_with_logits`.

    The loss of one unit, $\ell_{iu}$, is that of `sigmoid_cross_entropy` without its
    class weight, $c_u$. The value of a position is the mean over its known units,
    weighted by `class_weight`. The mean over everything is
    $\sum w_i c_u \ell_{iu} / \sum w_i c_u$ over the known units, where $w_i$ is the
    sample weight, or 0 if the position is masked. If every weight is 0, the mean is 0.

    A sample weight in the shape of the logits weighs each label separately. Then
    $w_{iu}$ replaces $w_i$, and the value of a position is
    $\sum_u w_{iu} c_u \ell_{iu} / \sum_u c_u$.

    Labels have the shape of the logits and are bool, integer, or floating in [0, 1]. If
    there is one unit, a last axis of size 1 may be missing or extra.

    In eager code, a bad label is an error. Compiled code cannot raise, so the loss
    becomes NaN instead. The gradient for that label is 0, so the weights stay intact.
    The same holds for values outside [0, 1] under `from_logits=False`.

    Args:
        from_logits: "auto" reads the mark and rejects a tensor without one. True and
            False declare that an unmarked tensor holds logits or probabilities. For
            probabilities, the slope of the logarithm is capped at 1e25.
        class_weight: a list with one weight per unit, or a dict with the weights of
            some units.
        pos_weight: the weight of the positive term, a number or one per unit.
        label_smoothing: the share of each label that moves to 1/2, from 0 to 1.
        focal_gamma: the exponent of the focal factor.
        ignore_index: units with this label are unknown and do not count.
        axis: the axis of the units.
        reduction: "mean_with_sample_weight" (the mean above), "sum_over_batch_size" or
            "mean" (the sum of the positions' values, divided by the number of positions
            that are neither masked nor ignored), "sum", or None for one value per
            position.
        name: the name of the loss.
        dtype: "float64" computes in float64; the minimum is float32.

    Returns:
        A scalar in nats, or `[...]`, one value per position, under `reduction=None`.

    Raises:
        ValueError: as in `SoftmaxCrossEntropy`.

    Example:
        >>> model.compile("adam", loss=SigmoidCrossEntropy(pos_weight=3.0))

    See also:
        `SoftmaxCrossEntropy`, for exactly one true class.
    """

    _activation = "sigmoid"

    def __init__(
        self,
        from_logits: FromLogits = "auto",
        *,
        class_weight: ClassWeight | None = None,
        pos_weight: float | list[float] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        ignore_index: int | None = None,
        axis: int = -1,
        reduction: Reduction | None = "mean_with_sample_weight",
        name: str = "sigmoid_cross_entropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            from_logits=from_logits, reduction=reduction, name=name, dtype=dtype
        )
        self._options: SigmoidOptions = SigmoidOptions(
            class_weight, pos_weight, label_smoothing, focal_gamma, ignore_index, axis
        )

    def _new_task(self, labels: Tensor, scores: Scores) -> SigmoidTask:
        values = self._cast(scores.values)
        return SigmoidTask(labels, values, self._options, scores.are_probabilities)


def _reports_to_fill(mark: Mark | None) -> tuple[str, ...]:
    """The reports of the head, once for each tensor: a loss may be a metric as well."""
    if mark is None or in_symbolic_scope():
        return ()
    filled = "reports" in mark.readers
    mark.readers.update(("loss", "reports"))
    return () if mark.head is None or filled else mark.head.reports


def _dtype_name(dtype: Any) -> str | None:
    if dtype is None:
        return None
    policy = getattr(dtype, "compute_dtype", None)
    return str(keras.backend.standardize_dtype(policy or dtype))


def _cast(scores: Tensor, dtype: str) -> Tensor:
    wanted = accurate_dtype(scores.dtype, dtype)
    cast = ops.cast(scores, wanted)
    if keras.backend.standardize_dtype(cast.dtype) != wanted:
        raise ValueError(
            "`dtype` must be a dtype that the backend computes in.\n"
            f"Received: dtype={dtype!r}, where {keras.config.backend()} gives "
            f"{cast.dtype}\n"
            "Fix: jax.config.update('jax_enable_x64', True) at the start of the "
            "program, or omit dtype."
        )
    return cast
