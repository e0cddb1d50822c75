"""JAX: its tracers take no attributes, so that their marks live in a table by id.

An id is used again as soon as its tracer died. A mark must die with its tracer, and
nothing that a mark holds may outlive the trace.
"""

import gc
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from keras_logits import LogitsHead, SoftmaxCrossEntropy, provenance
from keras_logits.provenance import Mark, mark, origin_of

pytestmark = [
    pytest.mark.compiled_fast,
    pytest.mark.skipif(
        keras.config.backend() != "jax", reason="other tensors take attributes"
    ),
]
if keras.config.backend() == "jax":
    import jax
    import jax.numpy as jnp

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = np.arange(8) % 4


@pytest.fixture
def table():
    """The table, empty at the start: no test before may have left anything in it."""
    gc.collect()
    assert provenance._table == {}
    yield provenance._table
    provenance._table.clear()


def in_a_cycle(thing):
    """Makes a thing that only the garbage collector frees, some time later."""
    cycle = [thing]
    cycle.append(cycle)


def marks_and_more(x, kept):
    """A traced function that marks some tensors and, between them, makes others."""
    marked, unmarked = [], []
    for i in range(4):
        unmarked.append(x + i)
        z = x * i
        mark(z, Mark("softmax", logits=x))
        marked.append(z)
        in_a_cycle([z, i])
    assert all(origin_of(z).logits is x for z in marked)
    kept.extend(origin_of(tensor) for tensor in unmarked)
    kept.extend(origin_of(tensor + 1) for tensor in marked)
    return sum(marked)


@pytest.mark.parametrize(
    "transformed",
    [
        lambda f: jax.make_jaxpr(f),
        lambda f: jax.make_jaxpr(jax.grad(lambda x: f(x).sum())),
        lambda f: jax.grad(lambda x: f(x).sum()),
        lambda f: jax.vmap(f),
        lambda f: jax.make_jaxpr(jax.checkpoint(f)),
    ],
    ids=["jit", "jit of grad", "grad", "vmap", "jit of remat"],
)
def test_a_mark_is_never_stale_and_never_left(transformed, table):
    x, found, largest = jnp.ones((3, 2)), [], 0
    for _ in range(80):  # four hundred traces, in five transformations
        transformed(lambda x: marks_and_more(x, found))(x)
        # Before the collector runs: cycles of earlier traces are still there, or their
        # ids are in use again.
        found.append(origin_of(jnp.ones(3)))
        largest = max(largest, len(table))
    assert largest > 0
    assert set(found) == {None}
    gc.collect()
    assert table == {}


def test_a_recycled_id_has_no_mark(table):
    """The table is asked for the very id of a dead tensor, by a tensor that has it."""
    ids, used_again = set(), []

    def step(x):
        z = x + 1
        assert origin_of(z) is None
        used_again.append(id(z) in ids)
        mark(z, Mark("softmax"))
        ids.add(id(z))
        return x

    for _ in range(100):
        jax.make_jaxpr(lambda x: step(x))(X)  # a new function, or JAX remembers it
    assert any(used_again)


def test_an_entry_of_another_tensor_is_not_read(table):
    """Even if the entry outlived its tensor, the id alone would not bring it back."""

    def step(x):
        one, other = x + 1, x + 2
        mark(one, Mark("softmax"))
        reference, entry = table[id(one)]
        table[id(other)] = reference, entry
        assert origin_of(other) is None
        return x

    jax.make_jaxpr(step)(X)


def test_a_late_farewell_of_a_dead_tensor_leaves_its_successor(table):
    def step(x):
        dead, successor = x + 1, x + 2
        mark(dead, Mark("softmax"))
        farewell = table[id(dead)][0]
        mark(successor, Mark("sigmoid"))
        provenance._forget(id(successor), farewell)
        assert origin_of(successor).activation == "sigmoid"
        return x

    jax.make_jaxpr(step)(X)


@pytest.mark.parametrize("returns", ["logits", "probabilities"])
def test_training_leaves_no_tracer_behind(returns, table):
    head = LogitsHead(4, returns=returns)
    model = keras.Sequential([keras.Input((3,)), head])
    model.compile("sgd", loss=SoftmaxCrossEntropy())
    with jax.checking_leaks():
        model.fit(X, Y, verbose=0)
        model.evaluate(X, Y, verbose=0)
    gc.collect()
    assert table == {}


def test_a_step_with_effects_leaves_nothing_behind(table):
    """JAX holds the operands of an effect until the trace ends."""
    head, loss, watched = LogitsHead(4), SoftmaxCrossEntropy(), []
    head.build(X.shape)

    def step(x):
        features = jnp.tanh(x)
        logits = head(features)
        watched.extend([weakref.ref(features), weakref.ref(logits)])
        jax.debug.callback(lambda z: None, logits)
        return loss(Y, logits)

    jax.make_jaxpr(step)(X)
    gc.collect()
    assert table == {}
    assert [reference() for reference in watched] == [None, None]


def test_a_trace_that_an_error_broke_off_does_not_keep_the_weights():
    def break_off():
        head, loss = LogitsHead(4), SoftmaxCrossEntropy()
        head.build(X.shape)

        def step(x):
            loss(Y, head(x))
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            jax.jit(step)(X)
        return weakref.ref(head.kernel)

    kernel = break_off()
    gc.collect()
    assert kernel() is None
    provenance._table.clear()


def test_a_mark_is_read_in_another_thread():
    """Keras' own table for tracers is one for each thread."""

    def step(x):
        z = x + 1
        mark(z, Mark("softmax"))
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(origin_of, z).result()
        assert found.activation == "softmax"
        return z

    jax.make_jaxpr(step)(X)


TWO_DEVICES = """
import jax, keras, numpy as np
from keras_logits import LogitsHead, SoftmaxCrossEntropy
assert len(jax.devices()) == 2
x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
y, w = np.arange(16) % 4, np.linspace(0, 1, 16) ** 4

def trained(parallel):
    if parallel:
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), LogitsHead(4)])
    model.compile(keras.optimizers.SGD(0.5), loss=SoftmaxCrossEntropy())
    history = model.fit(
        x, y, sample_weight=w, batch_size=16, epochs=3, shuffle=False, verbose=0
    )
    return [*history.history["loss"], *np.ravel(model.get_weights()[0])]

np.testing.assert_allclose(trained(True), trained(False), rtol=1e-5)
"""


def test_two_devices_train_as_one():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run([sys.executable, "-c", TWO_DEVICES], check=True, env=environment)
