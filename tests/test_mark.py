"""The mark reaches the loss through every model and every way to train it.

Where it does not reach, nothing is guessed: the loss refuses the tensor.
"""

import copy
import gc
import pickle
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import (
    LogitsHead,
    MarkLogits,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
)
from keras_logits._keras_private import get_keras_mask, in_symbolic_scope
from keras_logits.provenance import Mark, mark, origin_of

pytestmark = pytest.mark.compiled_fast
BACKEND = keras.config.backend()
CLASSES, FEATURES = 4, 3
X = np.random.default_rng(0).normal(size=(8, FEATURES)).astype("float32")
Y = np.arange(8) % CLASSES

MODES = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "jit": {"jit_compile": True},
}
if BACKEND == "torch":  # has one way to run; test_mark_torch.py tries to compile it
    MODES = {"eager": {}}


class Watched(SoftmaxCrossEntropy):
    """The loss, with a note of the layers that marked what it was computed from."""

    def __init__(self, **options):
        super().__init__(**options)
        self.heads = []

    def __call__(self, y_true, y_pred, sample_weight=None):
        if not in_symbolic_scope():  # the build before training has no marks to see
            found = origin_of(y_pred)
            self.heads.append(found and found.head)
        return super().__call__(y_true, y_pred, sample_weight)


def sequential(last):
    return keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(5), last])


def functional(last):
    inputs = keras.Input((FEATURES,))
    return keras.Model(inputs, last(keras.layers.Dense(5)(inputs)))


def nested(last):
    return keras.Sequential([keras.Input((FEATURES,)), functional(last)])


class Subclassed(keras.Model):
    def __init__(self, last):
        super().__init__()
        self.dense, self.last = keras.layers.Dense(5), last

    def call(self, inputs):
        return self.last(self.dense(inputs))


def two_outputs(structure):
    def build(last):
        inputs = keras.Input((FEATURES,))
        hidden = keras.layers.Dense(5)(inputs)
        return keras.Model(inputs, structure(last(hidden), LogitsHead(2)(hidden)))

    build.__name__ = f"{structure.__name__}_output"
    return build


def as_tuple(*outputs):
    return outputs


def as_list(*outputs):
    return list(outputs)


def as_dict(first, second):
    return {"first": first, "second": second}


KINDS = [
    sequential,
    functional,
    nested,
    Subclassed,
    *map(two_outputs, (as_tuple, as_list, as_dict)),
]


def run_eagerly(step, *arguments):
    step(*arguments)


def run_traced(step, *arguments):
    """Runs the Python code of a step as it is run to compile it."""
    arguments = [ops.convert_to_tensor(argument) for argument in arguments]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.function(step).get_concrete_function(*arguments)
    else:
        import jax

        jax.make_jaxpr(step)(*arguments)


RUNS = [run_eagerly] if BACKEND == "torch" else [run_eagerly, run_traced]


def compiled(model, loss=None, optimizer="sgd", **options):
    model.compile(optimizer, loss=loss or Watched(), **options)
    return model


def gradients(model, loss, x, y):
    """The gradients of a custom training loop, by the backend's own means."""
    variables = model.trainable_variables
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        found = tape.gradient(value, [v.value for v in variables])
    elif BACKEND == "jax":
        import jax

        def value_of(values):
            rest = [v.value for v in model.non_trainable_variables]
            return loss(y, model.stateless_call(values, rest, x, training=True)[0])

        found = jax.grad(value_of)([v.value for v in variables])
    else:
        model.zero_grad()
        loss(y, model(ops.convert_to_tensor(x), training=True)).backward()
        found = [v.value.grad for v in variables]
    return [ops.convert_to_numpy(gradient) for gradient in found]


# Models


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("build", KINDS, ids=lambda build: build.__name__)
def test_the_mark_comes_out_of_the_model(build, run):
    head, loss = LogitsHead(CLASSES), Watched()
    model = build(head)
    model(X)  # TensorFlow traces twice what makes variables

    def step(x, y):
        return loss(y, keras.tree.flatten(model(x))[0])

    run(step, X, Y)
    assert loss.heads == [head]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("build", KINDS, ids=lambda build: build.__name__)
