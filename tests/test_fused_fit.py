"""A model trains alike whether its loss is fused or not, however it is trained."""

import keras
import numpy as np
import pytest
from keras import ops

from budgets import budget_for
from keras_logits import LogitsHead, MarkLogits, SoftmaxCrossEntropy, kernels
from keras_logits.objects import fusing

pytestmark = pytest.mark.compiled_fast
BACKEND = keras.config.backend()
WORDS, WIDTH, STEPS, ROWS, BATCH = 37, 8, 5, 12, 4
RNG = np.random.default_rng(0)
X = RNG.integers(1, WORDS, (ROWS, STEPS)) * (RNG.random((ROWS, STEPS)) < 0.8)
Y = (3 * X + np.arange(STEPS)) % WORDS
# Three epochs of 18 batches: to begin one takes as long as many small steps.
EPOCHS, TIMES = 3, 6
layers = keras.layers


@pytest.fixture
def passes(monkeypatch):
    """The calls of the fused pass: one for each trace."""
    calls = []
    whole = kernels._body.weighted_linear

    def spy(formula, *batch):
        calls.append(formula)
        return whole(formula, *batch)

    monkeypatch.setattr(kernels._body, "weighted_linear", spy)
    return calls


# Models


def text():
    return keras.Input((STEPS,), dtype="int32")


def backbone(**options):
    return [layers.Embedding(WORDS, WIDTH, **options), layers.Dense(WIDTH, "tanh")]


def sequential(head=None):
    return keras.Sequential([text(), *backbone(), head or LogitsHead(WORDS)])


def functional():
    inputs = text()
    embedding, dense = backbone()
    return keras.Model(inputs, LogitsHead(WORDS)(dense(embedding(inputs))))


def nested():
    return keras.Sequential([text(), sequential()])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.embedding, self.dense = backbone()
        self.head = LogitsHead(WORDS)

    def call(self, inputs):
        return self.head(self.dense(self.embedding(inputs)))


def two_heads():
    inputs = text()
    embedding, dense = backbone()
    hidden = dense(embedding(inputs))
    outputs = [LogitsHead(WORDS)(hidden), LogitsHead(WORDS, softcap=2.0)(hidden)]
    return keras.Model(inputs, outputs)


def tied():
    inputs = text()
    embedding, dense = backbone()
    hidden = dense(embedding(inputs))
    return keras.Model(inputs, LogitsHead(WORDS, tied_to=embedding)(hidden))


def squashed():
    head = LogitsHead(WORDS, use_bias=False, softcap=3.0, temperature=0.7)
    return sequential(head)


def of_probabilities():
    return sequential(LogitsHead(WORDS, returns="probabilities"))


def frozen():
    return sequential(LogitsHead(WORDS, trainable=False))


def masked():
    embedding, dense = backbone(mask_zero=True)
    return keras.Sequential([text(), embedding, dense, LogitsHead(WORDS)])


def custom():
    """A training step as the guides of Keras write it."""
    inputs = text()
    embedding, dense = backbone()
    outputs = LogitsHead(WORDS)(dense(embedding(inputs)))
    return CUSTOM[BACKEND](inputs, outputs)


class OfTensorFlow(keras.Model):
    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


class OfJax(keras.Model):
    def value(self, trainable, others, x, y):
        y_pred, others = self.stateless_call(trainable, others, x, training=True)
        return self.compute_loss(x, y, y_pred), others

    def train_step(self, state, data):
        import jax

        trainable, others, optimizer, metrics = state
        derive = jax.value_and_grad(self.value, has_aux=True)
        (loss, others), gradients = derive(trainable, others, *data)
        apply = self.optimizer.stateless_apply
        trainable, optimizer = apply(optimizer, gradients, trainable)
        return {"loss": loss}, (trainable, others, optimizer, metrics)


class OfTorch(keras.Model):
    def train_step(self, data):
        import torch

        x, y = data
        self.zero_grad()
        loss = self.compute_loss(x, y, self(x, training=True))
        loss.backward()
        gradients = [v.value.grad for v in self.trainable_weights]
        with torch.no_grad():
            self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}


CUSTOM = {"tensorflow": OfTensorFlow, "jax": OfJax, "torch": OfTorch}
MODELS = {
    "sequential": sequential,
    "functional": functional,
    "nested": nested,
    "subclassed": Subclassed,
    "two heads": two_heads,
    "tied": tied,
    "squashed": squashed,
    "of probabilities": of_probabilities,
    "frozen": frozen,
    "masked": masked,
    "custom": custom,
}
# The default mode is that of all other tests. Without jit JAX takes long.
FEW_STEPS = {"epochs": 1, "steps_per_epoch": 3}
MODES = {
    "tensorflow": {
        "eager": {"run_eagerly": True},
        "graph": {"jit_compile": False},
        "jit": {"jit_compile": True},
    },
    "jax": {"eager": {"run_eagerly": True, "fitting": FEW_STEPS}},
    "torch": {"eager": {"run_eagerly": True}},
}[BACKEND]


# Training


