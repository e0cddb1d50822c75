"""Whole steps of `fit` and `evaluate` of a language model, for the benchmark."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_logits import LogitsHead, SoftmaxCrossEntropy
from linear_contenders import KERAS
from side_by_side import Entry

REPORTS = (
    "accuracy",
    "top_5_accuracy",
    "cross_entropy",
    "perplexity",
    "entropy",
    "invalid_labels",
)


def contenders(seat: dict[str, Any]) -> dict[str, Callable[[], Entry]]:
    """One model; `evaluate` first, since its peak lies below that of `fit`."""
    sequences, length, width, vocabulary = seat["sizes"]
    model = compiled(seat, length, width, vocabulary)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, vocabulary, (2, sequences, length))
    batch = {"batch_size": sequences, "verbose": 0}
    return {
        f"{seat['name']}: evaluate": lambda: Entry(
            lambda: model.evaluate(x, y, **batch)
        ),
        f"{seat['name']}: fit": lambda: Entry(
            lambda: model.fit(x, y, shuffle=False, **batch)
        ),
    }


def compiled(seat: dict[str, Any], length: int, width: int, vocabulary: int) -> Any:
    keras.utils.set_random_seed(0)
    reports = REPORTS if seat.get("reports") else ()
    if seat["form"] == KERAS:
        head = keras.layers.Dense(vocabulary)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        head = LogitsHead(vocabulary, reports=reports)
        loss = SoftmaxCrossEntropy(fused=seat["fused"])
    layers = [
        keras.Input((length,), dtype="int32"),
        keras.layers.Embedding(vocabulary, width),
        keras.layers.Dense(width, activation="gelu"),
        head,
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.1), loss=loss, jit_compile=seat["jit"])
    return model