def test_without_a_head_the_loss_refuses_the_model(build, run):
    loss = SoftmaxCrossEntropy()
    model = build(keras.layers.Dense(CLASSES))

    def step(x, y):
        return loss(y, keras.tree.flatten(model(x))[0])

    with pytest.raises(ValueError, match="must be marked as logits"):
        run(step, X, Y)


@pytest.mark.parametrize("structure", [as_tuple, as_list, as_dict])
def test_several_outputs_are_trained_each_on_its_own_mark(structure):
    first, losses = LogitsHead(CLASSES, name="first"), [Watched(), Watched()]
    inputs = keras.Input((FEATURES,))
    second = LogitsHead(2, name="second")
    model = keras.Model(inputs, structure(first(inputs), second(inputs)))
    compiled(model, structure(*losses), run_eagerly=BACKEND == "tensorflow")
    model.train_on_batch(X, structure(Y, Y % 2))
    assert [loss.heads[-1] for loss in losses] == [first, second]


def test_one_head_on_two_inputs_makes_two_marks():
    head = LogitsHead(CLASSES)
    one, other = ops.convert_to_tensor(X), ops.convert_to_tensor(-X)
    logits = head(one), head(other)
    assert origin_of(logits[0]).features is one
    assert origin_of(logits[1]).features is other


def test_one_head_on_two_inputs_is_trained_on_both():
    head, losses = LogitsHead(CLASSES), [Watched(), Watched()]
    inputs = [keras.Input((FEATURES,)), keras.Input((FEATURES,))]
    model = keras.Model(inputs, [head(x) for x in inputs])
    compiled(model, losses, run_eagerly=BACKEND == "tensorflow")
    model.train_on_batch([X, -X], [Y, Y])
    assert [loss.heads[-1] for loss in losses] == [head, head]


# Ways to train


@pytest.mark.parametrize("mode", MODES)
def test_fit_and_evaluate_read_the_mark(mode):
    head, loss = LogitsHead(CLASSES), Watched()
    model = compiled(sequential(head), loss, **MODES[mode])
    model.fit(X, Y, batch_size=4, verbose=0)
    trained = len(loss.heads)
    model.evaluate(X, Y, verbose=0)
    assert len(loss.heads) > trained > 0
    assert set(loss.heads) == {head}


@pytest.mark.parametrize("mode", MODES)
def test_fit_and_evaluate_refuse_a_model_without_a_mark(mode):
    for train in ("fit", "evaluate"):
        model = sequential(keras.layers.Dense(CLASSES))
        compiled(model, SoftmaxCrossEntropy(), **MODES[mode])
        with pytest.raises(ValueError, match="must be marked as logits"):
            getattr(model, train)(X, Y, verbose=0)


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_batches_of_a_custom_loop_read_the_mark(returns):
    head, loss = LogitsHead(CLASSES, returns=returns), Watched()
    model = sequential(head)
    moved = gradients(model, loss, X, Y)
    assert loss.heads == [head]
    assert all(np.abs(gradient).max() > 0 for gradient in moved)


def test_train_on_batch_and_test_on_batch_read_the_mark():
    head, loss = LogitsHead(CLASSES), Watched()
    model = compiled(sequential(head), loss)
    model.train_on_batch(X, Y)
    trained = len(loss.heads)
    model.test_on_batch(X, Y)
    assert len(loss.heads) > trained > 0
    assert set(loss.heads) == {head}


WAYS = {
    "steps_per_execution": ({"steps_per_execution": 2}, {"batch_size": 2}),
    "class_weight": ({}, {"class_weight": {0: 2.0, 1: 1.0, 2: 0.5, 3: 1.0}}),
    "sample_weight": ({}, {"sample_weight": np.linspace(0, 1, len(X))}),
    "accumulation": (
        {"optimizer": keras.optimizers.SGD(gradient_accumulation_steps=2)},
        {"batch_size": 2},
    ),
}


if BACKEND == "torch":  # where Keras refuses it
    del WAYS["steps_per_execution"]