def trained(build, fused, y=Y, fitting=None, options=None, optimizer=None, **compiling):
    """Losses before, while and after 54 steps, and the weights after them."""
    keras.utils.set_random_seed(7)
    model = build()
    budget = budget_for(8, WORDS, WIDTH)  # chunks of 8 tokens, of 20
    heads = len(model.outputs) if hasattr(model, "outputs") else 1
    loss = SoftmaxCrossEntropy(fused=fused, memory_budget=budget, **options or {})
    sgd = optimizer() if optimizer else keras.optimizers.SGD(0.3)
    model.compile(sgd, loss=[loss] * heads if heads > 1 else loss, **compiling)
    many = [np.concatenate([array] * TIMES) for array in (X, *[y] * heads)]
    y = [y] * heads if heads > 1 else y
    defaults = {"batch_size": BATCH, "epochs": EPOCHS, "shuffle": False}
    fitting = {**defaults, **(fitting or {})}
    first = model.evaluate(X, y, batch_size=BATCH, verbose=0)
    history = model.fit(
        many[0], many[1:] if heads > 1 else many[1], verbose=0, **fitting
    )
    last = model.evaluate(X, y, batch_size=BATCH, verbose=0)
    losses = [*np.ravel(first), *history.history["loss"], *np.ravel(last)]
    return losses, {v.path: ops.convert_to_numpy(v) for v in model.weights}


