"""A fused loss gives the loss of the tensor at hand, or an error: one test a kind.

`hostile/` draws such cases at random. Here each has its own words.
"""

import copy
import threading

import keras
import numpy as np
import pytest
from keras import ops

from keras_logits import LogitsHead, SoftmaxCrossEntropy
from keras_logits.objects import fusing
from keras_logits.provenance import origin_of

BACKEND = keras.config.backend()
ROWS, WIDTH, CLASSES = 5, 3, 7
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, WIDTH)).astype("float32")
Y = RNG.integers(0, CLASSES, ROWS)
OTHER = RNG.normal(size=(WIDTH, CLASSES)).astype("float32")

on_torch = pytest.mark.skipif(BACKEND != "torch", reason="others never change tensors")
compiles = pytest.mark.filterwarnings("ignore")  # which torch does of its own code
insists = pytest.mark.parametrize("fused", [True, "auto"])
if BACKEND == "torch":
    import torch


@pytest.fixture(autouse=True)
def every_size_is_fused(monkeypatch):
    monkeypatch.setattr(fusing, "FUSED_FROM", 1)


def new_head(**options):
    head = LogitsHead(CLASSES, **options)
    head.build((None, WIDTH))
    return head


def right_loss(logits):
    z = ops.convert_to_numpy(ops.cast(logits, "float32")).astype("float64")
    return np.mean(np.logaddexp.reduce(z, -1) - z[np.arange(ROWS), Y])


def assert_right(loss, logits, rtol=1e-5):
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.stop_gradient(loss)),
        right_loss(ops.stop_gradient(logits)),
        rtol=rtol,
    )


# Eager code, on every backend


@insists
def test_a_kernel_that_is_assigned_changes_nothing_or_is_refused(fused):
    head = new_head(use_bias=False)
    logits = head(np.where(np.arange(ROWS)[:, None] == 0, 0.0, X))
    head.kernel.assign(head.kernel * 2.0)
    if BACKEND == "torch" and fused is True:
        with pytest.raises(ValueError, match="weights that were changed in place"):
            SoftmaxCrossEntropy(fused=fused)(Y, logits)
    else:
        assert_right(SoftmaxCrossEntropy(fused=fused)(Y, logits), logits)


@insists
def test_weights_of_a_stateless_call_are_those_of_the_loss(fused):
    model = keras.Sequential([keras.Input((WIDTH,)), LogitsHead(CLASSES)])
    given = [ops.convert_to_tensor(OTHER), ops.ones(CLASSES)]
    if BACKEND == "torch":
        given = [values.requires_grad_() for values in given]
    logits, _ = model.stateless_call(given, [], X)
    loss = SoftmaxCrossEntropy(fused=fused)(Y, logits)
    assert_right(loss, ops.convert_to_tensor(X @ OTHER + 1.0))
    if BACKEND == "torch":
        loss.backward()
        assert all(float(values.grad.abs().max()) > 0 for values in given)
        assert model.layers[0].kernel.value.grad is None


def in_half_precision():
    return new_head(dtype="mixed_bfloat16")


def in_int8():
    embedding = keras.layers.Embedding(CLASSES, WIDTH, embeddings_initializer="normal")
    embedding.build(None)
    embedding.quantize("int8")
    return new_head(tied_to=embedding)


def with_lora():
    embedding = keras.layers.Embedding(CLASSES, WIDTH)
    embedding.build(None)
    embedding.enable_lora(2)
    embedding.lora_embeddings_b.assign(np.ones((2, WIDTH), "float32"))
    return new_head(tied_to=embedding)


@pytest.mark.parametrize("build", [in_half_precision, in_int8, with_lora])
def test_a_kernel_that_is_not_what_the_variable_holds_is_no_change(build):
    logits = build()(100 * X)
    assert_right(SoftmaxCrossEntropy(fused=True)(Y, logits), logits)


def test_features_that_share_memory_may_change():
    memory = X.copy()
    features = torch.from_numpy(memory) if BACKEND == "torch" else memory
    head = new_head()
    logits = head(features)
    expected = right_loss(ops.stop_gradient(logits))
    memory[1:] = 0.0
    found = SoftmaxCrossEntropy(fused=True)(Y, logits)
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.stop_gradient(found)), expected, rtol=1e-5
    )


