"""Whole steps of `fit` or `evaluate` of a language model, for the benchmark."""

from collections.abc import Callable
from typing import Any, get_args

import keras
import numpy as np

from keras_logits import LogitsHead, SoftmaxCrossEntropy
from keras_logits._typing import Report
from linear_contenders import KERAS, temporaries_of
from side_by_side import Entry

REPORTS = get_args(Report)


def contenders(seat: dict[str, Any]) -> dict[str, Callable[[], Entry]]:
    """One model, and `fit` or `evaluate`: TensorFlow keeps what memory it has had."""
    sequences, length, width, vocabulary = seat["sizes"]
    model = compiled(seat, length, width, vocabulary)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, vocabulary, (2, sequences, length)).astype("int32")
    steps, batch = getattr(model, seat["run"]), one_batch(x, y)
    of_fit = seat["run"] == "fit" and seat["jit"]
    return {
        seat["name"]: lambda: Entry(
            lambda: steps(**batch, verbose=0),
            lambda: temporaries_of_step(model, x, y) if of_fit else None,
        )
    }


def temporaries_of_step(model: Any, x: Any, y: Any) -> int:
    """What XLA keeps in a step of training that is compiled as a whole."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        step = tf.function(lambda x, y: model.train_step((x, y)), jit_compile=True)
        return temporaries_of(step, [tf.constant(x), tf.constant(y)])
    import jax

    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = [[v.value for v in some] for some in variables]
    step = jax.jit(model.train_step).lower(state, (x, y)).compile()
    return int(step.memory_analysis().temp_size_in_bytes)


def one_batch(x: Any, y: Any) -> dict[str, Any]:
    """What `fit` and `evaluate` are given: on TensorFlow, data that are not tuned.

    The thread that tunes a `tf.data` pipeline sleeps for twice as long each time, and
    the end of `fit` waits until it wakes: 1.3, 2.6 or 5.1 seconds after it began.
    """
    if keras.config.backend() != "tensorflow":
        return {"x": x, "y": y, "batch_size": len(x)}
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return {"x": tf.data.Dataset.from_tensors((x, y)).with_options(options)}


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