@pytest.mark.parametrize("way", WAYS)
def test_the_mark_is_read_under(way):
    compiling, fitting = WAYS[way]
    head, loss = LogitsHead(CLASSES), Watched()
    model = compiled(sequential(head), loss, **compiling)
    model.fit(X, Y, verbose=0, **fitting)
    assert set(loss.heads) == {head}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_the_mark_is_read_in_mixed_precision(policy):
    head, loss = LogitsHead(CLASSES, dtype=policy), Watched()
    layers = [keras.Input((FEATURES,)), keras.layers.Dense(5, dtype=policy), head]
    model = keras.Sequential(layers)
    optimizer = keras.optimizers.SGD()
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    compiled(model, loss, optimizer, run_eagerly=BACKEND == "tensorflow")
    model.fit(X, Y, verbose=0)
    assert set(loss.heads) == {head}


def test_batches_of_different_sizes_read_the_mark():
    def batches():
        for size in (4, 8, 5):
            yield X[:size], Y[:size]

    head, loss = LogitsHead(CLASSES), Watched()
    model = compiled(sequential(head), loss)
    model.fit(batches(), steps_per_epoch=3, shuffle=False, verbose=0)
    assert set(loss.heads) == {head}


# Models that come from other models


def test_a_cloned_model_marks_its_own_output():
    model = functional(LogitsHead(CLASSES))
    clone = keras.models.clone_model(model)
    assert origin_of(clone(X)).head is clone.layers[-1]


def test_a_loaded_model_marks_its_own_output(tmp_path):
    functional(LogitsHead(CLASSES)).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert origin_of(loaded(X)).head is loaded.layers[-1]


def test_a_model_that_is_compiled_again_reads_the_mark_again():
    head, losses = LogitsHead(CLASSES), [Watched(), Watched()]
    model = sequential(head)
    for loss in losses:
        compiled(model, loss, run_eagerly=BACKEND == "tensorflow").fit(X, Y, verbose=0)
        assert set(loss.heads) == {head}


# Rematerialisation


def rematerialised(returns, mode="full", **options):
    with keras.RematScope(mode=mode, **options):
        return LogitsHead(CLASSES, returns=returns, name="head")


REMATS = {
    "full": {},
    "activations": {},
    "list_of_layers": {"layer_names": ["head"]},
    "larger_than": {"output_size_threshold": 1},
}


@pytest.mark.parametrize("mode", REMATS)
@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_a_rematerialised_head_marks_with_the_callers_features(returns, mode):
    head = rematerialised(returns, mode, **REMATS[mode])
    features = ops.convert_to_tensor(X)
    found = origin_of(head(features))
    assert found.head is head
    assert found.features is features


@pytest.mark.parametrize("mode", REMATS)
@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_a_rematerialised_head_has_the_gradients_of_one_that_is_not(returns, mode):
    plain = sequential(LogitsHead(CLASSES, returns=returns))
    again = sequential(rematerialised(returns, mode, **REMATS[mode]))
    again.set_weights(plain.get_weights())
    loss = SoftmaxCrossEntropy()
    expected, found = (gradients(model, loss, X, Y) for model in (plain, again))
    for one, other in zip(expected, found, strict=True):
        # The same operations on the same numbers, run twice.
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_a_rematerialised_head_is_trained_in_a_compiled_step(returns):
    head, loss = rematerialised(returns), Watched()
    compiled(sequential(head), loss).fit(X, Y, verbose=0)
    assert set(loss.heads) == {head}


# Layers after the head


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    "layer",
    [keras.layers.Identity(), keras.layers.Activation("linear")],
    ids=["Identity", "linear"],
)
def test_a_layer_that_returns_its_input_keeps_the_mark(layer, run):
    head, loss = LogitsHead(CLASSES), Watched()
    head.build(X.shape)

    def step(x, y):
        return loss(y, layer(head(x)))

    run(step, X, Y)
    assert loss.heads == [head]