def test_a_head_that_changes_what_it_is_given_says_so_on_its_tensor():
    class OfTwice(LogitsHead):
        def call(self, inputs, returns=None):
            return super().call(inputs * 2.0, returns)

    head = OfTwice(CLASSES)
    logits = head(X)
    np.testing.assert_allclose(ops.convert_to_numpy(origin_of(logits).features), 2 * X)
    assert_right(SoftmaxCrossEntropy(fused=True)(Y, logits), logits)


def test_a_head_with_a_way_of_its_own_is_not_computed_again():
    class Tripled(LogitsHead):
        def call(self, inputs, returns=None):
            return super().call(inputs, returns) * 3.0

    logits = Tripled(CLASSES)(X)
    assert_right(SoftmaxCrossEntropy()(Y, logits), logits)
    with pytest.raises(ValueError, match="in its own way"):
        SoftmaxCrossEntropy(fused=True)(Y, logits)


def test_a_mark_from_another_thread_is_that_of_its_tensor():
    head, made = new_head(), []
    thread = threading.Thread(target=lambda: made.append(head(X)))
    thread.start()
    thread.join()
    assert origin_of(made[0]).head is head
    assert_right(SoftmaxCrossEntropy(fused=True)(Y, made[0]), made[0])


@pytest.mark.skipif(BACKEND == "jax", reason="derives in traces alone")
def test_logits_without_a_gradient_have_a_loss_without_one():
    head = new_head()
    if BACKEND == "torch":
        with torch.no_grad():
            logits = head(torch.tensor(X, requires_grad=True))
        assert not SoftmaxCrossEntropy(fused=True)(Y, logits).requires_grad
        return
    import tensorflow as tf

    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        with tape.stop_recording():
            logits = head(x)
        loss = SoftmaxCrossEntropy(fused=True)(Y, logits)
    assert tape.gradient(loss, [x, head.kernel.value]) == [None, None]


# Traces of TensorFlow and JAX


@pytest.mark.skipif(BACKEND != "tensorflow", reason="closes over eager tensors")
@insists
def test_logits_from_outside_of_a_graph_are_not_made_again_in_it(fused):
    import tensorflow as tf

    head, loss = new_head(), SoftmaxCrossEntropy(fused=fused)
    logits = head(X)
    step = tf.function(lambda: loss(Y, logits), autograph=False)
    head.kernel.assign(head.kernel * 3.0)
    assert_right(step(), logits)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="assigns in a graph")
def test_a_kernel_that_is_assigned_in_a_graph_is_that_of_the_call():
    import tensorflow as tf

    head, loss = new_head(), SoftmaxCrossEntropy()

    @tf.function(autograph=False)
    def step(x):
        logits = head(x)
        head.kernel.assign(head.kernel * 3.0)
        return loss(Y, logits), logits

    assert_right(*step(tf.constant(X)))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras leaves variables watched")
def test_a_frozen_kernel_costs_no_product(monkeypatch):
    import tensorflow as tf

    from keras_logits import kernels

    wanted, whole = [], kernels._body._compiled_pass
    monkeypatch.setattr(
        kernels._body,
        "_compiled_pass",
        lambda formula, want: wanted.append(want) or whole(formula, want),
    )
    head, loss = new_head(), SoftmaxCrossEntropy()
    head.trainable = False
    dense = keras.layers.Dense(WIDTH)
    dense.build((None, WIDTH))

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            value = loss(Y, head(dense(x)))
        return tape.gradient(value, dense.kernel.value)

    assert float(tf.reduce_max(tf.abs(step(tf.constant(X))))) > 0
    assert wanted[0] == (True, False, False)


# torch, in eager code


def changed(name):
    def change(thing):
        with torch.no_grad():
            {
                "part": lambda: thing[:, 4:].fill_(-9.0),
                "view": lambda: thing.view(-1)[::2].add_(1.0),
                "whole": lambda: thing.mul_(3.0),
                "uncounted": lambda: thing.data.mul_(3.0),
            }[name]()

    return change


@on_torch
@pytest.mark.parametrize("what", ["features", "kernel"])
def test_a_counted_change_of_an_operand_is_refused(what):
    head, x = new_head(), torch.tensor(X)
    logits = head(x)
    changed("view")(x if what == "features" else head.kernel.value)
    assert_right(SoftmaxCrossEntropy()(Y, logits), logits)
    with pytest.raises(ValueError, match="changed in place after the head made"):
        SoftmaxCrossEntropy(fused=True)(Y, logits)


