"""Problems for a loss, with all of its options drawn together.

`CHOICES` is the table of what may be chosen. Hypothesis draws from it for the property
tests; `seeded` draws from it by a plain random generator, for whoever needs the same
problems in several processes. `Problem.solve` is the only place that knows how a
backend derives and compiles.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import keras
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from keras import ops

import keras_logits
from keras_logits import MarkLogits
from keras_logits._keras_private import set_keras_mask

BACKEND = keras.config.backend()
MODES = {"tensorflow": ("eager", "graph", "jit"), "jax": ("eager", "jit")}.get(
    BACKEND, ("eager",)
)
# JAX takes four times as long to derive without jit as it takes to compile.
MODE = "jit" if BACKEND == "jax" else "eager"
MANY, ROWS = BACKEND == "torch", 6
EPS = float(np.finfo("float32").eps)
MEAN = "mean_with_sample_weight"
REDUCTIONS = (MEAN, "sum_over_batch_size", "mean", "sum", None)
BY_WEIGHT = (MEAN, "sum", None)  # where a weight of 0 is nothing

CHOICES = {
    "activation": ("softmax", "sigmoid"),
    "positions": ((7,), (3, 5), (1,), (4, 4), (1, 6), (2, 3, 4)),
    "classes": (3, 2, 11, 1),
    "axis": (-1, 0, 1, -2),
    "scale": (1.0, 30.0, 1e4),
    "offset": (0.0, -60.0, 1e4),
    "hidden": (None, "others", "any"),
    "class_weight": (None, "list", "dict"),
    "pos_weight": (None, "number", "list"),
    "label_smoothing": (0.0, 0.1),
    "focal_gamma": (0.0, 0.5, 2.0),
    "z_loss": (0.0, 1e-3),
    "ignore_index": (None, "a class", "no class"),
    "weight_rank": (0, 1, 2, 3),
    "mask_rank": (0, 1, 2),
    "reduction": REDUCTIONS,
    "labels": ("ids", "column", "one-hot", "distributions"),
}


def repeatable(few=ROWS):
    """Settings that draw the same problems each time, on every machine.

    Torch compiles nothing, and so is shown the many, each choice drawn for itself. What
    is behind the formulas, and different for each backend, takes few.
    """
    return settings(
        max_examples=100 if MANY else few,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def problems(**only):
    """Problems with every choice open but those given, a value or a tuple of values."""
    choices = {**CHOICES, **{name: as_choices(only[name]) for name in only}}
    if not MANY:
        return st.sampled_from(rows_of(choices)).map(lambda row: posed(**row))
    drawn = {name: st.sampled_from(values) for name, values in choices.items()}
    seeds = st.integers(0, 2**16)
    return st.builds(posed, seed=seeds, **drawn)


def rows_of(choices, count=ROWS):
    """Rows that together have every value of every choice.

    Drawn each for itself, ten rows would leave one of six values out in every sixth
    case. The values of a choice are in an order of its own, so that others meet.
    """
    assert all(len(values) <= count for values in choices.values())
    rng = np.random.default_rng(0)
    columns = {"seed": range(count)}
    for name, values in choices.items():
        columns[name] = [values[i % len(values)] for i in rng.permutation(count)]
    return [{name: of[i] for name, of in columns.items()} for i in range(count)]


def seeded(count, seed=0):
    """A fixed list of problems."""
    rng = np.random.default_rng(seed)
    return [
        posed(
            seed=index,
            **{
                name: values[rng.integers(len(values))]
                for name, values in CHOICES.items()
            },
        )
        for index in range(count)
    ]


def as_choices(values):
    return values if isinstance(values, tuple) else (values,)


@dataclass(frozen=True)
class Solution:
    """What a loss gave: its value, and the gradient by the logits."""

    value: np.ndarray
    gradient: np.ndarray

    def map(self, function, *others):
        """A function of the values, and of the gradients, of this one and others."""
        return Solution(
            function(self.value, *(other.value for other in others)),
            function(self.gradient, *(other.gradient for other in others)),
        )


@dataclass(frozen=True)
class Problem:
    """A loss with its options, and one batch for it."""

    activation: str
    labels: np.ndarray
    logits: np.ndarray
    axis: int
    options: dict
    reduction: str | None
    upstream: np.ndarray  # what values of positions are multiplied by, to be derived
    sample_weight: np.ndarray | None = None
    mask: np.ndarray | None = None

    # What follows from it

    @property
    def classes(self):
        return self.logits.shape[self.axis]

    @property
    def positions(self):
        return tuple(np.delete(self.logits.shape, self.axis))

    @property
    def are_ids(self):
        return self.activation == "softmax" and self.labels.shape != self.logits.shape

    @property
    def ids(self):
        return self.labels.reshape(self.positions)

    @cached_property
    def loss(self):
        name = f"{self.activation.capitalize()}CrossEntropy"
        loss = getattr(keras_logits, name)
        return loss(axis=self.axis, reduction=self.reduction, **self.options)

    @property
    def rows(self):
        """The logits as `[N, K]`."""
        return by_rows(self.logits, self.axis)

    @property
    def known(self):
        """Units, or classes, that the labels say something of: `[N, K]`."""
        ignored = self.options.get("ignore_index")
        if ignored is None:
            return np.ones(self.rows.shape, bool)
        if self.activation == "sigmoid":
            return by_rows(self.labels, self.axis) != ignored
        if self.are_ids:
            whole = self.ids.ravel() != ignored
        else:
            labels = by_rows(self.labels, self.axis)
            total = labels.sum(-1)
            whole = (labels[:, ignored] != total) | (total == 0)
        return np.repeat(whole[:, None], self.classes, axis=1)

    @property
    def counted(self):
        """Which positions are neither masked nor ignored, `[N]`."""
        return self.known.any(-1) & self.spread(self.mask).astype(bool)

    @property
    def weights(self):
        """One weight for each position, `[N]`: 0 for all that does not count."""
        return np.where(self.counted, self.spread(self.sample_weight), 0.0)

    @property
    def per_class(self):
        """The class weights, one for each class."""
        given = self.options.get("class_weight")
        if isinstance(given, dict):
            return np.array([given.get(k, 1.0) for k in range(self.classes)])
        return np.ones(self.classes) if given is None else np.array(given)

    @property
    def mass(self):
        """The share of each position in the denominator of a mean, `[N]`."""
        if self.activation == "sigmoid":
            return (self.known * self.per_class).sum(-1)
        labels = by_rows(self.as_one_hot().labels, self.axis).astype("float64")
        total = labels.sum(-1)
        return np.where(
            total == 0, 1.0, labels @ self.per_class / np.where(total, total, 1)
        )

    @property
    def denominator(self):
        """What the sum of the weighted losses is divided by."""
        if self.reduction == MEAN:
            return np.sum(self.weights * self.mass)
        if self.reduction in ("mean", "sum_over_batch_size"):
            return np.sum(self.counted)
        return 1.0

    @property
    def shares(self):
        """What each position, or each unit of it, is multiplied by in all, `[N]`."""
        shares = self.weights / (self.denominator or 1.0)
        if self.activation == "sigmoid" and self.reduction != MEAN:
            shares = shares / np.where(self.mass, self.mass, 1.0)
        return shares

    def spread(self, weights):
        """Weights or a mask of any rank as one number for each position, `[N]`."""
        if weights is None:
            return np.ones(int(np.prod(self.positions)))
        ones = (1,) * (len(self.positions) - weights.ndim)
        shaped = weights.reshape(weights.shape + ones)
        return np.broadcast_to(shaped, self.positions).ravel()

    # Other problems made of it

    def but(self, **changes):
        return replace(self, **changes)

    def opting(self, **changes):
        return self.but(options={**self.options, **changes})

    def as_one_hot(self):
        """The same with one-hot labels; labels that no class has become a mask."""
        if not self.are_ids:
            return self
        ids = self.ids
        hot = ids[..., None] == np.arange(self.classes)
        hot = np.moveaxis(hot.astype("float32"), -1, self.axis)
        changed = self.but(labels=hot)
        if self.options.get("ignore_index") == -1:
            mask = self.spread(self.mask).astype(bool) & (ids.ravel() != -1)
            changed = changed.opting(ignore_index=None)
            changed = changed.but(mask=mask.reshape(self.positions))
        return changed

    def flat(self):
        """The same positions as rows, with their classes on the last axis."""
        labels = self.ids.ravel() if self.are_ids else by_rows(self.labels, self.axis)
        return self.but(
            labels=labels,
            logits=self.rows,
            axis=-1,
            upstream=self.upstream.ravel(),
            sample_weight=self.spread(self.sample_weight).astype("float32"),
            mask=self.spread(self.mask).astype(bool),
        )

    def taking(self, rows):
        """The same with some of its rows only, or in another order, or repeated."""
        assert self.logits.ndim == 2
        return self.but(
            labels=self.labels[rows],
            logits=self.logits[rows],
            upstream=self.upstream[rows],
            sample_weight=self.sample_weight[rows],
            mask=self.mask[rows],
        )

    # Its solution

    def solve(self, mode=MODE):
        """Value, one for each row if nothing is reduced, and gradient by rows."""

        def value_and_sum(logits):
            value = self.of(logits)
            if self.reduction is None:
                assert tuple(value.shape) == self.positions
                value = ops.reshape(value, (-1,))
                upstream = ops.cast(self.upstream.ravel(), value.dtype)
                return value, ops.sum(value * upstream)
            assert tuple(value.shape) == ()
            return value, value

        value, gradient = derived(value_and_sum, self.logits, mode)
        return Solution(value, by_rows(gradient, self.axis))

    def of(self, logits):
        if self.mask is not None:
            set_keras_mask(logits, ops.convert_to_tensor(self.mask))
        marked = MarkLogits(self.activation)(logits)
        return self.loss(self.labels, marked, self.sample_weight)

    def allowance(self, solution):
        """How far rounding may move a solution: value, and gradient by rows.

        A loss is a sum of terms of one sign, each a logarithm whose error is that of
        a number near 1; a gradient is the difference of two numbers of at most its
        position's weight. Sums add one rounding for each term at most.
        """
        weights = self.shares
        steps = 32 + self.classes + weights.size
        top = np.where(np.isneginf(self.rows), -np.inf, np.abs(self.rows)).max(-1)
        top = np.where(np.isfinite(top), top, 0.0) + np.log(self.classes)
        z_loss = self.options.get("z_loss", 0.0)
        slope = 1 + self.options["focal_gamma"] + 2 * z_loss * top
        own = weights * self.heaviest * slope
        floor = own.sum()
        if self.reduction is None:
            floor, own = own, own * self.upstream.ravel()
        finite = np.where(np.isfinite(solution.value), np.abs(solution.value), 0.0)
        return Solution(steps * EPS * (finite + floor), (steps * EPS * own)[:, None])

    @property
    def heaviest(self):
        """A bound of what classes, labels and positives multiply a term by, `[N]`."""
        if self.activation == "sigmoid":
            return np.max(self.per_class) * max(1.0, np.max(self.pos_weight))
        labels = by_rows(self.as_one_hot().labels, self.axis)
        return np.max(self.per_class) * np.maximum(labels.sum(-1), 1.0)

    @property
    def pos_weight(self):
        given = self.options.get("pos_weight")
        return 1.0 if given is None else given


def by_rows(array, axis):
    moved = np.moveaxis(array, axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def assert_same(found, expected, allowance):
    """Two solutions that differ by rounding alone."""
    for name in ("value", "gradient"):
        one, other = getattr(found, name), getattr(expected, name)
        bound = getattr(allowance, name)
        assert one.shape == other.shape, name
        with np.errstate(invalid="ignore"):  # inf - inf
            same = (one == other) | (np.abs(one - other) <= bound)
        assert same.all(), f"{name}: {one}\nis not {other}\nwithin {bound}"


# How each backend derives


def derived(function, logits, mode):
    """The first result of a function, and the gradient of the second by logits."""
    return {"tensorflow": by_tensorflow, "jax": by_jax, "torch": by_torch}[BACKEND](
        function, logits, mode
    )


def by_tensorflow(function, logits, mode):
    import tensorflow as tf

    def run(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value, total = function(z)
        return value, tape.gradient(total, z)

    if mode != "eager":
        run = tf.function(run, autograph=False, jit_compile=mode == "jit")
    value, gradient = run(tf.constant(logits))
    return value.numpy(), gradient.numpy()


def by_jax(function, logits, mode):
    import jax

    run = jax.grad(lambda z: function(z)[::-1], has_aux=True)
    if mode == "jit":
        run = jax.jit(run)
    gradient, value = run(jax.numpy.asarray(logits))
    return np.asarray(value), np.asarray(gradient)


def by_torch(function, logits, mode):
    import torch

    z = torch.tensor(logits, requires_grad=True)
    value, total = function(z)
    (gradient,) = torch.autograd.grad(total, z)
    return value.detach().cpu().numpy(), gradient.cpu().numpy()


# How a problem is made of choices


def posed(
    seed,
    activation,
    positions,
    classes,
    axis,
    scale,
    offset,
    hidden,
    class_weight,
    pos_weight,
    label_smoothing,
    focal_gamma,
    z_loss,
    ignore_index,
    weight_rank,
    mask_rank,
    reduction,
    labels,
):
    rng = np.random.default_rng(seed)
    if activation == "softmax":
        classes = max(classes, 2)
    rank = len(positions) + 1
    axis = axis % rank - (rank if axis < 0 else 0)

    logits = offset + scale * rng.normal(size=(*positions, classes))
    options = {
        "label_smoothing": label_smoothing,
        "focal_gamma": focal_gamma,
        "class_weight": class_weights(rng, classes, class_weight),
    }
    if activation == "sigmoid":
        options["pos_weight"] = pos_weights(rng, classes, pos_weight)
        options["ignore_index"] = None if ignore_index is None else -1
        given = unit_labels(rng, logits.shape, labels, options["ignore_index"])
        true = np.zeros(logits.shape, bool)
    else:
        options["z_loss"] = z_loss
        options["ignore_index"] = index = ignored_label(ignore_index, classes, labels)
        given, true = softmax_labels(rng, logits.shape, labels, index)
    closed = rng.random(logits.shape) < (0.3 if hidden else 0.0)
    if hidden == "others":
        closed &= ~true
    logits = np.where(closed, -np.inf, logits)

    if given.ndim == rank:
        given = np.moveaxis(given, -1, axis)
    return Problem(
        activation,
        given,
        np.moveaxis(logits, -1, axis).astype("float32"),
        axis,
        options,
        reduction,
        1.0 + np.arange(np.prod(positions)).reshape(positions) % 3,
        None if not weight_rank else sample_weights(rng, positions[:weight_rank]),
        None if not mask_rank else rng.random(positions[:mask_rank]) < 0.7,
    )


def softmax_labels(rng, shape, kind, ignored):
    """Labels, with their classes last, and the classes that they put mass on."""
    classes = shape[-1]
    ids = rng.integers(0, classes, shape[:-1])
    if ignored is not None:
        ids = np.where(rng.random(ids.shape) < 0.3, ignored, ids)
    hot = ids[..., None] == np.arange(classes)
    if kind in ("ids", "column"):
        dtype = rng.choice(["int32", "int64", "int8", "float32"])
        ids = ids.astype(dtype)
        return ids if kind == "ids" else ids[..., None], hot
    if kind == "one-hot":
        return hot.astype(rng.choice(["float32", "int32", "bool"])), hot
    # Some are spread, some have no mass at all, and few sum to 1.
    spread = rng.random(shape) * (rng.random(shape) < 0.7)
    soft = np.where(rng.random(ids.shape)[..., None] < 0.5, hot, spread)
    soft = np.where(rng.random(ids.shape)[..., None] < 0.1, 0.0, soft)
    return soft.astype("float32"), soft > 0


def ignored_label(kind, classes, labels):
    if kind is None:
        return None
    # A distribution cannot put its mass on a class that does not exist.
    only_classes = labels in ("one-hot", "distributions")
    return classes - 1 if only_classes or kind == "a class" else -1


def unit_labels(rng, shape, kind, ignored):
    labels = rng.random(shape)
    if kind != "distributions":
        labels = labels < 0.4
    labels = labels.astype("float32" if kind == "distributions" else "int32")
    return (
        labels
        if ignored is None
        else np.where(rng.random(shape) < 0.3, np.array(ignored, labels.dtype), labels)
    )


def class_weights(rng, classes, kind):
    if kind is None:
        return None
    values = rng.choice([0.0, 0.25, 1.0, 3.0], classes).tolist()
    if kind == "list":
        return values
    return {k: value for k, value in enumerate(values) if k % 2 == 0}


def pos_weights(rng, units, kind):
    if kind == "number":
        return float(rng.choice([0.5, 5.0]))
    return None if kind is None else rng.uniform(0.0, 4.0, units).tolist()


def sample_weights(rng, shape):
    """Whole numbers and halves, so that they can be counted; some are 0."""
    return rng.choice([0.0, 0.5, 1.0, 2.0, 3.0], shape).astype("float32")
