"""What losses give over four devices and over one; `test_sharded_jax.py` compares.

JAX has as many devices as it is told before it is imported, so this runs by itself.
Prints a JSON dict of each case: its largest error, the scale, what was warned of.
"""

import json
import os
import sys
import warnings

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from keras_logits import (
    LogitsHead,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    functions,
    linear_softmax_cross_entropy,
)

N, D, V = 8, 6, 16
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype("float32")
W = RNG.normal(size=(D, V)).astype("float32")
Y = RNG.integers(0, V, N).astype("int32")
S = RNG.uniform(0.5, 2.0, N).astype("float32")
UNITS = (RNG.random((N, V)) < 0.3).astype("float32")
OPTIONS = {
    "class_weight": RNG.uniform(0.5, 2.0, V).tolist(),
    "label_smoothing": 0.1,
    "z_loss": 0.01,
    "softcap": 5.0,
    "ignore_index": int(Y[0]),
}
SHAPE, NAMES = (2, 2), ("data", "model")
MESHES = {
    "auto": Mesh(np.array(jax.devices()).reshape(SHAPE), NAMES),
    "explicit": jax.make_mesh(SHAPE, NAMES, axis_types=(AxisType.Explicit,) * 2),
    "explicit, one device": jax.make_mesh(
        (1, 1),
        NAMES,
        axis_types=(AxisType.Explicit,) * 2,
        devices=jax.devices()[:1],
    ),
}
# Where features, kernel and what is known of each row lie.
LAYOUTS = {
    "rows": (P("data"), P(), P("data")),
    "rows and classes": (P("data"), P(None, "model"), P("data")),
    "classes": (P(), P(None, ("data", "model")), P()),
    "features": (P("data", "model"), P("model"), P("data")),
}


def by_hand(x, w, s):
    """The weighted mean, by JAX's own softmax."""
    log_p = jax.nn.log_softmax(jnp.dot(x, w, precision="highest"))
    return -jnp.sum(s * log_p[jnp.arange(N), Y]) / jnp.sum(s)


def fused(x, w, y, s, **options):
    return linear_softmax_cross_entropy(x, w, y, sample_weight=s, **options)


def each(x, w, y, s):
    return jnp.sum(s * fused(x, w, y, None, reduction=None)) / jnp.sum(s)


def softmax(x, w, y, s):
    return SoftmaxCrossEntropy(True)(y, x @ w, s)


def sigmoid(x, w, y, s):
    return SigmoidCrossEntropy(True, pos_weight=2.0)(jnp.asarray(UNITS), x @ w, s)


def stepped(loss):
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def error(found, expected):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def placed(mesh, layout):
    on_x, on_w, on_rows = LAYOUTS[layout]
    specs = (on_x, on_w, on_rows, on_rows)
    return [
        jax.device_put(a, NamedSharding(mesh, spec))
        for a, spec in zip((X, W, Y, S), specs, strict=True)
    ]


def layouts():
    """Every loss over every layout, in a mesh that is entered or only on the arrays."""
    truth = stepped(lambda x, w: by_hand(x, w, S))(X, W)
    alone = {
        "fused": truth,
        "each": truth,
        "softmax": truth,
        "options": stepped(lambda x, w: fused(x, w, Y, S, **OPTIONS))(X, W),
        "sigmoid": stepped(lambda x, w: sigmoid(x, w, Y, S))(X, W),
    }
    losses = {
        "fused": fused,
        "each": each,
        "softmax": softmax,
        "sigmoid": sigmoid,
        "options": lambda *batch: fused(*batch, **OPTIONS),
    }
    whole, half = "rows and classes", ("rows", "classes", "features")
    cases = [(name, kind, whole) for name in losses for kind in ("auto", "explicit")]
    cases += [("options", "explicit", layout) for layout in half]
    cases += [("fused", "auto", "features"), ("options", "explicit, one device", whole)]
    for name, kind, layout in cases:
        key = f"{name}, {kind}, {layout}"
        yield key, MESHES[kind], layout, losses[name], alone[name]


