"""The losses as functions, for custom loops: one value per label, nothing reduced."""

from keras import ops

from keras_logits._typing import ClassWeight, Tensor
from keras_logits.maths.links import as_float
from keras_logits.maths.weights import position_weights
from keras_logits.tasks import (
    SigmoidOptions,
    SigmoidTask,
    SoftmaxOptions,
    SoftmaxTask,
    check_result,
)


def softmax_cross_entropy(
    labels: Tensor,
    logits: Tensor,
    *,
    class_weight: ClassWeight | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    axis: int = -1,
) -> Tensor:
    r"""Cross-entropy of one true class per position under the softmax of the logits.

    With K classes, logits $z$, $p = \operatorname{softmax}(z)$ and labels $y$ as a
    distribution (a class id puts all mass on one class):

    $$\ell = -\sum_k c_k t_k (1 - p_k)^\gamma \log p_k
            + \zeta d \operatorname{logsumexp}(z)^2$$

    where $t = (1 - \varepsilon) y + \varepsilon \sum y / K'$ is smoothed over the $K'$
    classes that no logit of -inf masks, and $d = \sum_k c_k y_k / \sum_k y_k$.

    Args:
        labels: `[...]` class ids, integer, from 0 to K - 1; or `[..., K]`
            distributions. The shape tells which.
        logits: `[..., K]`, floating; half precision is computed in float32.
        class_weight: $c$, a list over the classes or a dict of some of them.
        label_smoothing: $\varepsilon$, the share of the label that is spread evenly.
        focal_gamma: $\gamma$, how much easy positions are played down.
        z_loss: $\zeta$, the weight of the penalty on the logits' logsumexp.
        ignore_index: positions with this label have loss 0 and gradient 0.
        axis: the axis of the classes.

    Returns:
        `[...]`, one loss per position in nats, float32 (float64 for float64 logits).
        A bad label has loss NaN and gradient 0 in compiled code. A true class whose
        logit is -inf has loss +inf.

    Raises:
        ValueError: if the shapes fit neither form of labels, or an option is out of
            its range; in eager code, if a label is out of range.

    Example:
        >>> softmax_cross_entropy([1], [[0.0, 2.0, 0.0]])  # log(1 + 2 / e**2)
        [0.23954484]

    Source:
        Focal factor: Lin et al., "Focal Loss for Dense Object Detection",
        arXiv:1708.02002. Smoothing: Szegedy et al., "Rethinking the Inception
        Architecture for Computer Vision", arXiv:1512.00567. z-loss: Chowdhery et al.,
        "PaLM: Scaling Language Modeling with Pathways", arXiv:2204.02311.

    See also:
        `sigmoid_cross_entropy`, for labels that do not exclude each other, and
        `SoftmaxCrossEntropy`, for `model.compile`.
    """
    options = SoftmaxOptions(
        class_weight, label_smoothing, focal_gamma, z_loss, ignore_index, axis
    )
    task = SoftmaxTask(labels, as_float(logits), options)
    return losses_of(task)


def sigmoid_cross_entropy(
    labels: Tensor,
    logits: Tensor,
    *,
    class_weight: ClassWeight | None = None,
    pos_weight: float | list[float] | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    ignore_index: int | None = None,
    axis: int = -1,
) -> Tensor:
    r"""Cross-entropy of independent yes/no units under the sigmoid of their logits.

    With logit $z$, $s = \operatorname{sigmoid}(z)$ and label $y$, one unit has

    $$\ell = -c \left(\pi t (1 - s)^\gamma \log s
            + (1 - t) s^\gamma \log (1 - s)\right)$$

    where $t = (1 - \varepsilon) y + \varepsilon / 2$.

    Args:
        labels: `[...]`, the shape of the logits; bool, integer or floating in [0, 1].
        logits: `[...]`, floating; half precision is computed in float32.
        class_weight: $c$, one weight per unit along `axis`, or a dict of some.
        pos_weight: $\pi$, the weight of the positive term: a number or one per unit.
        label_smoothing: $\varepsilon$, the share of the label that moves to 1/2.
        focal_gamma: $\gamma$, how much easy units are played down.
        ignore_index: units with this label are unknown: loss 0 and gradient 0.
        axis: the axis of the units, for `class_weight` and `pos_weight`.

    Returns:
        `[...]`, one loss per unit in nats, float32 (float64 for float64 logits). A
        bad label has loss NaN and gradient 0 in compiled code.

    Raises:
        ValueError: if labels and logits differ in shape, or an option is out of its
            range; in eager code, if a label is outside of [0, 1].

    Example:
        >>> sigmoid_cross_entropy([1, 0], [2.0, 2.0])
        [0.126928, 2.126928]

    Source:
        Focal factor: Lin et al., "Focal Loss for Dense Object Detection",
        arXiv:1708.02002.

    See also:
        `softmax_cross_entropy`, where exactly one class is true, and
        `SigmoidCrossEntropy`, for `model.compile`.
    """
    options = SigmoidOptions(
        class_weight, pos_weight, label_smoothing, focal_gamma, ignore_index, axis
    )
    logits = as_float(logits)
    task = SigmoidTask(labels, logits, options)
    values = task.per_unit(task.positions)
    check_result(task, values, task.positions)
    return ops.reshape(values, ops.shape(logits))


def losses_of(task: SoftmaxTask | SigmoidTask) -> Tensor:
    """One loss for each position, unweighted, 0 where the label is ignored."""
    weights = position_weights(task.positions, None, None, task.not_ignored).values
    if task.scale is not None:
        weights = weights * task.scale
    values = task.weighted(weights, summed=False)
    check_result(task, values, weights)
    return values
