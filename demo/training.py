"""The same network from the same seed, trained in several ways."""

import sys
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_logits import LogitsHead
from tasks import Array, Task

EPOCHS = 30
BATCH = 64
HIDDEN = 64


# How Keras is told to run a training step.
STEPS = {
    "graph": {"jit_compile": False},
    "jitted": {"jit_compile": True},
    "eager": {"run_eagerly": True},
}


class Way(NamedTuple):
    """Whose head and loss, told what, and how a step is run."""

    name: str
    ours: bool
    step: str = "graph"
    from_logits: bool = True  # the flag of Keras: this package needs none


KERAS = Way("Keras, right flag", ours=False)
JITTED = Way("Keras, right flag, jitted", ours=False, step="jitted")
WRONG = Way("Keras, wrong flag", ours=False, from_logits=False)
GRAPH = Way("keras_logits, graph", ours=True)
EAGER = Way("keras_logits, eager", ours=True, step="eager")
WAYS = (KERAS, JITTED, WRONG, GRAPH, EAGER)


@dataclass(frozen=True)
class Trained:
    """A trained model and how it got there."""

    task: Task
    way: Way
    model: Any
    losses: Array
    accuracies: Array
    seconds: float

    def logits(self) -> Array:
        """Of the held-out rows."""
        return np.asarray(self.model(self.task.held_out.x))

    def from_tf_nn(self) -> float:
        """The largest difference of our loss from tf.nn's, over held-out labels."""
        kind, labels, logits = self.task.kind, self.task.held_out.y, self.logits()
        ours = np.asarray(kind.our_function(labels, logits))
        return float(np.max(np.abs(ours - kind.tf_function(labels, logits))))

    def from_curve_of(self, other: "Trained") -> float:
        """The largest relative difference between two curves of the training loss."""
        return float(np.max(np.abs(self.losses - other.losses) / np.abs(other.losses)))


def train(task: Task, way: Way) -> Trained:
    keras.utils.set_random_seed(0)  # the same weights and the same order of the rows
    model = compiled(task, way)
    progress = Progress(task, way)
    started = time.perf_counter()
    history = model.fit(
        *task.train,
        batch_size=BATCH,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[progress],
    ).history
    seconds = time.perf_counter() - started
    progress.close(seconds)
    losses, accuracies = np.array(history["loss"]), np.array(progress.accuracies)
    return Trained(task, way, model, losses, accuracies, seconds)


def compiled(task: Task, way: Way) -> Any:
    kind = task.kind
    if way.ours:
        head = LogitsHead(task.units, activation=kind.activation)
        loss = kind.our_loss()
    else:
        head = keras.layers.Dense(task.units)
        loss = kind.keras_loss(from_logits=way.from_logits)
    # Smooth: at the kink of a relu, rounding alone can send two runs apart.
    hidden = keras.layers.Dense(HIDDEN, activation="tanh")
    inputs = keras.Input((task.train.x.shape[1],))
    model = keras.Sequential([inputs, hidden, head])
    optimizer = getattr(keras.optimizers, task.optimizer)(task.learning_rate)
    model.compile(optimizer, loss=loss, **STEPS[way.step])
    return model


class Progress(keras.callbacks.Callback):
    """The held-out accuracy after each epoch, and one line on the screen."""

    def __init__(self, task: Task, way: Way) -> None:
        super().__init__()
        self.task = task
        self.title = f"{task.name:8}{way.name:27}"
        self.accuracies: list[float] = []
        self.line = ""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        logits = np.asarray(self.model(self.task.held_out.x))
        self.accuracies.append(self.task.accuracy(logits))
        self.line = (
            f"{self.title}epoch {epoch + 1:2}/{EPOCHS}  loss {logs['loss']:8.5f}  "
            f"accuracy {self.accuracies[-1]:.3f}"
        )
        if sys.stdout.isatty():
            print(f"\r{self.line}", end="", flush=True)

    def close(self, seconds: float) -> None:
        start = "\r" if sys.stdout.isatty() else ""
        print(f"{start}{self.line}  {seconds:5.1f} s", flush=True)
