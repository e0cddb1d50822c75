"""A model trains alike whether its loss is fused or not, however it is trained."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import LogitsHead, MarkLogits, SoftmaxCrossEntropy, kernels
from keras_logits.kernels import plan
from keras_logits.objects import fusing

BACKEND = keras.config.backend()
WORDS, WIDTH, STEPS, ROWS, BATCH = 37, 8, 5, 14, 4  # the last batch has two rows
RNG = np.random.default_rng(0)
X = RNG.integers(1, WORDS, (ROWS, STEPS)) * (RNG.random((ROWS, STEPS)) < 0.8)
Y = (3 * X + np.arange(STEPS)) % WORDS
EPOCHS = 13  # of four batches: 52 steps
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
MODES = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "jit": {"jit_compile": True},
}
if BACKEND == "torch":  # which has one way to run
    MODES = {}


# Training


def trained(build, fused, y=Y, fitting=None, options=None, **compiling):
    """Losses before, while and after 52 steps, and the weights after them."""
    keras.utils.set_random_seed(7)
    model = build()
    budget = 8 * plan.BUFFERS * plan.FLOAT * WORDS  # chunks of 8 tokens, of 20
    heads = len(model.outputs) if hasattr(model, "outputs") else 1
    loss = SoftmaxCrossEntropy(fused=fused, memory_budget=budget, **options or {})
    compiling = {"optimizer": keras.optimizers.SGD(0.3), **compiling}
    model.compile(loss=[loss] * heads if heads > 1 else loss, **compiling)
    y = [y] * heads if heads > 1 else y
    fitting = {"batch_size": BATCH, "epochs": EPOCHS, "shuffle": False} | (
        fitting or {}
    )
    first = model.evaluate(X, y, batch_size=5, verbose=0)
    history = model.fit(X, y, verbose=0, **fitting)
    last = model.evaluate(X, y, batch_size=5, verbose=0)
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
    "sample_weight": {"fitting": {"sample_weight": np.linspace(0, 2, ROWS)}},
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
}


@pytest.mark.parametrize("way", WAYS)
def test_it_trains_alike_with(passes, way):
    options = {
        name: given() if callable(given) else given for name, given in WAYS[way].items()
    }
    assert_trained_alike(passes, sequential, **options)
