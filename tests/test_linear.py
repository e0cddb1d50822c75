"""The fused linear cross-entropy: the plain path's numbers, and never its logits.

Features and kernels are eighths, so that products are exact and two ways to the same
logits agree to the bit: what differs is the loss alone. No two rows or columns are
alike, and a wrong one would show.
"""

import math
from dataclasses import dataclass

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from keras import ops

from budgets import budget_for, columns_at_a_time, planned_for
from keras_logits import SoftmaxCrossEntropy, kernels, linear_softmax_cross_entropy
from keras_logits.kernels.plan import DEVICES
from strategies import (
    BACKEND,
    CHOICES,
    EPS,
    MANY,
    MEAN,
    MODE,
    MODES,
    Problem,
    Solution,
    as_choices,
    posed,
    repeatable,
    rows_of,
)

WIDTH = 5
ROWS = 8  # it has more choices
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
    "device": tuple(DEVICES),
}


@pytest.fixture(autouse=True, scope="module")
def few_columns():
    """Several blocks of columns, and a rest, in small kernels too."""
    with columns_at_a_time(4):
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
    if len(value.shape) == 0:
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
        run = tf.function(run, autograph=False, jit_compile=mode == "jit")
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
    device: str

    def fused(self, features, kernel, bias=None, sample_weight=None):
        with planned_for(self.device):
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
        if bias is not None:
            z = ops.where(ops.equal(bias, -np.inf), -np.inf, z)
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
        whole = base.denominator or 1.0
        by_weight = (32 + count) * EPS * UPSTREAM * worst * count / whole
        by_kernel = own @ features.reshape(-1, WIDTH)
        return {
            "features": own.reshape(*base.positions, 1) * kernel.max(self.classes_axis),
            "kernel": by_kernel if self.transposed else by_kernel[:, None],
            "bias": own.sum(),
            "sample_weight": by_weight,
            "value": np.reshape(bounds.value, value.shape),
        }

    @property
    def classes_axis(self):
        return 0 if self.transposed else 1


def linear_problems(**only):
    choices = {**LINEAR_CHOICES, **{name: as_choices(only[name]) for name in only}}
    if not MANY:
        rows = rows_of(choices, ROWS)
        return st.sampled_from(rows).map(lambda row: stated(**row))
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
    device="cpu",
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
    if bias is not None:
        z = np.where(arrays["bias"] == -np.inf, -np.inf, z)
    if base.sample_weight is not None:
        arrays["sample_weight"] = base.sample_weight
    options = {
        name: of_loss.get(name, 0.0)
        for name in ("label_smoothing", "focal_gamma", "z_loss")
    }
    if chunk is not None:
        options = {**options, "ids": base.are_ids}
        chunk = budget_for(chunk, classes, arrays["features"].shape[-1], **options)
    return LinearProblem(
        base.but(logits=(z / temperature).astype("float32")),
        arrays,
        softcap,
        temperature,
        transposed,
        chunk,
        device,
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


@settings(repeatable(ROWS), phases=PHASES)
@given(linear_problems())
def test_values_and_gradients_equal_those_of_the_plain_path(problem):
    expected = derived(problem.plain, problem.arrays)
    found = derived(problem.fused, problem.arrays)
    assert_same(found, expected, problem.allowances(expected[0]))


FULL = {
    "positions": (3, 5),
    "classes": 13,
    "softcap": 2.0,
    "temperature": 0.5,
    "class_weight": "list",
    "label_smoothing": 0.1,
    "focal_gamma": 2.0,
    "z_loss": 1e-3,
    "ignore_index": "a class",
    "weight_rank": 2,
    "chunk": 4,
}
compiles = pytest.mark.skipif(BACKEND == "torch", reason="torch compiles nothing")
of_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="of its tapes")


