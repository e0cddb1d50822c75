"""Logits that go to a loss of Keras which takes them for probabilities are reported.

In the first step, once, and nowhere else.
"""

import functools
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import LogitsHead, SoftmaxCrossEntropy

BACKEND = keras.config.backend()
X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
IDS, UNITS = np.arange(8) % 4, (np.arange(32).reshape(8, 4) % 2).astype("float32")
MODES = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "jit": {"jit_compile": True},
}
if BACKEND == "torch":
    MODES = {"eager": {}}
SPARSE = "sparse_categorical_crossentropy"


class Subclassed(keras.Model):
    def __init__(self, last):
        super().__init__()
        self.last = last

    def call(self, inputs):
        return self.last(inputs)


class WithASoftmax(Subclassed):
    def call(self, inputs):
        return ops.softmax(self.last(inputs))


def sequential(*layers):
    return keras.Sequential([keras.Input((3,)), *layers])


def nested(last):
    return sequential(sequential(last))


def told(model, loss, y=IDS, steps=3, **options):
    """What is said of losses in some steps of training."""
    model.compile("sgd", loss=loss, **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(steps):
            model.train_on_batch(X, y)
    return [str(w.message) for w in said if "`loss` expects" in str(w.message)]


def own_loss(y_true, logits):
    one_hot = ops.one_hot(ops.reshape(y_true, (-1,)), 4)
    return -ops.sum(one_hot * ops.log_softmax(logits), axis=-1)


BAD = {
    "a name": SPARSE,
    "a name of a class": "SparseCategoricalCrossentropy",
    "a function": keras.losses.sparse_categorical_crossentropy,
    "an object": keras.losses.SparseCategoricalCrossentropy(),
    "a part of a function": functools.partial(
        keras.losses.sparse_categorical_crossentropy, ignore_class=3
    ),
}


@pytest.mark.parametrize("loss", BAD)
def test_half_a_migration_is_reported_once(loss):
    model = sequential(LogitsHead(4, name="scores"))
    (message,) = told(model, BAD[loss])
    assert "logits of 'scores'" in message
    assert "\nFix: model.compile(..., loss=SoftmaxCrossEntropy())" in message
    assert "compute_loss" not in vars(model)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("build", [nested, Subclassed])
def test_it_is_reported_in_every_mode(build, mode):
    assert len(told(build(LogitsHead(4)), SPARSE, **MODES[mode])) == 1


def test_a_sigmoid_is_told_its_own_loss():
    (message,) = told(
        sequential(LogitsHead(4, "sigmoid")), "binary_crossentropy", UNITS
    )
    assert "\nFix: model.compile(..., loss=SigmoidCrossEntropy())" in message


def test_one_step_of_evaluation_is_enough():
    model = sequential(LogitsHead(4))
    model.compile("sgd", loss=SPARSE)
    with pytest.warns(UserWarning, match="`loss` expects probabilities"):
        model.evaluate(X, IDS, verbose=0)


def test_another_loss_is_judged_anew():
    model = sequential(LogitsHead(4))
    assert told(model, SoftmaxCrossEntropy()) == []
    assert len(told(model, SPARSE)) == 1


def of_two_heads(losses):
    inputs = keras.Input((3,))
    outputs = [LogitsHead(4, name=name)(inputs) for name in ("one", "other")]
    return told(keras.Model(inputs, outputs), losses, [IDS, IDS])


@pytest.mark.parametrize(
    "losses",
    [
        {"one": SoftmaxCrossEntropy(), "other": SPARSE},
        [SoftmaxCrossEntropy(), SPARSE],
    ],
    ids=["dict", "list"],
)
def test_of_two_heads_that_with_the_bad_loss_is_named(losses):
    (message,) = of_two_heads(losses)
    assert "logits of 'other'" in message


GOOD = {
    "ours": ([LogitsHead], SoftmaxCrossEntropy),
    "from_logits": (
        [LogitsHead],
        lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    ),
    "a function that is told": (
        [LogitsHead],
        lambda: functools.partial(
            keras.losses.sparse_categorical_crossentropy, from_logits=True
        ),
    ),
    "a function of the user": ([LogitsHead], lambda: own_loss),
    "probabilities": (
        [functools.partial(LogitsHead, returns="probabilities")],
        lambda: SPARSE,
    ),
    "a layer after the head": (
        [LogitsHead, lambda _: keras.layers.Softmax()],
        lambda: SPARSE,
    ),
    "another last layer": (
        [lambda _: keras.layers.Dense(4, "softmax")],
        lambda: SPARSE,
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_is_right_is_not_reported(case):
    layers, loss = GOOD[case]
    assert told(sequential(*(layer(4) for layer in layers)), loss()) == []


def test_a_softmax_inside_of_the_model_is_right():
    assert told(WithASoftmax(LogitsHead(4)), SPARSE) == []


def test_a_head_beside_the_output_is_right():
    inputs = keras.Input((3,))
    outputs = [
        LogitsHead(4, name="logits")(inputs),
        keras.layers.Dense(4, "softmax", name="chances")(inputs),
    ]
    losses = [SoftmaxCrossEntropy(), SPARSE]
    assert told(keras.Model(inputs, outputs), losses, [IDS, IDS]) == []


def test_a_models_own_compute_loss_stays():
    calls = []

    class Own(keras.Sequential):
        def compute_loss(self, *args, **kwargs):
            calls.append("own")
            return super().compute_loss(*args, **kwargs)

    model = Own([keras.Input((3,)), LogitsHead(4)])
    assert len(told(model, SPARSE, run_eagerly=True)) == 1
    assert len(calls) >= 3


# A loss that is a metric, too


@pytest.mark.skipif(BACKEND == "jax", reason="whose metrics see no marks")
def test_a_loss_that_is_a_metric_too_fills_reports_once():
    labels = np.where(np.arange(8) < 3, -1, IDS)
    model = sequential(LogitsHead(4, name="head", reports=("invalid_labels",)))
    model.compile("sgd", loss=SoftmaxCrossEntropy(), metrics=[SoftmaxCrossEntropy()])
    if BACKEND == "torch":  # which raises where a label is bad, and nothing compiles
        good = model.evaluate(X, IDS, verbose=0, return_dict=True)
        assert good["head_invalid_labels"] == 0
        return
    found = model.evaluate(X, labels, verbose=0, return_dict=True)
    assert found["head_invalid_labels"] == 3


def test_reports_are_filled_once_for_each_batch():
    head = LogitsHead(4, name="head", reports=("accuracy",))
    loss = SoftmaxCrossEntropy()
    logits = head(X)
    tracker = head._trackers[0]
    loss(IDS, logits)
    loss(IDS, logits)
    assert float(ops.convert_to_numpy(tracker.count)) == len(X)
    loss(IDS, head(X))
    assert float(ops.convert_to_numpy(tracker.count)) == 2 * len(X)


@pytest.mark.skipif(BACKEND != "jax", reason="elsewhere metrics see the mark")
def test_on_jax_a_loss_as_a_metric_says_why_it_cannot_be():
    model = sequential(LogitsHead(4))
    model.compile("sgd", loss=SoftmaxCrossEntropy(), metrics=[SoftmaxCrossEntropy()])
    with pytest.raises(ValueError, match="in a metric on JAX"):
        model.train_on_batch(X, IDS)
