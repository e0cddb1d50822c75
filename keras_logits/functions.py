"""The losses as functions, for custom loops: one value per label, nothing reduced."""

import functools
import warnings
from typing import NamedTuple

from keras import ops

from keras_logits import kernels
from keras_logits._typing import ClassWeight, Reduction, Tensor
from keras_logits.kernels.contract import Linear, LinearLogits
from keras_logits.maths.links import as_float
from keras_logits.maths.squash import Squash
from keras_logits.maths.weights import check_reduction, position_weights, reduced
from keras_logits.options import (
    SigmoidOptions,
    SoftmaxOptions,
    check_linear,
    check_memory_budget,
    check_positive,
)
from keras_logits.symbolic import symbolic_too
from keras_logits.tasks import SigmoidTask, SoftmaxTask, check_result


@symbolic_too
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

    With K classes, logits $z$, probabilities $p = \operatorname{softmax}(z)$ and label
    $y$ as a distribution (a class id puts all mass on one class), a position has loss

    $$\ell = -\sum_k c_k t_k (1 - p_k)^\gamma \log p_k
            + \zeta d \operatorname{logsumexp}(z)^2$$

    Here $t = (1 - \varepsilon) y + \varepsilon \sum y / K'$ is the label, smoothed over
    the $K'$ classes whose logit is not -inf, and $d = \sum_k c_k y_k / \sum_k y_k$ is
    the class weight of the position.

    Args:
        labels: `[...]` integer class ids from 0 to K - 1, or `[..., K]` distributions.
            The shape decides which.
        logits: `[..., K]`, floating; half precision is computed in float32.
        class_weight: $c$, a list with one weight per class, or a dict with the weights
            of some classes.
        label_smoothing: $\varepsilon$, the share of the label that is spread evenly
            over the classes.
        focal_gamma: $\gamma$, the exponent of the focal factor, which down-weights easy
            positions.
        z_loss: $\zeta$, the weight of the penalty on the logsumexp of the logits.
        ignore_index: positions with this label have loss 0 and gradient 0.
        axis: the axis of the classes.

    Returns:
        `[...]`, one loss per position in nats, float32 (float64 for float64 logits).
        In compiled code, a bad label has loss NaN and gradient 0. If the logit of the
        true class is -inf, the loss is +inf.

    Raises:
        ValueError: if the shapes fit neither form of labels, or if an option is out of
            range; in eager code, also if a label is out of range.

    Example:
        >>> softmax_cross_entropy([1], [[0.0, 2.0, 0.0]])  # log(1 + 2 / e**2)
        [0.23954484]

    Source:
        Focal factor: Lin et al., "Focal Loss for Dense Object Detection",
        arXiv:1708.02002. Smoothing: Szegedy et al., "Rethinking the Inception
        Architecture for Computer Vision", arXiv:1512.00567. z-loss: Chowdhery et al.,
        "PaLM: Scaling Language Modeling with Pathways", arXiv:2204.02311.

    See also:
        `sigmoid_cross_entropy`, for independent yes/no labels, and
        `SoftmaxCrossEntropy`, for `model.compile`.
    """
    options = SoftmaxOptions(
        class_weight, label_smoothing, focal_gamma, z_loss, ignore_index, axis
    )
    task = SoftmaxTask(labels, as_float(logits), options)
    return losses_of(task)


@symbolic_too
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

    With logit $z$, $s = \operatorname{sigmoid}(z)$ and label $y$, a unit has the loss

    $$\ell = -c \left(\pi t (1 - s)^\gamma \log s
            + (1 - t) s^\gamma \log (1 - s)\right)$$

    where $t = (1 - \varepsilon) y + \varepsilon / 2$ is the smoothed label.

    Args:
        labels: `[...]`, the shape of the logits; bool, integer or floating in [0, 1].
        logits: `[...]`, floating; half precision is computed in float32.
        class_weight: $c$, one weight per unit along `axis`, or a dict with the weights
            of some units.
        pos_weight: $\pi$, the weight of the positive term, a number or one per unit.
        label_smoothing: $\varepsilon$, the share of the label that moves to 1/2.
        focal_gamma: $\gamma$, the exponent of the focal factor, which down-weights easy
            units.
        ignore_index: units with this label are unknown and have loss 0 and gradient 0.
        axis: the axis of the units, for `class_weight` and `pos_weight`.

    Returns:
        `[...]`, one loss per unit in nats, float32 (float64 for float64 logits). In
        compiled code, a bad label has loss NaN and gradient 0.

    Raises:
        ValueError: if labels and logits differ in shape, or if an option is out of
            range; in eager code, also if a label is outside [0, 1].

    Example:
        >>> sigmoid_cross_entropy([1, 0], [2.0, 2.0])
        [0.126928, 2.126928]

    Source:
        Focal factor: Lin et al., "Focal Loss for Dense Object Detection",
        arXiv:1708.02002.

    See also:
        `softmax_cross_entropy`, for exactly one true class, and
        `SigmoidCrossEntropy`, for `model.compile`.
    """
    options = SigmoidOptions(
        class_weight, pos_weight, label_smoothing, focal_gamma, ignore_index, axis
    )
    logits = as_float(logits)
    task = SigmoidTask(labels, logits, options)
    values = task.per_unit(task.positions).value
    check_result(task, values, task.positions)
    return ops.reshape(values, ops.shape(logits))