@compiles
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != MODE])
def test_every_mode_gives_the_same(mode):
    problem = stated(4, **FULL)
    expected = derived(problem.fused, problem.arrays)
    found = derived(problem.fused, problem.arrays, mode=mode)
    assert_same(found, expected, problem.allowances(expected[0]))


@of_tensorflow
@pytest.mark.parametrize(("reduction", "jit"), [(MEAN, True), (None, False)])
def test_a_tape_outside_of_a_compiled_function_gets_the_same(reduction, jit):
    import tensorflow as tf

    problem = stated(4, reduction=reduction, **FULL)
    expected = derived(problem.fused, problem.arrays)
    compiled = tf.function(problem.fused, autograph=False, jit_compile=jit)
    found = derived(compiled, problem.arrays)
    assert_same(found, expected, problem.allowances(expected[0]))


LINEAR = ("features", "kernel", "bias")
ASKED = [
    (("features",), MEAN),
    (("kernel", "bias"), MEAN),
    (("sample_weight",), MEAN),
    (("bias",), None),
    (("features", "sample_weight"), None),
]


@pytest.mark.parametrize(("asked", "reduction"), ASKED, ids=str)
def test_what_is_frozen_changes_no_other_gradient(asked, reduction):
    problem = stated(5, positions=(5,), chunk=2, weight_rank=1, reduction=reduction)
    bounds = problem.allowances(derived(problem.fused, problem.arrays)[0])
    value, gradients = derived(problem.plain, problem.arrays)
    found = derived(problem.fused, problem.arrays, asked)
    assert list(found[1]) == [*asked]
    assert_same(found, (value, gradients), bounds)


@pytest.mark.skipif(BACKEND == "jax", reason="which drops it from the program")
@pytest.mark.parametrize("asked", [(), ("features",), ("kernel", "bias"), LINEAR])
def test_no_work_is_done_for_gradients_that_nobody_asks_for(monkeypatch, asked):
    made = []
    name = {"tensorflow": "_compiled_pass", "torch": "_pass_over"}[BACKEND]
    whole = getattr(kernels._body, name)

    def spy(formula, wanted, *batch):
        made.append(tuple(name for name in LINEAR if getattr(wanted, name)))
        return whole(formula, wanted, *batch)

    monkeypatch.setattr(kernels._body, name, spy)
    problem = stated(5)
    if asked:
        derived(problem.fused, problem.arrays, asked)
    else:
        problem.fused(**{name: tensor_of(a) for name, a in problem.arrays.items()})
    assert made == [asked]


@pytest.mark.parametrize("how", ["ignored", "weight 0"])
@pytest.mark.parametrize("reduction", [MEAN, None])
def test_where_nothing_counts_everything_is_zero(how, reduction):
    problem = stated(6, reduction=reduction, weight_rank=1)
    if how == "ignored":
        labels = np.full(7, -1)
        problem = with_labels(problem, labels, ignore_index=-1)
    else:
        problem.arrays["sample_weight"][:] = 0.0
    value, gradients = derived(problem.fused, problem.arrays)
    assert not value.any()
    for name in ("features", "kernel", "bias"):
        assert not gradients[name].any()


def test_a_bias_at_the_least_float_masks_where_it_overflows():
    problem = stated(9, label_smoothing=0.2, temperature=0.5, labels="ids")
    closed = np.arange(11) == 10
    problem.arrays["bias"][closed] = np.finfo("float32").min
    problem = with_labels(problem, np.arange(7))
    expected = derived(problem.plain, problem.arrays)
    found = derived(problem.fused, problem.arrays)
    assert np.isfinite(expected[0])
    assert_same(found, expected, problem.allowances(expected[0]))
    assert not found[1]["bias"][closed].any()


def with_labels(problem, labels, **options):
    base = problem.base.but(labels=labels).opting(**options)
    return LinearProblem(**{**vars(problem), "base": base})


