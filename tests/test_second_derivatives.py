"""The gradient of a gradient is right, in whichever way two of them are nested.

The gradient by logits is computed in the forward pass and handed on. Whoever derives
it again must not find a constant there.
"""

from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import (
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    softmax_cross_entropy,
)

pytestmark = pytest.mark.compiled_fast
BACKEND = keras.config.backend()
EPS = np.finfo("float32").eps
SMALL, LARGE = (7, 11), (2999, 11)  # TensorFlow compiles the large one by itself
RNG = np.random.default_rng(0)
CLASS_WEIGHT = RNG.choice([0.0, 0.25, 1.0, 3.0], 11).tolist()


def same(function):
    return function


# How the loss is run, and how the whole with all its derivatives is.
if BACKEND == "tensorflow":
    import tensorflow as tf

    jit = partial(tf.function, jit_compile=True)
    SETTINGS = {
        "eager": (same, same),
        "whole graph": (same, tf.function),
        "whole jit": (same, jit),
        "loss in a graph": (tf.function, same),
        "loss in a jit": (jit, same),
    }
elif BACKEND == "jax":
    import jax

    SETTINGS = {
        "eager": (same, same),
        "whole jit": (same, jax.jit),
        "loss in a jit": (jax.jit, same),
    }
else:
    import torch

    SETTINGS = {"eager": (same, same)}
# JAX takes four times as long to derive without jit as it takes to compile.
SETTING = "whole jit" if BACKEND == "jax" else "eager"
settings = pytest.mark.parametrize("setting", SETTINGS)
few_settings = pytest.mark.parametrize(
    "setting", [s for s in SETTINGS if s in ("eager", "whole jit", "loss in a graph")]
)


def grad(function, by=0):
    """The gradient of a scalar function, as a function that can be derived again."""
    if BACKEND == "jax":
        return jax.grad(function, by)

    def derived(*inputs):
        if BACKEND == "torch":
            return torch.autograd.grad(
                function(*inputs), inputs[by], create_graph=True
            )[0]
        with tf.GradientTape() as tape:
            tape.watch(inputs[by])
            value = function(*inputs)
        return tape.gradient(value, inputs[by])

    return derived


def product(function, by=0, then=0):
    """The second derivative of a function, times a vector that comes last."""
    first = grad(function, by)
    return grad(lambda *inputs: ops.sum(first(*inputs[:-1]) * inputs[-1]), then)


def derivative(setting, function, derive):
    """A derivative of a function in one of the settings, as a function of arrays."""
    inner, outer = SETTINGS[setting]
    derived = outer(derive(inner(function)))

    def of(*arrays):
        inputs = [ops.convert_to_tensor(array) for array in arrays]
        if BACKEND == "torch":
            inputs = [x.requires_grad_() for x in inputs]
        found = derived(*inputs)
        assert found is not None
        return ops.convert_to_numpy(ops.stop_gradient(found))

    return of


def run(setting, function, derive, *arrays):
    return derivative(setting, function, derive)(*arrays)


def assert_close(found, expected, eps=EPS):
    """Up to roundings of the largest number there is."""
    bound = 32 * eps * np.abs(expected).max()
    assert bound > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


class Case:
    """A loss of some logits, for which everything but the logits is given."""

    def __init__(self, kind, shape=SMALL, dtype="float32", **options):
        rng = np.random.default_rng(1)
        loss = SigmoidCrossEntropy if kind == "units" else SoftmaxCrossEntropy
        self.loss = loss(True, **options)
        self.weights = rng.choice([0.0, 0.5, 2.0], shape[0]).astype("float32")
        self.weights[:2] = 1.0
        self.logits = 2 * rng.normal(size=shape).astype(dtype)
        self.logits[0] = 0.0  # where a maximum or a branch by sign is tied
        self.vector = rng.normal(size=shape).astype(dtype)
        self.labels = {
            "ids": rng.integers(0, shape[1], shape[0]),
            "distributions": rng.random(shape).astype(dtype),
            "units": rng.random(shape).astype(dtype),
        }[kind]

    def __call__(self, z):
        return self.loss(self.labels, z, self.weights)