@on_torch
@pytest.mark.parametrize("what", ["features", "kernel", "logits"])
def test_a_change_that_nothing_counts_leaves_the_tensor_at_hand(what):
    head, x = new_head(), torch.tensor(X)
    logits = head(x)
    things = {"features": x, "kernel": head.kernel.value, "logits": logits}
    changed("uncounted")(things[what])
    assert_right(SoftmaxCrossEntropy(fused=True)(Y, logits), logits)


@on_torch
@pytest.mark.parametrize("see", ["hook", "retain_grad"])
def test_a_gradient_by_logits_that_is_seen_is_computed(see):
    logits = new_head()(X)
    seen = []
    if see == "hook":
        logits.register_hook(seen.append)
    else:
        logits.retain_grad()
    with pytest.raises(ValueError, match="whose gradient is requested"):
        SoftmaxCrossEntropy(fused=True)(Y, logits)
    SoftmaxCrossEntropy()(Y, logits).backward()
    assert (logits.grad if see == "retain_grad" else seen[0]) is not None


@on_torch
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_probabilities_that_changed_unseen_are_refused(mode):
    head = new_head(returns="probabilities")
    with getattr(torch, mode)():
        chances = head(X)
        chances.data.mul_(0.5)
        with pytest.raises(ValueError, match="no longer holds the probabilities"):
            SoftmaxCrossEntropy()(Y, chances)


@on_torch
def test_a_copied_object_is_another_tensor():
    logits = new_head()(X)
    assert origin_of(copy.copy(logits.detach())) is None


# torch, compiled


def compiled(step, **options):
    torch._dynamo.reset()
    return torch.compile(step, backend="eager", **options)


@compiles
@on_torch
@pytest.mark.parametrize("change", ["part", "view", "whole"])
def test_compiled_code_counts_changes_of_logits(change):
    head, loss = new_head(), SoftmaxCrossEntropy()

    def step(x, y):
        logits = head(x)
        changed(change)(logits)
        return loss(y, logits)

    with pytest.raises(ValueError, match="`y_pred`"):
        compiled(step)(torch.tensor(X), torch.tensor(Y))


@compiles
@on_torch
@pytest.mark.parametrize("what", ["features", "kernel", "uncounted", "nothing"])
def test_compiled_code_takes_the_logits_that_it_is_given(what):
    head, loss = new_head(), SoftmaxCrossEntropy()

    def step(x, y):
        logits = head(x)
        if what == "features":
            x.mul_(2.0)
        elif what == "kernel":
            with torch.no_grad():
                head.kernel.value.mul_(2.0)
        elif what == "uncounted":
            logits.data.mul_(2.0)
        return loss(y, logits), logits.detach().clone()

    assert_right(*compiled(step, fullgraph=True)(torch.tensor(X), torch.tensor(Y)))


@compiles
@on_torch
def test_compiled_probabilities_that_changed_unseen_have_a_loss_of_nan():
    head, loss = new_head(returns="probabilities"), SoftmaxCrossEntropy()

    def step(x, y, change):
        chances = head(x)
        if change:
            chances.data.mul_(0.5)
        return loss(y, chances), origin_of(chances).logits.detach()

    run = compiled(step)
    assert_right(*run(torch.tensor(X), torch.tensor(Y), False))
    assert torch.isnan(run(torch.tensor(X), torch.tensor(Y), True)[0])


@compiles
@on_torch
@pytest.mark.parametrize("returns", ["logits", "probabilities"])
@pytest.mark.parametrize("then", ["changed", "copied", "as it is"])
def test_a_mark_that_was_made_in_compiled_code_is_not_read_outside(returns, then):
    head = new_head(returns=returns)
    with torch.no_grad():
        outputs = compiled(lambda x: head(x))(torch.tensor(X))
        if then == "changed":
            outputs.mul_(0.5)
        if then == "copied":
            outputs = copy.copy(outputs)
    assert origin_of(outputs) is None
    for loss in (SoftmaxCrossEntropy(), compiled(SoftmaxCrossEntropy())):
        with pytest.raises(ValueError, match=r"in another function of torch\.compile"):
            loss(torch.tensor(Y), outputs)


@compiles
@on_torch
def test_a_mark_that_was_made_in_eager_code_is_checked_in_compiled_code():
    head, loss = new_head(), SoftmaxCrossEntropy()
    run = compiled(lambda y, logits: loss(y, logits))
    logits = head(X)
    assert_right(run(torch.tensor(Y), logits), logits)
    changed("whole")(logits)
    with pytest.raises(ValueError, match="changed in place"):
        run(torch.tensor(Y), logits)
