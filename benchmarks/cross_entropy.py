"""Forward and backward of the plain losses, side by side, as ratios to a copy.

    python benchmarks/cross_entropy.py [--rounds 15] [--backends tensorflow jax torch]

Each backend runs in a process of its own. Within it all contenders take turns, so that
whatever else the machine does hits them alike, and each one's time is the median over
the rounds, divided by the median time of copying the logits there. Ratios are compared
within a framework only: the frameworks allocate their copies differently.

Writes `benchmarks/results/cross_entropy.md` and `.json`.
"""

import argparse
import json
from typing import Any

import numpy as np

from side_by_side import (
    BACKENDS,
    Contender,
    in_own_process,
    machine,
    shown_versions,
    table,
    taking_turns,
    versions,
    write,
)

SIZES = ((65536, 10), (8192, 1000), (1024, 50257))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measured(options.backends[0], options.rounds)))
        return
    reports = []
    for backend in options.backends:
        print(f"measuring {backend} ...", flush=True)
        rounds = ("--rounds", str(options.rounds))
        reports.append(in_own_process(__file__, backend, *rounds))
    text = as_markdown(reports)
    write("cross_entropy", reports, text)
    print(text)


def measured(backend: str, rounds: int) -> dict[str, Any]:
    contenders_of = {
        "tensorflow": tensorflow_contenders,
        "jax": jax_contenders,
        "torch": torch_contenders,
    }[backend]
    sizes = []
    for rows, classes in SIZES:
        generator = np.random.default_rng(0)
        logits = generator.standard_normal((rows, classes)).astype("float32")
        labels = generator.integers(0, classes, rows).astype("int32")
        times = taking_turns(contenders_of(logits, labels), rounds)
        copy = times["copy"]
        ratios = {name: value / copy for name, value in times.items()}
        sizes.append(
            {"rows": rows, "classes": classes, "copy_ms": copy * 1e3, "ratios": ratios}
        )
    return {"backend": backend, "versions": versions(), "sizes": sizes}


def tensorflow_contenders(
    logits_: np.ndarray, labels_: np.ndarray
) -> dict[str, Contender]:
    import keras
    import tensorflow as tf

    from keras_logits import SoftmaxCrossEntropy

    logits, labels = tf.constant(logits_), tf.constant(labels_)
    ours = SoftmaxCrossEntropy(from_logits=True)
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def peer(labels: Any, logits: Any) -> Any:
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        )

    def with_gradient(loss: Any) -> Any:
        def run(logits: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(logits)
                value = loss(labels, logits)
            return value, tape.gradient(value, logits)

        return run

    def call(run: Any) -> Contender:
        # Reading one number waits for the whole result.
        return lambda: run(logits, labels)[1][0, 0].numpy()

    found = {"copy": call(tf.function(lambda z, y: (z, z * 1.5), jit_compile=True))}
    for name, loss in (("keras_logits", ours), ("tf.nn", peer), ("Keras", stock)):
        run = with_gradient(loss)
        found[f"{name}, XLA"] = call(tf.function(run, jit_compile=True))
        found[f"{name}, graph"] = call(tf.function(run))
        found[f"{name}, eager"] = call(run)
    return found


def jax_contenders(logits_: np.ndarray, labels_: np.ndarray) -> dict[str, Contender]:
    import jax
    import jax.numpy as jnp
    import keras
    import optax

    from keras_logits import SoftmaxCrossEntropy

    logits, labels = jnp.asarray(logits_), jnp.asarray(labels_)
    ours = SoftmaxCrossEntropy(from_logits=True)
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def peer(labels: Any, logits: Any) -> Any:
        values = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(values)

    def call(run: Any) -> Contender:
        return lambda: jax.block_until_ready(run(logits, labels))

    def with_gradient(loss: Any) -> Any:
        return jax.value_and_grad(lambda logits, labels: loss(labels, logits))

    return {
        "copy": call(jax.jit(lambda z, y: z * 1.5)),
        "keras_logits, jit": call(jax.jit(with_gradient(ours))),
        "optax, jit": call(jax.jit(with_gradient(peer))),
        "Keras, jit": call(jax.jit(with_gradient(stock))),
        "keras_logits, eager": call(with_gradient(ours)),
        "optax, eager": call(with_gradient(peer)),
    }


def torch_contenders(logits_: np.ndarray, labels_: np.ndarray) -> dict[str, Contender]:
    import keras
    import torch

    from keras_logits import SoftmaxCrossEntropy

    logits = torch.tensor(logits_, requires_grad=True)
    labels = torch.tensor(labels_).long()
    ours = SoftmaxCrossEntropy(from_logits=True)
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def peer(labels: Any, logits: Any) -> Any:
        return torch.nn.functional.cross_entropy(logits, labels)

    def call(loss: Any) -> Contender:
        return lambda: torch.autograd.grad(loss(labels, logits), logits)

    return {
        "copy": lambda: logits.detach() * 1.5,
        "keras_logits, eager": call(ours),
        "torch, eager": call(peer),
        "Keras, eager": call(stock),
    }


def as_markdown(reports: list[dict[str, Any]]) -> str:
    lines = [
        "# Plain losses: forward and backward",
        "",
        "Mean cross-entropy of class ids and its gradient by the logits, float32, as "
        "ratios to copying the logits (medians, contenders taking turns). Compare "
        "within a framework. Lower is better.",
        "",
        f"Machine: {machine()}. Repeat with `make bench`.",
        "",
    ]
    for report in reports:
        sizes = report["sizes"]
        lines += [f"## {report['backend']}", ""]
        titles = [f"{size['rows']} x {size['classes']}" for size in sizes]
        rows = [
            [name, *(f"{size['ratios'][name]:.2f}" for size in sizes)]
            for name in sizes[0]["ratios"]
        ]
        rows.append(["(one copy)", *(f"{size['copy_ms']:.2f} ms" for size in sizes)])
        lines += [*table(titles, rows), "", shown_versions(report["versions"]), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