def assert_trained_alike(passes, *args, rtol=1e-4, atol=1e-5, **options):
    losses, weights = trained(*args, fused=True, **options)
    assert passes
    del passes[:]
    plain_losses, plain_weights = trained(*args, fused=False, **options)
    assert not passes
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, plain_losses, rtol=rtol)
    for one, other in zip(weights.values(), plain_weights.values(), strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_trains_alike(passes, model):
    assert_trained_alike(passes, MODELS[model])


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_alike(passes, mode):
    assert_trained_alike(passes, sequential, **MODES[mode])


WAYS = {
    "accumulation": {
        "optimizer": lambda: keras.optimizers.SGD(0.3, gradient_accumulation_steps=2)
    },
    "sample_weight": {
        "fitting": {"sample_weight": np.tile(np.linspace(0, 2, ROWS), TIMES)}
    },
    "ignore_index": {
        "y": np.where(X == 0, -100, Y),
        "options": {"ignore_index": -100},
    },
    "distributions": {"y": np.eye(WORDS, dtype="float32")[Y]},
    "all options": {
        "options": {
            "class_weight": {0: 0.0, 3: 2.0},
            "label_smoothing": 0.1,
            "focal_gamma": 1.0,
            "z_loss": 1e-3,
        },
    },
    "mean": {"options": {"reduction": "sum_over_batch_size"}},
    "a last batch of two rows": {"fitting": {"batch_size": 5}},
}


@pytest.mark.parametrize("way", WAYS)
def test_it_trains_alike_with(passes, way):
    assert_trained_alike(passes, sequential, **WAYS[way])


def test_it_trains_alike_in_mixed_precision(passes):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        # The plain path rounds the kernel's gradient to bfloat16, the fused does not.
        assert_trained_alike(passes, sequential, rtol=2e-3, atol=2e-2)
    finally:
        keras.config.set_dtype_policy("float32")


def test_it_trains_alike_on_batches_of_sizes_that_nobody_knows(passes):
    def batches():
        for _ in range(3):
            for size in (4, 3, 7, 1):
                yield X[:size], Y[:size]

    losses = []
    for fused in (True, False):
        keras.utils.set_random_seed(7)
        model = keras.Sequential(
            [keras.Input((None,), dtype="int32"), *backbone(), LogitsHead(WORDS)]
        )
        model.compile(keras.optimizers.SGD(0.3), loss=SoftmaxCrossEntropy(fused=fused))
        model.fit(batches(), steps_per_epoch=12, shuffle=False, verbose=0)
        losses.append(model.evaluate(X, Y, verbose=0))
        assert bool(passes) == fused
        del passes[:]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_fused_probabilities_are_still_what_metrics_see(passes):
    keras.utils.set_random_seed(7)
    model = of_probabilities()
    loss = SoftmaxCrossEntropy(fused=True)
    metric = keras.metrics.SparseCategoricalCrossentropy(name="watched")
    model.compile(keras.optimizers.SGD(0.3), loss=loss, metrics=[metric])
    found = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert passes
    np.testing.assert_allclose(found["watched"], found["loss"], rtol=1e-5)


# When it is taken

when_compiled = pytest.mark.skipif(BACKEND == "torch", reason="which compiles nothing")


@pytest.fixture
def few_classes(monkeypatch):
    monkeypatch.setattr(fusing, "FUSED_FROM", WORDS)


def compiled(model, **options):
    model.compile(keras.optimizers.SGD(0.3), loss=SoftmaxCrossEntropy(**options))
    return model


@when_compiled
def test_auto_fuses_from_a_number_of_classes_on(passes, monkeypatch):
    for threshold, taken in ((WORDS + 1, False), (WORDS, True)):
        monkeypatch.setattr(fusing, "FUSED_FROM", threshold)
        compiled(sequential()).evaluate(X, Y, verbose=0)
        assert bool(passes) == taken


def test_auto_does_not_fuse_what_is_computed_already(passes, few_classes):
    model = sequential()
    SoftmaxCrossEntropy()(Y, model(X))
    assert not passes
    SoftmaxCrossEntropy(fused=True)(Y, model(X))
    assert passes


def test_few_classes_are_few(passes):
    assert fusing.FUSED_FROM > 1000
    compiled(sequential()).evaluate(X, Y, verbose=0)
    assert not passes


class Distribution:
    """What `keras.distribution.distribution()` gives where there is one."""


OBSTACLES = {
    "axis": (sequential, {"axis": 1}, "axis=1"),
    "dtype": (sequential, {"dtype": "float64"}, "dtype='float64'"),
    "distribution": (sequential, {}, r"a keras\.distribution"),
}
each_obstacle = pytest.mark.parametrize("obstacle", OBSTACLES)


@pytest.fixture
def obstructed(obstacle, monkeypatch):
    build, options, match = OBSTACLES[obstacle]
    if obstacle == "distribution":
        monkeypatch.setattr(keras.distribution, "distribution", Distribution)
    # Labels for classes on the axis of the loss.
    labels = np.zeros((ROWS, WORDS), "int32") if obstacle == "axis" else Y
    return build(), options, labels, match


def traced(function, x):
    """The value of a function, computed in compiled code."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)(x)
    import tensorflow as tf

    return tf.function(function)(tf.constant(x))


@when_compiled
@each_obstacle
def test_auto_runs_plain_behind_an_obstacle_and_says_so_once(
    passes, few_classes, obstacle, obstructed
):
    if (BACKEND, obstacle) == ("jax", "dtype"):
        pytest.skip("float64 is a switch for the process")
    model, options, labels, match = obstructed
    loss = SoftmaxCrossEntropy(**options)
    with pytest.warns(UserWarning, match=match) as warned:
        first = traced(lambda x: loss(labels, model(x)), X)
    assert "fused=False" in str(warned[0].message)
    second = traced(lambda x: loss(labels, model(x)), X)  # warnings are errors
    assert not passes
    plain = SoftmaxCrossEntropy(fused=False, **options)(labels, model(X))
    for value in (first, second):
        np.testing.assert_allclose(value, ops.convert_to_numpy(plain), rtol=1e-5)


@each_obstacle
def test_an_insisting_loss_raises_at_an_obstacle(passes, obstructed):
    model, options, labels, match = obstructed
    with pytest.raises(ValueError, match=rf"fused=True(.|\n)*{match}"):
        SoftmaxCrossEntropy(fused=True, **options)(labels, model(X))
    assert not passes


UNMARKED = {
    "unmarked": (lambda: layers.Dense(WORDS), {"from_logits": True}),
    "probabilities": (lambda: layers.Dense(WORDS, "softmax"), {"from_logits": False}),
    "MarkLogits": (MarkLogits, {}),
}


@pytest.mark.parametrize("case", UNMARKED)
def test_an_insisting_loss_raises_for_scores_of_no_head(case):
    last, options = UNMARKED[case]
    model = keras.Sequential([text(), *backbone(), layers.Dense(WORDS), last()])
    with pytest.raises(ValueError, match="scores that no LogitsHead computed"):
        SoftmaxCrossEntropy(fused=True, **options)(Y, model(X))


@when_compiled
@pytest.mark.parametrize("case", UNMARKED)
def test_auto_runs_plain_for_scores_of_no_head_without_a_word(
    passes, few_classes, case
):
    last, options = UNMARKED[case]
    model = keras.Sequential([text(), *backbone(), layers.Dense(WORDS), last()])
    loss = SoftmaxCrossEntropy(**options)
    traced(lambda x: loss(Y, model(x)), X)  # warnings are errors
    assert not passes


# Configuration


@pytest.mark.parametrize("fused", [True, False, "auto"])
@pytest.mark.parametrize("budget", [None, 2**20])
def test_a_config_holds_what_was_asked_for(fused, budget):
    loss = SoftmaxCrossEntropy(fused=fused, memory_budget=budget)
    config = SoftmaxCrossEntropy.from_config(loss.get_config()).get_config()
    assert (config["fused"], config["memory_budget"]) == (fused, budget)


def test_the_budget_decides_on_the_chunk(passes):
    model = sequential()
    for tokens in (3, 10):
        budget = budget_for(tokens, WORDS, WIDTH)
        SoftmaxCrossEntropy(fused=True, memory_budget=budget)(Y, model(X))
        assert passes[-1].plan.chunk == tokens


BAD = {
    "fused": ["always", None, 1, 0, "True"],
    "memory_budget": [0, -1, 2.0**20, True, "1 GiB"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in BAD for v in BAD[n]])
def test_bad_options_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be.*\\n.*{name}={value!r}"):
        SoftmaxCrossEntropy(**{name: value})