@pytest.mark.parametrize("reduction", [MEAN, None])
def test_what_hides_behind_a_weight_of_zero_stays_there(reduction):
    problem = stated(7, reduction=reduction, weight_rank=1)
    weights = problem.arrays["sample_weight"]
    weights[:] = [1.0, 0.0, 2.0, 0.0, 0.5, 3.0, 0.0]
    expected = derived(problem.fused, problem.arrays)
    hidden = {**problem.arrays, "features": problem.arrays["features"].copy()}
    hidden["features"][1], hidden["features"][6] = np.nan, np.inf
    labels = problem.base.labels.astype("int32")
    labels[3] = 10**6
    found = derived(with_labels(problem, labels).fused, hidden)
    # By its own weight a hidden loss has another derivative than one that is there.
    expected[1]["sample_weight"][[1, 3, 6]] = found[1]["sample_weight"][[1, 3, 6]]
    assert np.isfinite(found[1]["sample_weight"]).all()
    assert_same(found, expected, problem.allowances(expected[0]))
    assert not found[1]["features"][weights == 0].any()


@pytest.mark.parametrize("positions", [(), (0,), (2, 0)])
def test_a_position_alone_and_none_at_all(positions):
    rng = np.random.default_rng(8)
    x, kernel = eighths(rng, 1.0, (*positions, WIDTH)), eighths(rng, 1.0, (WIDTH, 11))
    labels = np.full(positions, 4)

    def fused(features, kernel):
        return linear_softmax_cross_entropy(features, kernel, labels, reduction=None)

    def plain(features, kernel):
        logits = ops.matmul(features, kernel)
        return SoftmaxCrossEntropy(True, reduction=None)(labels, logits)

    arrays = {"features": x, "kernel": kernel}
    value, gradients = derived(fused, arrays)
    expected, expected_gradients = derived(plain, arrays)
    assert value.shape == positions
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected_gradients[name], atol=1e-6)


# Digits


class Truth:
    """The mean over positions by their weights, by NumPy, in more digits."""

    def __init__(self, x, kernel, bias, labels, weights):
        z = x @ kernel + bias
        e = np.exp(z - z.max(-1, keepdims=True))
        p = e / e.sum(-1, keepdims=True)
        rows = np.arange(len(x))
        shares = weights / weights.sum()
        losses = np.log(e.sum(-1)) - (z - z.max(-1, keepdims=True))[rows, labels]
        p[rows, labels] -= 1.0
        by_logits = UPSTREAM * shares[:, None] * p
        self.value = np.sum(shares * losses)
        self.gradients = {
            "features": by_logits @ kernel.T,
            "kernel": x.T @ by_logits,
            "bias": by_logits.sum(0),
        }


class Rough:
    """A problem whose every product is rounded."""

    def __init__(self, features="float32", kernel="float32", classes=101):
        rng = np.random.default_rng(9)
        count = 83
        self.labels = rng.integers(0, classes, count)
        # Of few digits, so that these are the same in every dtype.
        self.weights = rng.choice([0.25, 0.5, 2.0], count)
        self.arrays = {
            "features": as_dtype(rng.normal(size=(count, 16)), features),
            "kernel": as_dtype(rng.normal(size=(16, classes)) / 4, kernel),
            "bias": as_dtype(rng.normal(size=classes), kernel),
        }

    def truth(self):
        x, kernel, bias = (wide(array) for array in self.arrays.values())
        # A kernel is used in the dtype of the features.
        kernel = wide(as_dtype(kernel, self.arrays["features"].dtype))
        return Truth(x, kernel, bias, self.labels, self.weights)

    def fused(self, chunk):
        classes = self.arrays["bias"].shape[0]

        def run(features, kernel, bias):
            return linear_softmax_cross_entropy(
                features,
                kernel,
                self.labels,
                bias=bias,
                sample_weight=self.weights,
                memory_budget=budget_for(chunk, classes, features.shape[-1]),
            )

        return derived(run, self.arrays)

    def plain(self):
        def run(features, kernel, bias):
            kernel = ops.cast(ops.cast(kernel, features.dtype), "float32")
            z = ops.matmul(ops.cast(features, "float32"), kernel)
            z = z + ops.cast(bias, "float32")
            return SoftmaxCrossEntropy(True)(self.labels, z, self.weights)

        return derived(run, self.arrays)


