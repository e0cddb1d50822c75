"""TensorFlow: the fused pass, compiled by XLA by itself, and what else a body has."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from keras_logits._typing import Tensor
from keras_logits.kernels.chunk import Verbs
from keras_logits.kernels.contract import (
    NO_SECOND_DERIVATIVE,
    Linear,
    counted,
    finite_or_zero,
    left_out,
)
from keras_logits.kernels.contract import mass as mass
from keras_logits.kernels.loop import (
    NOTHING,
    Found,
    LinearFormula,
    Wanted,
    pass_over,
)
from keras_logits.kernels.loop import buffers_of as buffers_of
from keras_logits.kernels.tensorflow_scores import function, is_watched, shaped, unseen
from keras_logits.kernels.tensorflow_scores import is_concrete as is_concrete
from keras_logits.kernels.tensorflow_scores import weighted as weighted
from keras_logits.maths.alarms import nan_where
from keras_logits.maths.links import accurate_dtype

COMPILED_PASSES = 64
"""Fused passes that are kept compiled: each number of tokens below a chunk has its own.

A step uses two or three.
"""


def weighted_linear(
    formula: LinearFormula,
    labels: Tensor,
    linear: Linear,
    weights: Tensor,
    class_weights: Tensor | None,
    summed: bool,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The losses of a fused pass; their gradients come with them if a tape watches.

    A tape outside of the graph that this is traced in is not seen from here: then the
    backward pass goes over all tokens again.
    """
    linear = Linear(*(None if x is None else read(x) for x in linear))
    wanted = Wanted(*(x is not None and is_watched(x) for x in linear))
    at_once = wanted if summed else NOTHING
    later, by_weights = [] if summed else [wanted], is_watched(weights)
    if not tf.executing_eagerly():
        # Tapes outside of this graph are not seen. It drops what none of them asks.
        rest = (x is not None and not w for x, w in zip(linear, wanted, strict=True))
        later, by_weights = [*later, Wanted(*rest)], True
    later = [asked for asked in later if any(asked)]
    shape = () if summed else weights.shape
    features, kernel, bias = linear
    bias = () if bias is None else (bias,)

    @tf.custom_gradient
    def run(weights: Tensor, features: Tensor, kernel: Tensor, *bias: Tensor) -> Any:
        given = Linear(features, kernel, bias[0] if bias else None)
        with record.stop_recording():
            compiled = _compiled_pass(formula, at_once)
            found = compiled(given, labels, weights, class_weights, known)
        found = _sealed(found, [weights, features, kernel, *bias])

        def again(asked: Wanted, weights: Tensor) -> Found:
            unwatched = _compiled_pass(replace(formula, figures=()), asked)
            with record.stop_recording():
                found = unwatched(given, labels, weights, class_weights, known)
            return _sealed(found, [weights, features, kernel, *bias])

        def left(weights: Tensor) -> Tensor:
            """Losses of the tokens that the pass left out, by another over these."""
            unwatched = _compiled_rest(replace(formula, figures=()))
            with record.stop_recording():
                found = unwatched(given, labels, weights, class_weights, known)
            return _not_again(found, weights, features, kernel, *bias)

        def backward(upstream: Tensor, *_: Tensor) -> list[Tensor | None]:
            upstream, losses = shaped(upstream, shape), found.losses
            slopes = [None if g is None else upstream * g for g in found.gradients]
            for asked in later:
                more = again(asked, weights * upstream).gradients
                slopes = [
                    a if b is None else b for a, b in zip(slopes, more, strict=True)
                ]
            if by_weights:
                losses = losses + left(weights)
            inputs = [weights, features, kernel, *bias]
            return [
                None if g is None else _not_again(tf.cast(g, x.dtype), *inputs)
                for x, g in zip(inputs, [upstream * losses, *slopes], strict=False)
            ]

        values = counted(found.losses, weights)
        value = tf.reduce_sum(values) if summed else values
        return (value, *([found.figures] if formula.figures else [])), backward

    found = run(weights, features, kernel, *bias)
    return found[0], found[1] if formula.figures else None


def _sealed(found: Found, inputs: list[Tensor]) -> Found:
    """What a pass found, in whose loops no derivative is looked for.

    A graph that is differentiated from outside of it, more than once, has derivatives
    made of all that its backward passes keep.
    """
    if tf.executing_eagerly():
        return found
    sealed = [
        None if x is None else _not_again(x, *inputs) for x in tf.nest.flatten(found)
    ]
    packed: Found = tf.nest.pack_sequence_as(found, sealed)
    return packed


