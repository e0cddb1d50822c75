"""TensorFlow: the gradient in the forward pass, compiled by XLA by itself.

`tf.custom_gradient` is the outermost call and is given every tensor as an argument:
one that closes over tensors inside a `tf.function` loses second derivatives that are
taken from outside of it. Inside, one compiled function maps arrays to value and
gradient; a second custom gradient hands the saved gradient on, and is differentiated
through the closed form only when somebody asks.
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_logits._typing import Tensor
from keras_logits.kernels.contract import (
    Formula,
    counted,
    sum_of_losses,
)

COMPILED_FROM = 2**15
"""Scores in a batch from which XLA pays.

XLA compiles again for every new shape (about 0.1 s). A batch below this size takes
less than a millisecond in any case, so that it is not worth a compilation.
"""


def weighted(
    formula: Formula,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    constants: tuple[Tensor | None, ...],
    summed: bool,
) -> Tensor:
    value = _weighted(formula, constants, summed)(scores, weights, labels)
    if labels.dtype.is_floating:
        # Apart from the rest: a tape runs this backward pass only if it watches the
        # labels, while the other one runs for the scores each time.
        value = value + _labels_alone(formula, constants, summed)(
            labels, tf.stop_gradient(scores), tf.stop_gradient(weights)
        )
    return value


def _weighted(
    formula: Formula, constants: tuple[Tensor | None, ...], summed: bool
) -> Callable[..., Tensor]:
    @tf.custom_gradient
    def run(scores: Tensor, weights: Tensor, labels: Tensor) -> Any:
        value, losses, saved = _compiled(formula, summed)(
            labels, scores, weights, *constants
        )

        def backward(upstream: Tensor) -> tuple[Tensor | None, ...]:
            gradient, found = _differentiable_again(formula, constants)(
                scores, weights, labels, saved, losses
            )
            up = upstream if summed else formula.over_scores(upstream)
            none = tf.zeros_like(found)
            by_weights = upstream * tf.where(weights == 0, none, found)
            return (
                tf.cast(up, gradient.dtype) * gradient,
                _summed_to(by_weights, weights),
                None,
            )

        return value, backward

    return run


def _differentiable_again(
    formula: Formula, constants: tuple[Tensor | None, ...]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """The saved gradient and losses, as functions that can be derived once more."""

    @tf.custom_gradient
    def run(
        scores: Tensor, weights: Tensor, labels: Tensor, saved: Tensor, losses: Tensor
    ) -> Any:
        def backward(by_gradient: Tensor, by_losses: Tensor) -> tuple[Any, ...]:
            inputs = [scores, weights]
            if labels.dtype.is_floating:
                inputs.append(labels)
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                closed = formula.evaluate(labels, scores, weights, *constants)
                along = tf.reduce_sum(
                    tf.cast(by_gradient * closed.gradient, losses.dtype)
                ) + tf.reduce_sum(counted(closed.losses, by_losses))
            slopes = tape.gradient(along, inputs)
            return *slopes, *[None] * (3 - len(slopes)), None, None

        return (saved, losses), backward

    return run


def _labels_alone(
    formula: Formula, constants: tuple[Tensor | None, ...], summed: bool
) -> Callable[..., Tensor]:
    """Zero, with the derivative that the value has by the labels."""

    @tf.custom_gradient
    def run(labels: Tensor, scores: Tensor, weights: Tensor) -> Any:
        def backward(upstream: Tensor) -> tuple[Tensor | None, ...]:
            with tf.GradientTape() as tape:
                tape.watch(labels)
                along = sum_of_losses(
                    formula, labels, scores, weights, constants, upstream
                )
            return tape.gradient(along, labels), None, None

        dtype = tf.float64 if scores.dtype == tf.float64 else tf.float32
        return tf.zeros((), dtype), backward

    return run


@functools.cache
def _compiled(formula: Formula, summed: bool) -> Callable[..., Any]:
    """Value, losses and gradient: by XLA, unless the batch is too small to pay."""

    def run(labels: Tensor, scores: Tensor, weights: Tensor, *constants: Any) -> Any:
        losses, gradient = formula.evaluate(labels, scores, weights, *constants)
        value = counted(losses, weights)
        return tf.reduce_sum(value) if summed else value, losses, gradient

    by_xla = tf.function(run, jit_compile=True, reduce_retracing=True)
    as_graph = tf.function(run, reduce_retracing=True)

    def choose(labels: Tensor, scores: Tensor, *rest: Any) -> Any:
        size = scores.shape.num_elements()
        if size is None:
            return tf.cond(
                tf.size(scores) >= COMPILED_FROM,
                lambda: by_xla(labels, scores, *rest),
                lambda: as_graph(labels, scores, *rest),
            )
        return (by_xla if size >= COMPILED_FROM else as_graph)(labels, scores, *rest)

    return choose


def _summed_to(tensor: Tensor, like: Tensor) -> Tensor:
    """The gradient of what was broadcast: summed over the axes that it was along."""
    axes = [i for i, size in enumerate(like.shape) if size == 1]
    kept = [i for i in axes if tensor.shape[i] != 1]
    return tf.reduce_sum(tensor, axis=kept, keepdims=True) if kept else tensor


def matmul(features: Tensor, kernel: Tensor) -> Tensor:
    """A product that is accumulated, and returned, in at least float32."""
    dtype = tf.float64 if features.dtype == tf.float64 else tf.float32
    return tf.matmul(tf.cast(features, dtype), tf.cast(kernel, dtype))


def total_over_replicas(total: Tensor) -> Tensor:
    """The sum over all replicas of a strategy, so that they act as one batch."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return total
    return context.all_reduce(tf.distribute.ReduceOp.SUM, total)


def is_concrete(tensor: Tensor) -> bool:
    return tf.executing_eagerly() and not tf.is_symbolic_tensor(tensor)
