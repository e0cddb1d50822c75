"""One row for each public object, and for each use of it that may break a promise.

A row makes its object, a small model around it, and features and labels that suit it.
The promises, one small test each, are in `test_catalogue.py` and, for the classes of
tf-keras, in `tf_keras/test_tf_keras_catalogue.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

BATCH, STEPS, WIDTH, CLASSES = 8, 4, 6, 3
Around = tuple[Any, Any]  # a model and its loss
Data = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Row:
    """A public object, the model and loss around it, and data for both."""

    name: str
    make: Callable[[], Any]
    around: Callable[[Any], Around]
    data: Callable[[], Data]
    keras: Any

    def build(self, thing: Any = None) -> Around:
        """The object, or a given one in its place, in a seeded model; and the loss."""
        self.keras.utils.set_random_seed(7)
        return self.around(self.make() if thing is None else thing)

    def compiled(self, **options: Any) -> Any:
        model, loss = self.build()
        model.compile(self.keras.optimizers.SGD(0.1), loss=loss, **options)
        return model


class Catalogue:
    """The rows, with the classes of one Keras and the package's classes for it."""

    def __init__(self, keras: Any, ours: Any) -> None:
        self.keras, self.ours = keras, ours
        head, before = self.head, self.before_head
        softmax, sigmoid = ours.SoftmaxCrossEntropy, ours.SigmoidCrossEntropy
        self.heads = [
            self.row("head", head(), before, ids),
            self.row("head, sigmoid", head("sigmoid"), before, units),
            self.row("head, softcap", head(softcap=0.5), before, ids),
            self.row("head, temperature", head(temperature=2.5), before, ids),
            self.row("head, no bias", head(use_bias=False), before, ids),
            self.row("head, of p", head(returns="probabilities"), before, ids),
            self.row(
                "head, sigmoid of p",
                head("sigmoid", returns="probabilities"),
                before,
                units,
            ),
            self.row("head, tied", self.tied_head, self.around_tied, texts),
            self.row("head, dressed", self.dressed_head, before, ids),
            self.row(
                "head, reports", head(reports=["accuracy", "perplexity"]), before, ids
            ),
        ]
        self.marks = [
            self.row("mark", ours.MarkLogits, self.before_mark, ids),
            self.row(
                "mark, sigmoid",
                lambda: ours.MarkLogits("sigmoid", name="m"),
                self.before_mark,
                units,
            ),
        ]
        self.losses = [
            self.row("softmax", softmax, self.after_head, ids),
            self.row("softmax, full", self.full_softmax, self.after_grid, grid_of_ids),
            self.row(
                "softmax, fused",
                lambda: softmax(fused=True, memory_budget=2**10),
                self.after_head,
                ids,
            ),
            self.row(
                "softmax, of p",
                lambda: softmax(False, class_weight=[1.0, 2.0, 3.0]),
                self.after_probabilities,
                ids,
            ),
            self.row("sigmoid", sigmoid, self.after_head, units),
            self.row(
                "sigmoid, full", self.full_sigmoid, self.after_grid, grid_of_units
            ),
            self.row(
                "sigmoid, of p",
                lambda: sigmoid(False, pos_weight=2.0),
                self.after_probabilities,
                units,
            ),
        ]
        self.rows = [*self.heads, *self.marks, *self.losses]

    def row(self, *fields: Any) -> Row:
        return Row(*fields, self.keras)

    # The objects

    def head(self, *args: Any, **options: Any) -> Callable[[], Any]:
        return lambda: self.ours.LogitsHead(CLASSES, *args, **options)

    def tied_head(self) -> Any:
        table = self.keras.layers.Embedding(CLASSES, 5)
        return self.ours.LogitsHead(CLASSES, tied_to=table)

    def dressed_head(self) -> Any:
        keras = self.keras
        return self.ours.LogitsHead(
            CLASSES,
            kernel_initializer=keras.initializers.Orthogonal(gain=2.0, seed=3),
            bias_initializer=keras.initializers.Constant(0.5),
            kernel_regularizer=keras.regularizers.L2(0.01),
            bias_regularizer=keras.regularizers.L1(0.02),
            activity_regularizer=keras.regularizers.L2(0.03),
            kernel_constraint=keras.constraints.MaxNorm(1.5),
            bias_constraint=keras.constraints.NonNeg(),
            name="dressed",
        )

    def full_softmax(self) -> Any:
        return self.ours.SoftmaxCrossEntropy(
            True,
            class_weight={0: 2.0, 2: 0.5},
            label_smoothing=0.1,
            focal_gamma=1.5,
            z_loss=1e-3,
            ignore_index=-1,
            axis=1,
            reduction="sum_over_batch_size",
            name="mine",
            dtype="float32",
        )

    def full_sigmoid(self) -> Any:
        return self.ours.SigmoidCrossEntropy(
            True,
            class_weight={1: 3.0},
            pos_weight=[1.0, 2.0, 3.0],
            label_smoothing=0.1,
            focal_gamma=1.5,
            ignore_index=-1,
            axis=1,
            reduction="sum",
            name="mine",
            dtype="float32",
        )

    # The models around them

    def sequential(self, *layers: Any) -> Any:
        return self.keras.Sequential([self.keras.Input((WIDTH,)), *layers])

    def before_head(self, head: Any) -> Around:
        loss = self.loss_of(head.activation)
        return self.sequential(self.dense(5, "tanh"), head), loss

    def around_tied(self, head: Any) -> Around:
        words = self.keras.Input((STEPS,), dtype="int32")
        model = self.keras.Model(words, head(head.tied_to(words)))
        return model, self.loss_of("softmax")

    def before_mark(self, mark: Any) -> Around:
        return self.sequential(self.dense(CLASSES), mark), self.loss_of(mark.activation)

    def after_head(self, loss: Any) -> Around:
        return self.sequential(self.ours.LogitsHead(CLASSES, activation_of(loss))), loss

    def after_grid(self, loss: Any) -> Around:
        """Logits with their classes on axis 1."""
        shape = self.keras.layers.Reshape((CLASSES, STEPS))
        mark = self.ours.MarkLogits(activation_of(loss))
        return self.sequential(self.dense(CLASSES * STEPS), shape, mark), loss

    def after_probabilities(self, loss: Any) -> Around:
        return self.sequential(self.dense(CLASSES, activation_of(loss))), loss

    def dense(self, *args: Any) -> Any:
        return self.keras.layers.Dense(*args)

    def loss_of(self, activation: str) -> Any:
        return getattr(self.ours, activation.capitalize() + "CrossEntropy")()


def evaluated(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """The loss alone, whatever a head reports beside it."""
    return float(model.evaluate(x, y, verbose=0, return_dict=True)["loss"])


def activation_of(loss: Any) -> str:
    return "softmax" if "Softmax" in type(loss).__name__ else "sigmoid"


def features() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(BATCH, WIDTH)).astype("float32")


def integers(upper: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, upper, shape).astype("int32")


def ids() -> Data:
    return features(), integers(CLASSES, BATCH)


def units() -> Data:
    return features(), integers(2, BATCH, CLASSES)


def texts() -> Data:
    return integers(CLASSES, BATCH, STEPS), integers(CLASSES, BATCH, STEPS)[::-1]


def grid_of_ids() -> Data:
    return features(), with_unknown(integers(CLASSES, BATCH, STEPS))


def grid_of_units() -> Data:
    return features(), with_unknown(integers(2, BATCH, CLASSES, STEPS))


def with_unknown(labels: np.ndarray) -> np.ndarray:
    labels[0, 0] = -1  # the losses' ignore_index
    return labels
