"""The fused linear cross-entropy: the plain path's numbers, and never its logits.

Features and kernels are eighths, so that products are exact and two ways to the same
logits agree to the bit: what differs is the loss alone. No two rows or columns are
alike, and a wrong one would show.
"""

import math
import warnings
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from keras import ops

from keras_logits import SoftmaxCrossEntropy, linear_softmax_cross_entropy
from keras_logits.kernels import plan
from strategies import (
    BACKEND,
    CHOICES,
    EPS,
    MEAN,
    MODE,
    MODES,
    Problem,
    Solution,
    as_choices,
    posed,
    repeatable,
)

WIDTH = 5
UPSTREAM = 3.0
OF_LOSS = (
    "class_weight",
    "label_smoothing",
    "focal_gamma",
    "z_loss",
    "ignore_index",
    "weight_rank",
    "reduction",
    "labels",
)
LINEAR_CHOICES = {
    **{name: CHOICES[name] for name in OF_LOSS},
    "positions": ((7,), (3, 5), (1,), (2, 3, 4)),
    "classes": (11, 13, 8, 2),
    "scale": (1.0, 30.0),
    "bias": (None, "near", "far", "closing others", "closing any"),
    "softcap": (None, 2.0, 50.0),
    "temperature": (1.0, 0.5, 3.0),
    "transposed": (False, True),
    "chunk": (None, 1, 2, 3, 5),
}


@pytest.fixture(autouse=True, scope="module")
def few_columns():
    """Several blocks of columns, and a rest, in small kernels too."""
    with pytest.MonkeyPatch.context() as patch:
        for device in plan.COLUMNS:
            patch.setitem(plan.COLUMNS, device, 4)
        yield


# How each backend derives by several arrays


def derived(function, arrays, asked=None, mode=MODE):
    """The value of `function(**arrays)`, and the gradients of its weighted sum.

    Weights are there so that no gradient is taken from an upstream of 1 alone.
    """
    asked = tuple(arrays) if asked is None else asked

    def value_and_total(tensors):
        value = function(**tensors)
        return value, ops.sum(value * upstream(value))

    tensors = {name: tensor_of(array) for name, array in arrays.items()}
    run = {"tensorflow": by_tensorflow, "jax": by_jax, "torch": by_torch}[BACKEND]
    value, gradients = run(value_and_total, tensors, asked, mode)
    gradients = zip(asked, gradients, strict=True)
    return numpy_of(value), {name: numpy_of(g) for name, g in gradients}


def upstream(value):
    if not value.shape:
        return UPSTREAM
    weights = 1.0 + np.arange(math.prod(value.shape)) % 3
    return ops.convert_to_tensor(weights.reshape(value.shape), value.dtype)


def tensor_of(array):
    return ops.convert_to_tensor(array)


def numpy_of(tensor):
    if tensor is None:
        return None
    if BACKEND == "torch":
        tensor = tensor.detach()
    wide = keras.backend.standardize_dtype(tensor.dtype) == "float64"
    return ops.convert_to_numpy(tensor if wide else ops.cast(tensor, "float32"))


def by_tensorflow(function, tensors, asked, mode):
    import tensorflow as tf

    def run(tensors):
        wanted = [tensors[name] for name in asked]
        with tf.GradientTape() as tape:
            tape.watch(wanted)
            value, total = function(tensors)
        return value, tape.gradient(total, wanted)

    if mode != "eager":
        run = tf.function(run, jit_compile=mode == "jit")
    return run(tensors)


def by_jax(function, tensors, asked, mode):
    import jax

    def total_and_value(wanted, rest):
        value, total = function({**rest, **wanted})
        return total, value

    run = jax.grad(total_and_value, has_aux=True)
    run = jax.jit(run) if mode == "jit" else run
    wanted = {name: tensors[name] for name in asked}
    rest = {name: tensors[name] for name in tensors if name not in asked}
    gradients, value = run(wanted, rest)
    return value, [gradients[name] for name in asked]


def by_torch(function, tensors, asked, mode):
    import torch

    wanted = [tensors[name].requires_grad_() for name in asked]
    value, total = function(tensors)
    return value, torch.autograd.grad(total, wanted) if asked else []


# Problems