def softmax(z):
    e = np.exp(z.astype("float64") - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def closed_form(case):
    """Times the vector: diag(p) - p p^T, or s (1 - s)."""
    v = case.vector.astype("float64")
    w = case.weights[:, None] / case.weights.astype("float64").sum()
    if isinstance(case.loss, SigmoidCrossEntropy):
        s = 1 / (1 + np.exp(-case.logits.astype("float64")))
        return w / case.logits.shape[1] * s * (1 - s) * v
    p = softmax(case.logits)
    mass = 1.0
    if case.labels.ndim == 2:
        mass = case.labels.sum(-1, keepdims=True, dtype="float64")
    return w * mass * (p * v - p * np.sum(p * v, -1, keepdims=True))


@pytest.mark.parametrize("kind", ["ids", "distributions", "units"])
def test_a_plain_loss_has_the_hessian_of_the_books(kind):
    case = Case(kind)
    found = run(SETTING, case, product, case.logits, case.vector)
    assert_close(found, closed_form(case))


@settings
@pytest.mark.parametrize(
    "shape", [SMALL, LARGE] if BACKEND == "tensorflow" else [SMALL]
)
def test_every_setting_and_size_has_that_hessian(setting, shape):
    case = Case("ids", shape)
    found = run(setting, case, product, case.logits, case.vector)
    assert_close(found, closed_form(case))


OPTIONS = {
    "focal": ("ids", {"focal_gamma": 2.0}),
    "flat focal": ("distributions", {"focal_gamma": 0.5}),
    "z_loss": ("ids", {"z_loss": 0.1, "class_weight": CLASS_WEIGHT}),
    "smoothing": ("ids", {"label_smoothing": 0.2}),
    "all of softmax": (
        "distributions",
        {
            "focal_gamma": 1.5,
            "z_loss": 0.1,
            "label_smoothing": 0.2,
            "class_weight": CLASS_WEIGHT,
        },
    ),
    "focal units": ("units", {"focal_gamma": 2.0}),
    "all of sigmoid": (
        "units",
        {
            "focal_gamma": 1.5,
            "label_smoothing": 0.2,
            "class_weight": CLASS_WEIGHT,
            "pos_weight": 3.5,
        },
    ),
}


def by_differences(function, array, vector):
    """The second derivative times a vector, from gradients on both sides."""
    step, gradient = 1e-5, derivative(SETTING, function, grad)
    up, down = (gradient(array + side * vector) for side in (step, -step))
    return (up - down) / (2 * step)


def assert_by_differences(case, setting):
    found = run(setting, case, product, case.logits, case.vector)
    expected = by_differences(case, case.logits, case.vector)
    assert_close(found, expected, eps=1e-9)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_the_hessian_that_its_gradient_shows(double, name):
    kind, options = OPTIONS[name]
    assert_by_differences(Case(kind, dtype="float64", **options), SETTING)


@settings
@pytest.mark.parametrize("name", ["all of softmax", "all of sigmoid"])
def test_all_options_have_that_hessian_in_every_setting(double, name, setting):
    kind, options = OPTIONS[name]
    assert_by_differences(Case(kind, dtype="float64", **options), setting)


def test_a_function_that_reduces_nothing_has_a_hessian(double):
    case = Case("ids", dtype="float64")
    upstream = np.linspace(0.5, 2.0, len(case.logits))

    def total(z):
        values = softmax_cross_entropy(case.labels, z)
        return ops.sum(ops.convert_to_tensor(upstream) * values)

    found = run(SETTING, total, product, case.logits, case.vector)
    case.weights = upstream
    assert_close(found, closed_form(case) * upstream.sum(), eps=1e-9)


@pytest.mark.parametrize(
    "options", [{}, {"focal_gamma": 2.0}, {"label_smoothing": 0.2}]
)
@pytest.mark.parametrize("kind", ["ids", "distributions"])
def test_a_masked_class_has_no_curvature(double, kind, options):
    """And leaves that of the others as if it were not there."""
    case = Case(kind, dtype="float64", **options)
    case.logits[:, 7:] = -np.inf
    if kind == "ids":
        case.labels = case.labels % 7
    else:
        case.labels[:, 7:] = 0.0
    found = run(SETTING, case, product, case.logits, case.vector)
    assert not found[:, 7:].any()

    case.logits, case.vector = case.logits[:, :7], case.vector[:, :7]
    if kind == "distributions":
        case.labels = case.labels[:, :7]
    expected = by_differences(case, case.logits, case.vector)
    assert_close(found[:, :7], expected, eps=1e-9)


@pytest.mark.parametrize("name", ["z_loss", "all of softmax", "all of sigmoid"])
def test_far_logits_have_a_finite_hessian(name):
    kind, options = OPTIONS[name]
    case = Case(kind, **options)
    case.logits *= np.float32(1e4)
    found = run(SETTING, case, product, case.logits, case.vector)
    assert np.isfinite(found).all()


# By weights and labels


@few_settings
@pytest.mark.parametrize("kind", ["ids", "distributions", "units"])
def test_a_mean_has_a_gradient_by_its_weights(kind, setting):
    """The loss of each row less the mean, over the sum of all weights."""
    case = Case(kind)
    case.weights[2:5] = 0.5

    def mean(w):
        return case.loss(case.labels, case.logits, w)

    found = run(setting, mean, grad, case.weights)
    each = case.loss.call(case.labels, ops.convert_to_tensor(case.logits))
    each = ops.convert_to_numpy(each).astype("float64")
    total = case.weights.sum(dtype="float64")
    expected = (each - np.sum(case.weights * each) / total) / total
    assert (case.weights == 0).any()  # whose losses are derivatives as well
    assert_close(found, expected)


@few_settings
@pytest.mark.parametrize("kind", ["distributions", "units"])
def test_a_loss_has_a_gradient_by_labels_that_are_no_integers(kind, setting):
    case = Case(kind)

    def by_labels(y):
        return case.loss(y, case.logits, case.weights)

    found = run(setting, by_labels, grad, case.labels)
    w = case.weights[:, None] / case.weights.astype("float64").sum()
    if kind == "distributions":
        expected = -w * np.log(softmax(case.logits))
    else:
        expected = -w * case.logits / case.logits.shape[1]
    assert_close(found, expected)


@few_settings
@pytest.mark.parametrize("way", ["logits first", "weights first"])
def test_a_gradient_by_logits_has_a_gradient_by_weights(setting, way):
    """Whichever is first; of a sum, and times a vector: softmax less target."""
    case = Case("ids")
    case.loss = SoftmaxCrossEntropy(True, reduction="sum")
    case.weights[:] = 2.0

    def total(z, w):
        return case.loss(case.labels, z, w)

    slopes = softmax(case.logits) - np.eye(11)[case.labels]
    if way == "logits first":
        derive, vector = partial(product, by=0, then=1), case.vector
        expected = np.sum(slopes * case.vector, -1)
    else:
        derive, vector = partial(product, by=1, then=0), case.vector[:, 0]
        expected = slopes * vector[:, None]
    found = run(setting, total, derive, case.logits, case.weights, vector)
    assert_close(found, expected)


@few_settings
@pytest.mark.parametrize("way", ["logits first", "labels first"])
def test_a_gradient_by_logits_has_a_gradient_by_labels(setting, way):
    """Of units it is minus the weight, whichever is first."""
    case = Case("units")

    def total(z, y):
        return case.loss(y, z, case.weights)

    by, then = (0, 1) if way == "logits first" else (1, 0)
    derive = partial(product, by=by, then=then)
    found = run(setting, total, derive, case.logits, case.labels, case.vector)
    w = case.weights[:, None] / case.weights.astype("float64").sum()
    assert_close(found, -w / case.logits.shape[1] * case.vector)


# Each framework's own ways


def whole_hessian(case):
    """`[N, K, N, K]` in closed form: nothing goes from one row to another."""
    rows, classes = case.logits.shape
    found = np.zeros((rows, classes, rows, classes))
    for k in range(classes):
        case.vector = np.tile(np.eye(classes)[k], (rows, 1))
        found[range(rows), :, range(rows), k] = closed_form(case)
    return found


if BACKEND == "tensorflow":

    @pytest.mark.parametrize("outer", [same, tf.function], ids=["eager", "graph"])
    def test_an_upstream_of_one_is_a_variable_like_any_other(outer):
        case = Case("ids")

        @outer
        def by_upstream(z):
            one = tf.ones(())
            with tf.GradientTape() as tape:
                tape.watch(one)
                with tf.GradientTape() as inner:
                    inner.watch(z)
                    loss = case(z)
                slopes = inner.gradient(loss, z, output_gradients=one)
                along = tf.reduce_sum(z * slopes)
            return along, tape.gradient(along, one)

        along, found = by_upstream(tf.constant(case.logits))
        assert_close(found.numpy(), along.numpy())

    @pytest.mark.parametrize("outer", [same, tf.function], ids=["eager", "graph"])
    @pytest.mark.parametrize("kind", ["ids", "units"])
    def test_a_jacobian_of_a_gradient_is_the_hessian(kind, outer):
        case = Case(kind)

        @outer
        def hessian(z):
            with tf.GradientTape() as tape:
                tape.watch(z)
                gradient = grad(case)(z)
            return tape.jacobian(gradient, z)

        found = hessian(tf.constant(case.logits))
        assert_close(found.numpy(), whole_hessian(case))

    @pytest.mark.parametrize("kind", ["ids", "units"])
    def test_forward_over_reverse_is_the_hessian(kind):
        case = Case(kind)
        z = tf.constant(case.logits)
        with tf.autodiff.ForwardAccumulator(z, tf.constant(case.vector)) as forward:
            gradient = grad(case)(z)
        assert_close(forward.jvp(gradient).numpy(), closed_form(case))

    def test_forward_mode_may_be_the_first_to_derive_again():
        """What it made TensorFlow trace is used by all that come later."""
        from keras_logits.kernels import tensorflow_scores

        tensorflow_scores._along.cache_clear()
        tensorflow_scores._along_the_rest.cache_clear()
        case = Case("ids")
        z, w = tf.constant(case.logits), tf.constant(case.weights)
        for variable, direction in ((z, case.vector), (w, np.ones_like(case.weights))):
            tangent = tf.constant(direction)
            with tf.autodiff.ForwardAccumulator(variable, tangent) as forward:
                gradient = grad(lambda z, w: case.loss(case.labels, z, w))(z, w)
            assert forward.jvp(gradient) is not None
        found = run("eager", case, product, case.logits, case.vector)
        assert_close(found, closed_form(case))
        found = run("eager", lambda w: case.loss(case.labels, z, w), grad, case.weights)
        assert found.any()

    def test_a_graph_of_unknown_size_has_the_hessian_at_every_size():
        cases = [Case("ids", shape) for shape in (SMALL, LARGE)]
        rows, ids = tf.TensorSpec((None, 11)), tf.TensorSpec((None,), tf.int64)

        @partial(tf.function, input_signature=[rows, ids, tf.TensorSpec((None,))])
        def loss(z, labels, weights):
            return cases[0].loss(labels, z, weights)

        for case in cases:
            given = tf.constant(case.labels), tf.constant(case.weights)
            derive = product(lambda z, given=given: loss(z, *given))
            found = derive(tf.constant(case.logits), tf.constant(case.vector))
            assert_close(found.numpy(), closed_form(case))


if BACKEND == "jax":

    @pytest.mark.parametrize("outer", [same, jax.jit], ids=["eager", "jit"])
    @pytest.mark.parametrize("kind", ["ids", "units"])
    def test_every_nesting_of_modes_is_the_hessian(kind, outer):
        case = Case(kind)
        z, v = jax.numpy.asarray(case.logits), jax.numpy.asarray(case.vector)
        forward_over_reverse = outer(lambda z: jax.jvp(jax.grad(case), (z,), (v,))[1])
        assert_close(forward_over_reverse(z), closed_form(case))
        reverse_over_forward = outer(jax.grad(lambda z: jax.jvp(case, (z,), (v,))[1]))
        assert_close(reverse_over_forward(z), closed_form(case))
        hessian = outer(jax.hessian(case))(z)
        assert_close(hessian, whole_hessian(case))

    def test_a_third_derivative_is_that_of_the_obvious_code():
        case = Case("ids", (3, 5))

        def obvious(z):
            target = z[jax.numpy.arange(len(z)), case.labels]
            values = jax.scipy.special.logsumexp(z, axis=-1) - target
            return jax.numpy.sum(case.weights * values) / case.weights.sum()

        third = [jax.jit(jax.jacfwd(jax.hessian(f))) for f in (case, obvious)]
        found, expected = (f(jax.numpy.asarray(case.logits)) for f in third)
        assert_close(np.asarray(found), np.asarray(expected))


if BACKEND == "torch":

    @pytest.mark.parametrize("kind", ["ids", "distributions", "units"])
    def test_a_hessian_of_torch_is_that_of_the_books(kind):
        case = Case(kind)
        found = torch.autograd.functional.hessian(case, torch.tensor(case.logits))
        assert_close(found.numpy(), whole_hessian(case))

    @pytest.mark.parametrize("name", ["plain", *OPTIONS])
    def test_torch_itself_finds_both_derivatives_right(name):
        kind, options = OPTIONS.get(name, ("ids", {}))
        case = Case(kind, (3, 11), "float64", **options)
        z = torch.tensor(case.logits, requires_grad=True)
        assert torch.autograd.gradcheck(case, z)
        assert torch.autograd.gradgradcheck(case, z)

    def test_a_graph_created_twice_gives_a_third_derivative():
        case = Case("units")
        z = torch.tensor(case.logits, requires_grad=True)
        first = torch.autograd.grad(case(z), z, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), z, create_graph=True)[0]
        third = torch.autograd.grad(second.sum(), z)[0]
        s = 1 / (1 + np.exp(-case.logits.astype("float64")))
        w = case.weights[:, None] / case.weights.sum() / 11
        assert_close(third.numpy(), w * s * (1 - s) * (1 - 2 * s))