def in_shard_map(checked):
    """Gradients taken from outside, and inside, of a map over the rows."""
    mesh = MESHES["auto"]
    rows = P("data")

    def summed(x, w, y, s):
        total = linear_softmax_cross_entropy(x, w, y, sample_weight=s, reduction="sum")
        return jax.lax.psum(total, "data")

    mapped = jax.shard_map(
        summed,
        mesh=mesh,
        in_specs=(rows, P(), rows, rows),
        out_specs=P(),
        check_vma=checked,
    )
    return lambda x, w: mapped(x, w, Y, S) / S.sum()


def warned(function, *batch):
    functions._warn_of_plain.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = function(*batch)
    return found, sum("runs unfused here" in str(w.message) for w in caught)


def report(name, found, expected, warnings):
    scale = max(float(np.abs(np.asarray(a)).max()) for a in jax.tree.leaves(expected))
    RESULTS[name] = [error(found, expected), scale, warnings]


def entered(mesh, function, *batch):
    with jax.set_mesh(mesh):
        return function(*batch)


def head_over_shards(loss, jit):
    """The loss of a head whose kernel lies on a mesh, and that of one device."""
    head = LogitsHead(8192, use_bias=False)
    model = keras.Sequential([keras.Input((D,)), head])
    kernel = np.asarray(head.kernel.value)

    def step(kernel, x):
        def total(kernel):
            logits, _ = model.stateless_call([kernel], [], x)
            return loss(Y, logits)

        return jax.value_and_grad(total)(kernel)

    step = jax.jit(step) if jit else step
    mesh = MESHES["auto"]
    expected = stepped(lambda x, w: by_hand(x, w, np.ones(N, "float32")))(X, kernel)
    there = jax.device_put(kernel, NamedSharding(mesh, P(None, "model")))
    found, count = warned(step, there, jax.device_put(X, NamedSharding(mesh, P())))
    return found, (expected[0], expected[1][1]), count


def refusal(function, *batch):
    try:
        function(*batch)
    except ValueError as error:
        return str(error)
    return None


RESULTS = {}


def main():
    for name, mesh, layout, loss, expected in layouts():
        batch = placed(mesh, layout)
        found, count = warned(stepped(loss), *batch)
        report(name, found, expected, count)
        if name.startswith(("softmax, explicit", "fused, explicit")):
            found, count = warned(entered, mesh, stepped(loss), *batch)
            report(f"{name}, entered", found, expected, count)
    truth = stepped(lambda x, w: by_hand(x, w, S))(X, W)
    for checked in (True, False):
        found, count = warned(stepped(in_shard_map(checked)), X, W)
        report(f"fused, shard_map, checked={checked}", found, truth, count)
    eager = placed(MESHES["auto"], "rows and classes")
    found, count = warned(jax.value_and_grad(fused, (0, 1)), *eager)
    report("fused, auto, eager gradients", found, truth, count)
    found, count = warned(fused, *eager)
    report("fused, auto, eager", found, truth[0], count)
    loss = SoftmaxCrossEntropy()
    report("head, jit", *head_over_shards(loss, jit=True))
    RESULTS["refusal"] = refusal(
        lambda: head_over_shards(SoftmaxCrossEntropy(fused=True), jit=True)
    )
    with jax.set_mesh(MESHES["auto"]):
        found, count = warned(stepped(fused), X, W, Y, S)
    report("fused, only entered", found, truth, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with MESHES["auto"]:
            found, count = warned(stepped(fused), X, W, Y, S)
    report("fused, by a with statement", found, truth, count)
    found, count = warned(stepped(fused), X, W, Y, S)
    report("fused, one device", found, truth, count)
    json.dump(RESULTS, sys.stdout)


if __name__ == "__main__":
    main()