NEW_TENSORS = {
    "scaled": lambda: keras.layers.Rescaling(2.0),
    "reshaped": lambda: keras.layers.Reshape((2, CLASSES // 2)),
    "softmax": keras.layers.Softmax,
    "cast": lambda: keras.layers.Lambda(lambda z: ops.cast(z, "float16")),
    "sliced": lambda: keras.layers.Lambda(lambda z: z[:, :2]),
    "joined": lambda: keras.layers.Lambda(lambda z: ops.concatenate([z, z], axis=0)),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("layer", NEW_TENSORS)
def test_a_layer_that_makes_a_new_tensor_drops_the_mark(layer, run):
    head, after, found = LogitsHead(CLASSES), NEW_TENSORS[layer](), []
    head.build(X.shape)

    def step(x):
        found.append(origin_of(after(head(x))))
        return x

    run(step, X)
    assert found == [None]


# MarkLogits


@pytest.mark.parametrize("run", RUNS)
def test_marklogits_makes_a_new_tensor(run):
    inner, outer, found = LogitsHead(CLASSES), MarkLogits("sigmoid"), []
    inner.build(X.shape)

    def step(x):
        logits = inner(x)
        again = outer(logits)
        found.extend([again is logits, origin_of(logits), origin_of(again)])
        return again

    run(step, X)
    same, first, second = found
    assert not same
    assert (first.activation, second.activation) == ("softmax", "sigmoid")


def test_two_marks_of_one_model_are_trained_side_by_side():
    scores = keras.layers.Dense(CLASSES)
    inputs = keras.Input((FEATURES,))
    hidden = scores(inputs)
    one_of, any_of = MarkLogits("softmax"), MarkLogits("sigmoid")
    model = keras.Model(inputs, [one_of(hidden), any_of(hidden)])
    losses = [SoftmaxCrossEntropy(), SigmoidCrossEntropy()]
    compiled(model, losses, run_eagerly=BACKEND == "tensorflow")
    before = ops.convert_to_numpy(scores.kernel)
    model.train_on_batch(X, [Y, np.eye(CLASSES)[Y]])
    moved = ops.convert_to_numpy(scores.kernel) - before
    assert np.isfinite(moved).all()
    assert moved.any()


def test_marklogits_keeps_values_and_dtype():
    scores = ops.convert_to_tensor(X)
    marked = MarkLogits()(scores)
    np.testing.assert_array_equal(ops.convert_to_numpy(marked), X)
    assert marked.dtype == scores.dtype


# Keras masks


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_a_keras_mask_passes_through_the_head(returns):
    ids = np.array([[1, 2, 0], [3, 0, 0]])
    embedding = keras.layers.Embedding(5, FEATURES, mask_zero=True)
    model = keras.Sequential([embedding, LogitsHead(CLASSES, returns=returns)])
    outputs = model(ids)
    mask = ops.convert_to_numpy(get_keras_mask(outputs))
    np.testing.assert_array_equal(mask, ids != 0)

    # A label that no class has is no error where the mask hides it.
    labels = np.where(ids != 0, 1, -1)
    loss = SoftmaxCrossEntropy()(labels, outputs)
    assert np.isfinite(ops.convert_to_numpy(loss))


def test_a_keras_mask_passes_through_marklogits():
    ids = np.array([[1, 2, 0], [3, 0, 0]])
    embedding = keras.layers.Embedding(5, CLASSES, mask_zero=True)
    outputs = MarkLogits()(embedding(ids))
    mask = ops.convert_to_numpy(get_keras_mask(outputs))
    np.testing.assert_array_equal(mask, ids != 0)


# Where the mark does not reach


def after_a_new_tensor():
    return keras.Sequential([LogitsHead(CLASSES), keras.layers.Rescaling(2.0)])(X)


def inside_time_distributed():
    return keras.layers.TimeDistributed(LogitsHead(CLASSES))(X[:, None])


def out_of_predict():
    return sequential(LogitsHead(CLASSES)).predict(X, verbose=0)


def under_a_remat_scope_of_the_whole_model():
    with keras.RematScope(mode="full"):
        model = Subclassed(LogitsHead(CLASSES))
        model.dense.build((None, FEATURES))
        model.last.build((None, 5))
        return model(X)


def out_of_a_forward_pass_compiled_apart():
    model = sequential(LogitsHead(CLASSES))
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(model)(X)
    import jax

    trainable = [v.value for v in model.trainable_variables]
    return jax.jit(lambda x: model.stateless_call(trainable, [], x)[0])(X)


OUT_OF_REACH = {
    "a layer after it, such as Softmax or Reshape": after_a_new_tensor,
    "TimeDistributed around it": inside_time_distributed,
    r"predict\(\), whose output is never marked": out_of_predict,
    "a RematScope around the whole model": under_a_remat_scope_of_the_whole_model,
    "a model compiled apart from the loss": out_of_a_forward_pass_compiled_apart,
}
if BACKEND == "torch":  # which hands on the very tensor in these
    del OUT_OF_REACH["a RematScope around the whole model"]
    del OUT_OF_REACH["a model compiled apart from the loss"]


@pytest.mark.parametrize("cause", OUT_OF_REACH)
def test_an_absent_mark_is_an_error_that_names_its_cause(cause):
    outputs = OUT_OF_REACH[cause]()
    assert origin_of(outputs) is None
    labels = np.zeros(outputs.shape[:-1], "int32")
    with pytest.raises(ValueError, match=rf"\n- {cause}"):
        SoftmaxCrossEntropy()(labels, outputs)


@pytest.mark.parametrize("last", [LogitsHead, keras.layers.Dense])
def test_the_symbolic_build_lets_any_output_pass(last):
    """Keras runs it before training, on some backends without marks."""
    model = sequential(last(CLASSES))
    labels = keras.KerasTensor((None,), dtype="int32")
    loss = SoftmaxCrossEntropy()
    built = keras.src.backend.compute_output_spec(
        lambda x, y: loss(y, model(x)), keras.KerasTensor((None, FEATURES)), labels
    )
    assert built.shape == ()


# What a mark is


def test_a_mark_reads_as_what_is_known():
    one_of = LogitsHead(CLASSES, name="out")
    any_of = LogitsHead(CLASSES, "sigmoid", returns="probabilities", name="out")
    logits, chances = origin_of(one_of(X)), origin_of(any_of(X))
    assert repr(logits) == "Mark(logits of a softmax, from 'out')"
    assert repr(chances) == "Mark(probabilities of a sigmoid, from 'out')"
    assert repr(Mark("softmax")) == "Mark(logits of a softmax)"


def test_a_mark_is_immutable():
    with pytest.raises(AttributeError):
        Mark("softmax").activation = "sigmoid"


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda mark: pickle.loads(pickle.dumps(mark))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_mark_is_copied_as_none(copied):
    assert copied(origin_of(LogitsHead(CLASSES)(X))) is None


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda mark: pickle.loads(pickle.dumps(mark))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_a_marked_tensor_has_the_values_and_no_mark(copied):
    values = ops.convert_to_tensor(X)
    mark(values, Mark("softmax"))
    again = copied(values)
    np.testing.assert_array_equal(ops.convert_to_numpy(again), X)
    assert again is values or origin_of(again) is None


def test_an_unmarked_tensor_has_no_mark():
    assert origin_of(ops.convert_to_tensor(X)) is None
    assert origin_of(X) is None
    assert origin_of([1.0, 2.0]) is None


# Lifetime


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_a_marked_tensor_frees_what_its_mark_holds(returns):
    head = LogitsHead(CLASSES, returns=returns)
    features = ops.convert_to_tensor(X)
    outputs = head(features)
    logits = origin_of(outputs).logits
    watched = [weakref.ref(features), weakref.ref(outputs)]
    if logits is not None:
        watched.append(weakref.ref(logits))
    del features, outputs, logits
    gc.collect()
    assert [reference() for reference in watched] == [None] * len(watched)


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
@pytest.mark.skipif(BACKEND == "torch", reason="torch traces nothing")
def test_a_traced_step_frees_what_its_marks_hold(returns):
    head, watched = LogitsHead(CLASSES, returns=returns), []
    head.build(X.shape)

    def trace():
        def step(x):
            features = ops.tanh(x)
            outputs = head(features)
            assert origin_of(outputs).features is features
            watched.extend([weakref.ref(features), weakref.ref(outputs)])
            return ops.sum(outputs)

        run_traced(step, X)

    trace()
    gc.collect()
    assert len(watched) == 2
    assert [reference() for reference in watched] == [None, None]


def test_a_mark_does_not_keep_the_head():
    """Nor the weights: TensorFlow never frees a graph with a custom gradient."""
    head = LogitsHead(CLASSES)
    outputs, watched = head(X), weakref.ref(head)
    assert origin_of(outputs).head is head
    del head
    gc.collect()
    assert watched() is None
    assert origin_of(outputs).head is None
    assert origin_of(outputs).activation == "softmax"
