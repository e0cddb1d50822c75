"""The demo's two tasks: real data that comes inside packages, with a fixed split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from river.datasets import Yeast
from sklearn.datasets import load_digits

import keras_logits
from keras_logits import SigmoidCrossEntropy, SoftmaxCrossEntropy

Array = np.ndarray[Any, Any]
HELD_OUT = 0.25


class Rows(NamedTuple):
    """Features and labels."""

    x: Array
    y: Array


@dataclass(frozen=True)
class Kind:
    """What goes with an activation, in Keras, in this package and in tf.nn."""

    activation: Literal["softmax", "sigmoid"]
    keras_loss: Callable[..., Any]
    our_loss: Callable[..., Any]
    our_function: Callable[..., Any]
    tf_function: Callable[..., Any]


SOFTMAX = Kind(
    "softmax",
    keras.losses.SparseCategoricalCrossentropy,
    SoftmaxCrossEntropy,
    keras_logits.softmax_cross_entropy,
    tf.nn.sparse_softmax_cross_entropy_with_logits,
)
SIGMOID = Kind(
    "sigmoid",
    keras.losses.BinaryCrossentropy,
    SigmoidCrossEntropy,
    keras_logits.sigmoid_cross_entropy,
    tf.nn.sigmoid_cross_entropy_with_logits,
)


@dataclass(frozen=True)
class Task:
    """A data set, what kind of labels it has, and how to train on it."""

    name: str
    kind: Kind
    units: int
    train: Rows
    held_out: Rows
    optimizer: str
    learning_rate: float

    def accuracy(self, logits: Array, threshold: float = 0.0) -> float:
        """Share of the held-out labels that the logits get right.

        A yes/no label counts as yes above the threshold: logit 0 is probability 1/2.
        """
        if self.kind is SOFTMAX:
            return float(np.mean(logits.argmax(axis=-1) == self.held_out.y))
        return float(np.mean((logits > threshold) == (self.held_out.y > 0.5)))


def digits() -> Task:
    """Handwritten digits of 8 x 8 pixels: one true class among ten, as a class id."""
    data = load_digits()
    x, y = (data.data / 16.0).astype("float32"), data.target.astype("int64")
    return Task("digits", SOFTMAX, 10, *split(x, y), "SGD", 0.1)


def yeast() -> Task:
    """Functions of the genes of yeast: 14 labels at once, each of them yes or no."""
    rows = list(Yeast())
    x = np.array([list(features.values()) for features, _ in rows], "float32")
    y = np.array([list(labels.values()) for _, labels in rows], "float32")
    train, held_out = split(x, y)
    mean, deviation = train.x.mean(axis=0), train.x.std(axis=0)
    train = train._replace(x=(train.x - mean) / deviation)
    held_out = held_out._replace(x=(held_out.x - mean) / deviation)
    return Task("yeast", SIGMOID, 14, train, held_out, "Adam", 1e-3)


def split(x: Array, y: Array) -> tuple[Rows, Rows]:
    """The rows in a fixed random order, the last quarter of them held out."""
    order = np.random.default_rng(0).permutation(len(x))
    kept = order[: round(len(x) * (1 - HELD_OUT))]
    held_out = order[len(kept) :]
    return Rows(x[kept], y[kept]), Rows(x[held_out], y[held_out])
