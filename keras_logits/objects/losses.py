"""The losses: from `y_true, y_pred` to a scalar."""

from abc import abstractmethod
from typing import Any

import keras
from keras import ops

from keras_logits._keras_private import get_keras_mask, in_symbolic_scope
from keras_logits._typing import Activation, ClassWeight, Reduction, Tensor
from keras_logits.functions import losses_of, reduced_loss
from keras_logits.maths.links import accurate_dtype
from keras_logits.maths.weights import check_reduction
from keras_logits.objects.fusing import (
    check_fused,
    linear_logits,
)
from keras_logits.objects.predictions import Scores, check_from_logits, read_scores
from keras_logits.objects.same_keras import keras_of
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
        from_logits: bool | str,
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
        """One loss for each position, neither weighted nor reduced."""
        return losses_of(self._new_task(y_true, self._scores(y_pred)))

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

    Whether `y_pred` holds logits is read from the mark that `LogitsHead` or
    `MarkLogits` set on it. It replaces Keras' `CategoricalCrossentropy`,
    `SparseCategoricalCrossentropy` and `CategoricalFocalCrossentropy`.

    The loss of one position is that of `softmax_cross_entropy`; their mean is
    $\sum_i w_i \ell_i / \sum_i w_i d_i$, where $w$ is sample weight x mask x (label is
    not ignored) and $d$ the class weight of the label, 1 without class weights. It is 0
    if every weight is 0. A position of weight 0 is selected out: NaN and bad labels
    behind a mask stay there.

    Labels are class ids (any integer dtype; the logits' shape less the class axis, or
    with 1 there) or distributions (the logits' shape). The shape tells which.

    A bad label raises in eager code. In compiled code, where nothing can be raised, it
    makes the loss NaN and its own gradient 0, so that the weights survive. Callbacks
    that watch the training loss see that NaN: let them watch `val_loss`. So do values
    outside of [0, 1] under `from_logits=False`.

    Args:
        from_logits: "auto" reads the mark and refuses a tensor without one; True and
            False say of an unmarked tensor that it holds logits or probabilities. Of
            probabilities the slope of the logarithm is capped at 1e25.
        class_weight: the weight of each class: a list over the classes, or a dict
            of some of them. Any shape of labels.
        label_smoothing: share of each label that is spread over the classes, of
            which those masked by a logit of -inf get none. From 0 to 1.
        focal_gamma: exponent of the focal factor `(1 - p)^gamma`.
        z_loss: weight of the penalty `logsumexp(logits)^2`.
        ignore_index: the class id of positions that do not count.
        axis: the axis of the classes.
        fused: "auto" goes from the features to the loss without ever holding the
            logits, where a `LogitsHead` made them and they are large (8192 classes and
            more, in compiled code); True insists, and raises where that is not
            possible; False never does.
        memory_budget: bytes that a fused loss holds beside inputs and gradients; None
            for 256 MiB on a CPU, and 2 GiB on an accelerator.
        reduction: "mean_with_sample_weight" (as above), "sum_over_batch_size" or
            "mean" (divides by the positions that are neither masked nor ignored),
            "sum", or None for one value per position.
        name: name of the loss.
        dtype: "float64" computes in it; the least is float32.

    Returns:
        A scalar in nats; `[...]`, one value per position, under `reduction=None`.

    Raises:
        ValueError: if an option is out of its range, `y_pred` is not what
            `from_logits` says, or shapes do not fit; in eager code, for bad labels
            and for negative weights under a mean that divides by them.

    Example:
        >>> model.compile("adam", loss=SoftmaxCrossEntropy())

    See also:
        `SigmoidCrossEntropy`, for labels that do not exclude each other.
    """

    _activation = "softmax"

    def __init__(
        self,
        from_logits: bool | str = "auto",
        *,
        class_weight: ClassWeight | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        z_loss: float = 0.0,
        ignore_index: int | None = None,
        axis: int = -1,
        fused: bool | str = "auto",
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

    Binary and multi-label classification. Whether `y_pred` holds logits is read from
    the mark that `LogitsHead(units, "sigmoid")` or `MarkLogits("sigmoid")` set on it.
    It replaces Keras' `BinaryCrossentropy`, `BinaryFocalCrossentropy` and
    `tf.nn.weighted_cross_entropy_with_logits`.

    The loss of one unit is that of `sigmoid_cross_entropy`. A position's value is the
    mean over its known units, weighted by `class_weight`; the mean over everything is
    $\sum w_i c_u \ell_{iu} / \sum w_i c_u$ over the known units, with $w$ = sample
    weight x mask. It is 0 if every weight is 0. A sample weight of the logits' shape
    weighs each label by itself, $w_{iu}$ in place of $w_i$; a position's value is then
    $\sum_u w_{iu} c_u \ell_{iu} / \sum_u c_u$.

    Labels have the logits' shape (a missing or extra last axis of 1 is let pass if
    there is one unit); bool, integer, or floating in [0, 1].

    A bad label raises in eager code. In compiled code it makes the loss NaN and its
    own gradient 0, so that the weights survive. So do values outside of [0, 1] under
    `from_logits=False`.

    Args:
        from_logits: "auto" reads the mark and refuses a tensor without one; True and
            False say of an unmarked tensor that it holds logits or probabilities. Of
            probabilities the slope of the logarithm is capped at 1e25.
        class_weight: the weight of each unit: a list, or a dict of some of them.
        pos_weight: the weight of the positive term: a number, or one for each unit.
        label_smoothing: share of each label that moves to 1/2. From 0 to 1.
        focal_gamma: exponent of the focal factor.
        ignore_index: the label of single units that are unknown.
        axis: the axis of the units.
        reduction: "mean_with_sample_weight" (as above), "sum_over_batch_size" or
            "mean" (the sum of the positions' values over the number of positions
            that are neither masked nor ignored), "sum", or None for one value per
            position.
        name: name of the loss.
        dtype: "float64" computes in it; the least is float32.

    Returns:
        A scalar in nats; `[...]`, one value per position, under `reduction=None`.

    Raises:
        ValueError: as for `SoftmaxCrossEntropy`.

    Example:
        >>> model.compile("adam", loss=SigmoidCrossEntropy(pos_weight=3.0))

    See also:
        `SoftmaxCrossEntropy`, where exactly one class is true.
    """

    _activation = "sigmoid"

    def __init__(
        self,
        from_logits: bool | str = "auto",
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
            f"`dtype` must be one that the backend computes in. Received: "
            f"dtype={dtype!r} where {keras.config.backend()} gives {cast.dtype}. Write "
            "jax.config.update('jax_enable_x64', True) before anything else, or leave "
            "dtype out."
        )
    return cast