@symbolic_too
def linear_softmax_cross_entropy(
    features: Tensor,
    kernel: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    sample_weight: Tensor | None = None,
    class_weight: ClassWeight | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    transpose_kernel: bool = False,
    reduction: Reduction | None = "mean_with_sample_weight",
    memory_budget: int | None = None,
) -> Tensor:
    r"""Softmax cross-entropy from features and kernel, without allocating the logits.

    Computes the weighted mean over positions of

    `softmax_cross_entropy(labels, squash(features @ kernel + bias), ...)`

    with `squash(a) = softcap * tanh(a / softcap) / temperature`. The logits are the
    largest tensor of a language model. Here only one chunk of them exists at a time. If
    the result is a scalar, the forward pass also computes the gradients. That takes
    three matrix products, as many as the plain loss. With one value per position, the
    backward pass needs a fourth. Positions of weight 0 are excluded from all
    products. If arrays are sharded across devices, or if the features are sparse, the
    loss runs unfused, with a warning.

    Args:
        features: `[..., D]`, floating. Products are accumulated in float32.
        kernel: `[D, V]`, or `[V, D]` with `transpose_kernel=True`.
        labels: `[...]` class ids from 0 to V - 1, or `[..., V]` distributions.
        bias: `[V]`, added to the scores; -inf masks a class.
        sample_weight: the weight of each position, `[...]` or its leading axes.
        class_weight: a list with one weight per class, or a dict with the weights of
            some classes.
        label_smoothing: the share of each label that is spread evenly over the classes
            whose bias is not -inf. An infinite product makes the loss infinite.
        focal_gamma: the exponent of the focal factor, which down-weights easy
            positions.
        z_loss: the weight of the penalty on the logsumexp of the logits.
        ignore_index: positions with this label do not count.
        softcap: the bound on the logits, applied before the temperature; None for no
            bound. A bias of -inf still masks its class.
        temperature: the divisor of the logits.
        transpose_kernel: True if the kernel is `[V, D]`, like the matrix of an
            `Embedding`.
        reduction: as in `SoftmaxCrossEntropy`; None for one value per position.
        memory_budget: the bytes that the loss may allocate on top of its inputs and
            gradients; None means 256 MiB on a CPU and 2 GiB on an accelerator.

    Returns:
        A scalar in nats, or `[...]` under `reduction=None`; float32 (float64 for
        float64 features). It has gradients with respect to features, kernel, bias and
        weights. The gradient of the kernel is accumulated in float32 whatever the dtype
        of the kernel.

    Raises:
        ValueError: if shapes do not fit, if an option is out of range, or if a gradient
            is differentiated again; in eager code, also if a label is out of range.

    Example:
        >>> linear_softmax_cross_entropy([[1.0, 0.0]], [[0.0, 2.0], [1.0, 1.0]], [1])
        0.126928

    Source:
        E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models",
        arXiv:2411.09009. Gradient in the forward pass: Hsu et al., "Liger Kernel:
        Efficient Triton Kernels for LLM Training", arXiv:2410.10989.

    See also:
        `SoftmaxCrossEntropy`, which does the same automatically behind a `LogitsHead`.
    """
    options = SoftmaxOptions(
        class_weight, label_smoothing, focal_gamma, z_loss, ignore_index
    )
    check_reduction(reduction)
    check_memory_budget(memory_budget)
    check_positive("softcap", softcap, optional=True)
    check_positive("temperature", temperature)
    features, kernel = as_float(features), as_float(kernel)
    bias = None if bias is None else as_float(bias)
    check_linear(features, kernel, bias, transpose_kernel)
    linear = LinearLogits(
        Linear(features, kernel, bias),
        Squash(softcap, temperature),
        transpose_kernel,
        memory_budget,
    )
    scores: Tensor | LinearLogits = linear
    obstacle = kernels.obstacle_to_fusing(linear.linear, labels, sample_weight)
    if obstacle is not None:
        _warn_of_plain(obstacle)
        scores = kernels.logits_of(linear)
    task = SoftmaxTask(labels, scores, options)
    return reduced_loss(task, sample_weight, None, reduction).value


@functools.cache  # so that it is said once
def _warn_of_plain(obstacle: str) -> None:
    warnings.warn(
        "`linear_softmax_cross_entropy` runs unfused here and allocates all logits: "
        f"{obstacle}\n"
        "Call softmax_cross_entropy(labels, features @ kernel) to silence this "
        "warning.",
        stacklevel=3,
    )


class Reduced(NamedTuple):
    """A loss; and the figures asked for, with a weight for each row of them."""

    value: Tensor
    figures: Tensor | None = None
    weights: Tensor | None = None


def reduced_loss(
    task: SoftmaxTask | SigmoidTask,
    sample_weight: Tensor | None,
    mask: Tensor | None,
    reduction: Reduction | None,
    figures: tuple[str, ...] = (),
) -> Reduced:
    """The weighted losses of a task as a scalar, or as one value for each position."""
    units = None
    if isinstance(task, SigmoidTask) and task.of_units(sample_weight):
        units, sample_weight = sample_weight, None
    given = position_weights(task.positions, sample_weight, mask, task.not_ignored)
    if isinstance(task, SigmoidTask) and units is not None:
        task.weigh_units(units, given.counted)
    weights = reduced(given, task.mass, reduction, kernels.total_over_replicas)
    if reduction != "mean_with_sample_weight" and task.scale is not None:
        weights = weights * task.scale
    summed = reduction not in (None, "none")
    value, seen = task.weighted(weights, summed, figures)
    check_result(task, value, given.values, reduction)
    if seen is None:
        return Reduced(value)
    return Reduced(value, seen, task.weights_of_figures(given.values))


def losses_of(task: SoftmaxTask | SigmoidTask) -> Tensor:
    """One loss for each position, unweighted, 0 where the label is ignored."""
    weights = position_weights(task.positions, None, None, task.not_ignored).values
    if task.scale is not None:
        weights = weights * task.scale
    values = task.weighted(weights, summed=False).value
    check_result(task, values, weights)
    return values
