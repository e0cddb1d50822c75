"""Values and gradients are those of torch.nn.functional, or so after a conversion.

Torch divides the mean over class ids by the weights of the labels, as we do, and that
over distributions by the number of positions, as "sum_over_batch_size" does here. Its
mean over units divides by their number, whatever they weigh.
"""

import keras
import numpy as np
import pytest

from keras_logits import (
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    sigmoid_cross_entropy,
)

if keras.config.backend() != "torch":
    pytest.skip("torch.nn takes torch's tensors", allow_module_level=True)

import torch
from torch.nn import functional

EPS = np.finfo("float32").eps
SHAPE = (7, 11, 5)  # of (B, classes, T): torch has the classes on axis 1
RNG = np.random.default_rng(0)
CLASS_WEIGHT = RNG.choice([0.0, 0.25, 1.0, 3.0], SHAPE[1]).astype("float32")
IDS = RNG.integers(0, SHAPE[1], (SHAPE[0], SHAPE[2]))
PADDED_IDS = np.where(RNG.random(IDS.shape) < 0.3, -100, IDS)
DENSE = RNG.random(SHAPE).astype("float32")  # that do not sum to 1
UNITS = np.where(RNG.random(SHAPE) < 0.5, DENSE < 0.5, DENSE).astype("float32")
ROW_WEIGHT = RNG.choice([0.0, 0.5, 3.0], SHAPE[:1]).astype("float32")
UPSTREAM = torch.tensor(RNG.uniform(0.5, 2.0, SHAPE).astype("float32"))


@pytest.fixture(params=[1.0, 30.0, 1e4])
def logits(request):
    return (request.param * np.random.default_rng(1).normal(size=SHAPE)).astype(
        "float32"
    )


def solved(function, logits):
    z = torch.tensor(logits, requires_grad=True)
    values = function(z)
    upstream = UPSTREAM if values.ndim == 3 else UPSTREAM[:, 0]
    total = values if not values.ndim else (upstream * values).sum()
    return values.detach().numpy(), torch.autograd.grad(total, z)[0].numpy()


def assert_same(ours, theirs, logits):
    """As weighted sums of at most 385 values of this size are, in float32."""
    values, gradient = solved(theirs, logits)
    found, found_gradient = solved(ours, logits)
    # For units torch takes the difference of numbers of the size of the logits.
    size = 1 + np.abs(logits) if values.ndim == 3 else 1
    np.testing.assert_allclose(
        found / size, values / size, rtol=16 * EPS, atol=32 * EPS
    )
    largest = np.abs(gradient).max()
    np.testing.assert_allclose(found_gradient, gradient, atol=32 * EPS * largest)


@pytest.mark.parametrize("ignore_index", [None, 4, -100])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, CLASS_WEIGHT], ids=["plain", "weight"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_class_ids_are_as_in_torch(
    logits, reduction, weight, label_smoothing, ignore_index
):
    ids = PADDED_IDS if ignore_index == -100 else IDS
    loss = SoftmaxCrossEntropy(
        True,
        axis=1,
        class_weight=None if weight is None else weight.tolist(),
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction="mean_with_sample_weight" if reduction == "mean" else reduction,
    )

    def theirs(z):
        return functional.cross_entropy(
            z,
            torch.tensor(ids),
            weight=None if weight is None else torch.tensor(weight),
            ignore_index=-100 if ignore_index is None else ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )

    assert_same(lambda z: loss(ids, z), theirs, logits)


def distributions_in_torch(z, weight, label_smoothing, reduction):
    return functional.cross_entropy(
        z,
        torch.tensor(DENSE / DENSE.sum(1, keepdims=True)),
        weight=None if weight is None else torch.tensor(weight),
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


def distributions_here(weight, label_smoothing, reduction):
    loss = SoftmaxCrossEntropy(
        True,
        axis=1,
        class_weight=None if weight is None else weight.tolist(),
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return lambda z: loss(DENSE / DENSE.sum(1, keepdims=True), z)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, CLASS_WEIGHT], ids=["plain", "weight"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_distributions_are_as_in_torch(logits, reduction, weight, label_smoothing):
    ours = "sum_over_batch_size" if reduction == "mean" else reduction
    assert_same(
        distributions_here(weight, label_smoothing, ours),
        lambda z: distributions_in_torch(z, weight, label_smoothing, reduction),
        logits,
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_a_mean_over_distributions_divides_by_the_weights_of_their_labels(
    logits, label_smoothing
):
    """Where torch's divides by their number."""
    y = DENSE / DENSE.sum(1, keepdims=True)
    mean_weight = float(np.mean(np.sum(y * CLASS_WEIGHT[:, None], axis=1)))

    def theirs(z):
        mean = distributions_in_torch(z, CLASS_WEIGHT, label_smoothing, "mean")
        return mean / mean_weight

    ours = distributions_here(CLASS_WEIGHT, label_smoothing, "mean_with_sample_weight")
    assert_same(ours, theirs, logits)


POS_WEIGHTS = {
    "plain": None,
    "number": 3.5,
    "list": RNG.uniform(0.0, 4.0, SHAPE[1]).astype("float32").tolist(),
}


def pos_weight_in_torch(name):
    given = POS_WEIGHTS[name]
    return None if given is None else torch.tensor(given).reshape(-1, 1)


@pytest.mark.parametrize("pos_weight", POS_WEIGHTS)
@pytest.mark.parametrize("weight", [None, CLASS_WEIGHT], ids=["plain", "weight"])
def test_units_are_as_in_torch(logits, weight, pos_weight):
    def ours(z):
        return sigmoid_cross_entropy(
            UNITS,
            z,
            axis=1,
            pos_weight=POS_WEIGHTS[pos_weight],
            class_weight=None if weight is None else weight.tolist(),
        )

    def theirs(z):
        return functional.binary_cross_entropy_with_logits(
            z,
            torch.tensor(UNITS),
            weight=None if weight is None else torch.tensor(weight).reshape(-1, 1),
            pos_weight=pos_weight_in_torch(pos_weight),
            reduction="none",
        )

    assert_same(ours, theirs, logits)


@pytest.mark.parametrize("pos_weight", POS_WEIGHTS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weight"])
def test_a_mean_over_units_is_as_in_torch(logits, weighted, pos_weight):
    """With weights torch divides by the number of units, not by the weights."""
    weight = ROW_WEIGHT if weighted else None
    loss = SigmoidCrossEntropy(
        True,
        axis=1,
        pos_weight=POS_WEIGHTS[pos_weight],
        reduction="sum_over_batch_size" if weighted else "mean_with_sample_weight",
    )

    def theirs(z):
        return functional.binary_cross_entropy_with_logits(
            z,
            torch.tensor(UNITS),
            weight=torch.tensor(weight).reshape(-1, 1, 1) if weighted else None,
            pos_weight=pos_weight_in_torch(pos_weight),
        )

    assert_same(lambda z: loss(UNITS, z, weight), theirs, logits)