def as_dtype(array, dtype):
    return array.astype(getattr(ml_dtypes, str(dtype), dtype))


def wide(array):
    return array.astype("float64")


def errors(solution, truth):
    """The relative error of the value, and of each gradient, in the Frobenius norm."""
    value, gradients = solution
    found = {"value": value, **gradients}
    true = {"value": truth.value, **truth.gradients}
    return {
        name: np.linalg.norm(found[name] - true[name]) / np.linalg.norm(true[name])
        for name in true
    }


DTYPES = [
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("bfloat16", "float32"),  # mixed precision
]


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_the_error_is_that_of_the_plain_path_with_logits_in_float32(dtypes):
    problem = Rough(*dtypes)
    truth = problem.truth()
    allowed = errors(problem.plain(), truth)
    # The many chunks are where a sum in half precision would show.
    few = ((9, 10), (83, 1)) if dtypes == ("float32", "float32") else ()
    for chunk, chunks in ((1, 83), *few):
        # Each chunk is added with one rounding, and these add up as in a random walk.
        # So do the losses of the tokens within a chunk, in an order that XLA chooses.
        rounding = EPS / 2 * max(1.0, chunks**0.5 / 2)
        of_value = EPS / 2 * (chunk * chunks) ** 0.5 / 2
        with columns_at_a_time(32):  # each block is a part of the program
            found = problem.fused(chunk)
        for name, error in errors(found, truth).items():
            own = of_value if name == "value" else rounding
            assert error <= 1.05 * allowed[name] + own, (chunk, name)


@pytest.mark.skipif(BACKEND == "jax", reason="float64 is a switch for the process")
def test_float64_stays_float64():
    problem = Rough("float64", "float64", classes=11)
    value, gradients = problem.fused(9)
    assert {array.dtype.name for array in (value, *gradients.values())} == {"float64"}
    for error in errors((value, gradients), problem.truth()).values():
        assert error <= 1e-14


# Bad input

BAD = np.array([3, 11, 0, -1, 10, 2, 2])


@pytest.mark.parametrize("reduction", [MEAN, None])
def test_a_bad_label_is_an_error_in_eager_code(reduction):
    problem = with_labels(stated(10, reduction=reduction), BAD)
    tensors = {name: tensor_of(array) for name, array in problem.arrays.items()}
    with pytest.raises(ValueError, match=r"(?s)labels.* 2 .*-1"):
        problem.fused(**tensors)


@compiles
@pytest.mark.parametrize("reduction", [MEAN, None])
def test_a_bad_label_is_nan_and_harmless_in_compiled_code(reduction):
    problem = with_labels(stated(10, reduction=reduction), BAD)
    value, gradients = derived(problem.fused, problem.arrays, mode="jit")
    if reduction is None:
        assert np.flatnonzero(np.isnan(value)).tolist() == [1, 3]
    else:
        assert np.isnan(value)
    assert not gradients["features"][[1, 3]].any()
    for name in ("features", "kernel", "bias"):
        assert np.isfinite(gradients[name]).all()
        assert gradients[name].any()