@tf.custom_gradient
def _not_again(gradient: Tensor, *inputs: Tensor) -> Any:
    """The gradient itself, which refuses to be differentiated once more."""

    def backward(upstream: Tensor) -> tuple[Tensor | None, ...]:
        here = tf.compat.v1.get_default_graph()
        if tf.executing_eagerly() or gradient.graph is here:
            raise ValueError(NO_SECOND_DERIVATIVE)
        # Whoever differentiates a graph from outside of it is handed derivatives of all
        # that it returns or keeps, and has zeros come from above for what is not asked.
        unasked = tf.reduce_all(tf.equal(upstream, 0))
        with tf.control_dependencies([tf.Assert(unasked, [NO_SECOND_DERIVATIVE])]):
            nothing = nan_where(
                tf.logical_not(unasked), "float32"
            )  # XLA asserts nothing
        return None, *(tf.zeros_like(x) + tf.cast(nothing, x.dtype) for x in inputs)

    return gradient, backward


@functools.lru_cache(COMPILED_PASSES)
def _compiled_pass(formula: LinearFormula, wanted: Wanted) -> Any:
    verbs = Verbs(matmul, accurate_dtype, _add_rows)
    run = functools.partial(_pass_over, formula, wanted, verbs)
    # By XLA always: TensorFlow's own loops copy what they add to at each step.
    return function(run, jit_compile=True)


@functools.lru_cache(COMPILED_PASSES)
def _compiled_rest(formula: LinearFormula) -> Any:
    verbs = Verbs(matmul, accurate_dtype, _add_rows)
    return function(functools.partial(_rest, formula, verbs), jit_compile=True)


def _rest(
    formula: LinearFormula,
    verbs: Verbs,
    linear: Linear,
    labels: Tensor,
    weights: Tensor,
    class_weights: Tensor | None,
    known: Tensor | None,
) -> Tensor:
    batch = (linear, labels, left_out(weights), class_weights, known)
    return finite_or_zero(_pass_over(formula, NOTHING, verbs, *batch).losses)


def _pass_over(
    formula: LinearFormula,
    wanted: Wanted,
    verbs: Verbs,
    linear: Linear,
    labels: Tensor,
    weights: Tensor,
    class_weights: Tensor | None,
    known: Tensor | None,
) -> Found:
    """The pass, with a token of weight 0 in a batch that turns out to be empty.

    XLA cannot compile what takes rows of such a batch.
    """
    tokens = tf.shape(weights)[0]
    missing = tf.cast(tokens < 1, "int32")

    def filled(rows: Tensor) -> Tensor:
        return tf.pad(rows, [[0, missing], *([0, 0] for _ in rows.shape[1:])])

    rows = linear._replace(features=filled(linear.features))
    known = None if known is None else filled(known)
    batch = (rows, filled(labels), filled(weights), class_weights, known)
    losses, gradients, seen = pass_over(formula, wanted, verbs, *batch)
    if gradients.features is not None:
        gradients = gradients._replace(features=gradients.features[:tokens])
    return Found(losses[:tokens], gradients, None if seen is None else seen[:tokens])


def _add_rows(into: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return tf.tensor_scatter_nd_add(into, rows[:, None], values)


def compiled(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, which takes tensors alone, by XLA."""
    return unseen(tf.function(run, autograph=False, jit_compile=True))


def matmul(features: Tensor, kernel: Tensor) -> Tensor:
    """A product that is accumulated, and returned, in at least float32."""
    dtype = tf.float64 if features.dtype == tf.float64 else tf.float32
    return tf.matmul(tf.cast(features, dtype), tf.cast(kernel, dtype))


def product(features: Tensor, kernel: Tensor) -> Tensor:
    """`matmul`, whose derivative by the kernel reads NaN and infinite features as 0.

    No custom gradient: TensorFlow never frees a graph that has one.
    """
    if tf.executing_eagerly() and not is_watched(features) and not is_watched(kernel):
        return matmul(features, kernel)
    known = tf.where(tf.math.is_finite(features), features, tf.zeros_like(features))
    products = matmul(known, kernel)
    lost = tf.reduce_sum(features - known, axis=-1, keepdims=True)
    return products + tf.stop_gradient(tf.cast(lost, products.dtype))


def total_over_replicas(total: Tensor) -> Tensor:
    """The sum over all replicas of a strategy, so that they act as one batch."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return total
    return context.all_reduce(tf.distribute.ReduceOp.SUM, total)


def read(variable: Tensor) -> Tensor:
    """What a variable holds now. Keras gives the variable itself, not its value.

    A graph that held the variable would keep the weights for ever.
    """
    return tf.convert_to_tensor(variable)


def device() -> str:
    return "accelerator" if tf.config.get_visible_devices("GPU") else "cpu"


def is_sparse(tensor: Tensor) -> bool:
    return isinstance(tensor, tf.SparseTensor)


def is_distributed(*tensors: Tensor | None) -> bool:
    """False: replicas hold whole arrays, each of its own part of the batch."""
    return False