@dataclass(frozen=True)
class LinearProblem:
    """Features, kernel, bias and weights, and what to do with their logits."""

    base: Problem  # with the same labels, options, and logits
    arrays: dict
    softcap: float | None
    temperature: float
    transposed: bool
    budget: int | None

    def fused(self, features, kernel, bias=None, sample_weight=None):
        return linear_softmax_cross_entropy(
            features,
            kernel,
            self.base.labels,
            bias=bias,
            sample_weight=sample_weight,
            softcap=self.softcap,
            temperature=self.temperature,
            transpose_kernel=self.transposed,
            reduction=self.base.reduction,
            memory_budget=self.budget,
            **self.base.options,
        )

    def plain(self, features, kernel, bias=None, sample_weight=None):
        kernel = ops.transpose(kernel) if self.transposed else kernel
        z = ops.matmul(features, kernel)
        z = z if bias is None else z + bias
        z = z if self.softcap is None else self.softcap * ops.tanh(z / self.softcap)
        base = self.base
        loss = SoftmaxCrossEntropy(True, reduction=base.reduction, **base.options)
        return loss(base.labels, z / self.temperature, sample_weight)

    def allowances(self, value):
        """How far rounding may move the value, and each gradient.

        As in `Problem.allowance`: a gradient by the logits is at most a row's `own`,
        which the kernel carries on to features, and the features to the kernel. One by
        a weight is a difference of losses, as large as the logits are far apart.
        """
        base, arrays = self.base, self.arrays
        kernel, features = np.abs(arrays["kernel"]), np.abs(arrays["features"])
        bounds = base.allowance(Solution(value.ravel(), None))
        own = bounds.gradient[:, 0] * (1.0 if base.reduction is None else UPSTREAM)
        own = 2 * own * (1.0 + (self.softcap or 0.0)) / min(self.temperature, 1.0)
        z = np.where(np.isfinite(base.rows), base.rows, 0.0)
        worst = np.max(base.heaviest) * (np.ptp(z, axis=-1).max() + np.log(13))
        worst += base.options["z_loss"] * 3.0 * (np.abs(z).max() + np.log(13)) ** 2
        worst += np.abs(value[np.isfinite(value)]).max(initial=0.0) * base.mass.max()
        count = len(own)
        by_weight = (32 + count) * EPS * UPSTREAM * worst * count / base.denominator
        by_kernel = own @ features.reshape(-1, WIDTH)
        return {
            "features": own.reshape(*base.positions, 1) * kernel.max(self.classes_axis),
            "kernel": by_kernel if self.transposed else by_kernel[:, None],
            "bias": own.sum(),
            "sample_weight": by_weight if base.denominator else 0.0,
            "value": np.reshape(bounds.value, value.shape),
        }

    @property
    def classes_axis(self):
        return 0 if self.transposed else 1


def linear_problems(**only):
    choices = {**LINEAR_CHOICES, **{name: as_choices(only[name]) for name in only}}
    drawn = {name: st.sampled_from(values) for name, values in choices.items()}
    return st.builds(stated, seed=st.integers(0, 2**16), **drawn)


def stated(
    seed,
    positions=(7,),
    classes=11,
    scale=1.0,
    bias="near",
    softcap=None,
    temperature=1.0,
    transposed=False,
    chunk=3,
    **of_loss,
):
    defaults = dict.fromkeys(OF_LOSS) | {
        "label_smoothing": 0.0,
        "focal_gamma": 0.0,
        "z_loss": 0.0,
        "weight_rank": 0,
        "reduction": MEAN,
        "labels": "ids",
    }
    base = posed(
        seed=seed,
        activation="softmax",
        positions=positions,
        classes=classes,
        axis=-1,
        scale=1.0,
        offset=0.0,
        hidden=None,
        pos_weight=None,
        mask_rank=0,
        **defaults | of_loss,
    )
    rng = np.random.default_rng(seed)
    features = eighths(rng, 1.0, (*positions, WIDTH))
    kernel = eighths(rng, scale / WIDTH**0.5, (WIDTH, classes))
    arrays = {"features": features, "kernel": kernel.T if transposed else kernel}
    z = features @ kernel
    if bias is not None:
        arrays["bias"] = eighths(rng, 1.0, classes) + 1e4 * (bias == "far")
        closed = rng.random(classes) < 0.3
        if bias == "closing others":
            labels = base.as_one_hot().labels if classes > 1 else base.labels
            closed &= ~np.any(labels.reshape(-1, classes), axis=0)
        if bias.startswith("closing"):
            arrays["bias"][closed] = -np.inf
        arrays["bias"] = arrays["bias"].astype("float32")
        z = z + arrays["bias"]
    z = z if softcap is None else softcap * np.tanh(z / softcap)
    if base.sample_weight is not None:
        arrays["sample_weight"] = base.sample_weight
    return LinearProblem(
        base.but(logits=(z / temperature).astype("float32")),
        arrays,
        softcap,
        temperature,
        transposed,
        None if chunk is None else chunk * plan.BUFFERS * plan.FLOAT * classes,
    )


def eighths(rng, scale, shape):
    return (np.round(8 * scale * rng.normal(size=shape)) / 8).astype("float32")


def assert_same(found, expected, bounds):
    found, expected = ({"value": v, **g} for v, g in (found, expected))
    for name, one in found.items():
        other = expected[name]
        assert one.shape == other.shape, name
        with np.errstate(invalid="ignore"):  # inf - inf
            same = (one == other) | (np.abs(one - other) <= bounds[name])
        if name == "sample_weight" and not np.isfinite(expected["value"]).all():
            continue  # a difference of losses, of which one is infinite
        assert same.all(), f"{name}: {one}\nis not {other}\nwithin {bounds[name]}"


# The plain path's numbers


# A problem is not made smaller where each try compiles anew: that takes minutes.
PHASES = list(Phase) if BACKEND == "torch" else [Phase.explicit, Phase.generate]


@settings(repeatable(1.0), phases=PHASES)
@given(linear_problems())
def test_values_and_gradients_equal_those_of_the_plain_path(problem):
    expected = derived(problem.plain, problem.arrays)
    found = derived(problem.fused, problem.arrays)
    assert_same(found, expected, problem.allowances(expected[0]))