WRONG = {
    "kernel": ({"kernel": (4, 11)}, r"kernel.*\(7, 5\).*\(4, 11\)"),
    "transposed kernel": ({"kernel": (11, 5)}, r"\(7, 5\).*\(11, 5\).*=True"),
    "vector": ({"kernel": (5,)}, r"kernel.*\(7, 5\).*\(5,\)"),
    "bias": ({"bias": (5,)}, r"bias.*\(5,\).*\(5, 11\)"),
    "labels": ({"labels": (6,)}, r"labels.*\(6,\).*\(7, 11\)"),
    "sample_weight": ({"sample_weight": (6,)}, r"sample_weight.*\(6,\).*\(7,\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_shapes_that_do_not_agree_are_both_in_the_message(case):
    shapes, match = WRONG[case]
    given = {"features": (7, 5), "kernel": (5, 11), "bias": (11,), "labels": (7,)}
    arrays = {name: np.ones(s, "float32") for name, s in {**given, **shapes}.items()}
    with pytest.raises(ValueError, match=f"(?s){match}"):
        linear_softmax_cross_entropy(**arrays)


def test_a_budget_too_small_for_one_token_is_one_token_with_a_warning():
    problem = stated(11, chunk=1)
    expected = derived(problem.fused, problem.arrays)
    needed = problem.budget
    small = LinearProblem(**{**vars(problem), "budget": needed - 1})
    told = f"memory_budget={needed - 1}, where {needed} bytes"
    with pytest.warns(UserWarning, match=told):
        found = derived(small.fused, problem.arrays)
    assert_same(found, expected, problem.allowances(expected[0]))


# Derived again

again = pytest.mark.parametrize("reduction", [MEAN, None])


@again
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "jit"] or MODES)
def test_a_second_derivative_is_refused_with_the_way_out(mode, reduction):
    problem = stated(12, reduction=reduction, weight_rank=1, chunk=2)
    tensors = {name: tensor_of(array) for name, array in problem.arrays.items()}
    firsts = LINEAR if reduction is None else (*LINEAR, "sample_weight")
    # A graph is made anew for each pair, and of the same code.
    seconds = ("kernel",) if mode == "graph" else LINEAR
    for first in firsts:
        for second in seconds:
            with pytest.raises(ValueError, match="fused=False"):
                derived_twice(problem.fused, tensors, first, second, mode)


@again
@pytest.mark.skipif(BACKEND != "torch", reason="of its upstream")
def test_so_is_one_by_what_the_loss_is_multiplied_by(reduction):
    import torch

    problem = stated(12, reduction=reduction, chunk=2)
    tensors = {name: tensor_of(array) for name, array in problem.arrays.items()}
    factor = torch.tensor(2.0, requires_grad=True)
    features = tensors["features"].requires_grad_()
    total = (factor * problem.fused(**tensors)).sum()
    (slopes,) = torch.autograd.grad(total, features, create_graph=True)
    with pytest.raises(ValueError, match="fused=False"):
        torch.autograd.grad(slopes.square().sum() + factor**2, factor)


@pytest.mark.skipif(BACKEND != "torch", reason="of its batches of gradients")
def test_gradients_of_a_mean_are_taken_of_a_batch_of_upstreams():
    import torch

    problem = stated(12, chunk=2)
    tensors = {name: tensor_of(array) for name, array in problem.arrays.items()}
    wanted = [tensors[name].requires_grad_() for name in ("features", "kernel")]
    value = problem.fused(**tensors)
    ups = torch.tensor([1.0, -3.0])
    found = torch.autograd.grad(
        value, wanted, ups, is_grads_batched=True, retain_graph=True
    )
    once = torch.autograd.grad(value, wanted)
    for both, one in zip(found, once, strict=True):
        torch.testing.assert_close(both, torch.stack([one, -3 * one]))


def derived_twice(function, tensors, first, second, mode):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def run(tensors):
            with tf.GradientTape() as outer:
                outer.watch(tensors[second])
                with tf.GradientTape() as tape:
                    tape.watch(tensors[first])
                    value = function(**tensors)
                slopes = tf.reduce_sum(tape.gradient(value, tensors[first]) ** 2)
            return outer.gradient(slopes, tensors[second])

        return (run if mode == "eager" else tf.function(run, autograph=False))(tensors)
    if BACKEND == "torch":
        import torch

        tensors = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        total = function(**tensors).sum()
        slopes = torch.autograd.grad(total, tensors[first], create_graph=True)[0]
        return torch.autograd.grad(slopes.square().sum(), tensors[second])
    import jax

    def slopes(of_second):
        given = {**tensors, second: of_second}

        def total(of_first):
            return function(**{**given, first: of_first}).sum()

        return jax.grad(total)(given[first])

    return jax.jacfwd(slopes)(tensors[second])


@again
@pytest.mark.skipif(BACKEND != "jax", reason="of its two modes")
def test_reverse_over_reverse_is_refused_as_well(reduction):
    import jax

    problem = stated(12, reduction=reduction)

    def slopes(kernel):
        given = {**problem.arrays, "kernel": kernel}
        return jax.grad(lambda k: problem.fused(**{**given, "kernel": k}).sum())(kernel)

    with pytest.raises(ValueError, match="fused=False"):
        jax.grad(lambda kernel: (slopes(kernel) ** 2).sum())(problem.arrays["kernel"])


@again
def test_a_second_backward_pass_gives_the_same_gradients(reduction):
    problem = stated(13, reduction=reduction, chunk=2)
    tensors = {name: tensor_of(array) for name, array in problem.arrays.items()}
    first, second = twice(problem.fused, tensors)
    _, expected = derived(problem.plain, problem.arrays)
    for name, one, other in zip(tensors, first, second, strict=True):
        np.testing.assert_array_equal(numpy_of(one), numpy_of(other))
        np.testing.assert_allclose(numpy_of(one), expected[name], rtol=1e-4, atol=1e-6)


def twice(function, tensors):
    """The gradients of one forward pass, by all tensors, from two backward passes."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(persistent=True) as tape:
            tape.watch(tensors)
            value = function(**tensors)
            total = tf.reduce_sum(value * upstream(value))
        wanted = list(tensors.values())
        return tape.gradient(total, wanted), tape.gradient(total, wanted)
    if BACKEND == "torch":
        import torch

        wanted = [tensor.requires_grad_() for tensor in tensors.values()]
        value = function(**tensors)
        total = (value * upstream(value)).sum()
        return [
            torch.autograd.grad(total, wanted, retain_graph=again)
            for again in (True, False)
        ]
    import jax

    value, back = jax.vjp(lambda tensors: function(**tensors), tensors)
    weights = value * 0 + upstream(value)
    return [[back(weights)[0][name] for name in tensors] for _ in range(2)]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others know the size of a batch")
@again
@pytest.mark.parametrize("jit", [False, True])
def test_a_batch_that_turns_out_to_be_empty_costs_nothing(jit, reduction):
    import tensorflow as tf

    signature = [tf.TensorSpec((None, 3)), tf.TensorSpec((None,), "int32")]
    kernel = tf.ones((3, 11))

    @tf.function(jit_compile=jit, input_signature=signature)
    def step(features, labels):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            total = tf.reduce_sum(
                linear_softmax_cross_entropy(
                    features, kernel, labels, reduction=reduction
                )
            )
        return total, tape.gradient(total, kernel)

    empty = step(tf.ones((0, 3)), tf.zeros(0, "int32"))
    np.testing.assert_array_equal(empty[0], 0)
    np.testing.assert_array_equal(empty[1], np.zeros((3, 11)))
    assert np.any(step(tf.ones((2, 3)), tf.zeros(2, "int32"))[1])


@pytest.mark.skipif(BACKEND == "tensorflow", reason="whose tapes pass over labels")
@again
def test_the_gradient_by_labels_is_refused(reduction):
    problem = stated(14, labels="distributions", reduction=reduction)
    arrays = {**problem.arrays, "labels": problem.base.labels}

    def fused(labels, **arrays):
        return with_labels(problem, labels).fused(**arrays)

    with pytest.raises(ValueError, match=r"(?s)labels.*fused=False"):
        derived(fused, arrays, ("labels",), mode="eager")
