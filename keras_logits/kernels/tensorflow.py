"""TensorFlow: the gradient in the forward pass, compiled by XLA by itself.

`tf.custom_gradient` is the outermost call and is given every tensor as an argument:
one that closes over tensors inside a `tf.function` loses second derivatives that are
taken from outside of it. Inside, one compiled function maps arrays to value and
gradient; a second custom gradient hands the saved gradient on, and is differentiated
through the closed form only when somebody asks.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record  # no public name tells what tapes watch

from keras_logits._typing import Tensor
from keras_logits.kernels.chunk import Verbs
from keras_logits.kernels.contract import (
    NO_SECOND_DERIVATIVE,
    Formula,
    Linear,
    counted,
    gradient_of_scores,
    sum_of_losses,
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
from keras_logits.maths.links import accurate_dtype

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
    value = _by_scores(formula, constants, summed)(scores, weights, labels)
    shape = () if summed else tf.shape(value)
    rest = _by_the_rest(formula, constants, scores, shape)
    # Apart from the rest: a tape runs this backward pass only if it watches weights or
    # labels, while the other one runs in every training step. Eagerly it would run for
    # the scores as well, were they an argument; a graph drops what nobody asks for.
    return value + (
        rest(weights, labels)
        if tf.executing_eagerly()
        else rest(weights, labels, scores)
    )


def _by_scores(
    formula: Formula, constants: tuple[Tensor | None, ...], summed: bool
) -> Any:
    """The value, with its derivative by the scores."""

    @tf.custom_gradient
    def run(scores: Tensor, weights: Tensor, labels: Tensor) -> Any:
        arguments = (labels, scores, weights, *constants)
        with record.stop_recording():
            value, saved = _compiled(formula, summed, _ranks(arguments))(*arguments)

        def backward(upstream: Tensor) -> tuple[Tensor | None, ...]:
            batch = [scores, weights, labels, saved, *constants]
            if not tf.executing_eagerly():
                # A backward graph that is derived again may use only what is in it.
                batch = [None if x is None else tf.identity(x) for x in batch]
            gradient = _derived_again(formula, tuple(batch[4:]))(*batch[:4])
            if not (summed and _is_one(upstream)):
                up = upstream if summed else formula.over_scores(upstream)
                gradient = up * gradient
            return tf.cast(gradient, scores.dtype), None, None

        return value, backward

    return run


def _is_one(upstream: Tensor) -> bool:
    """Whether a product with it can be spared; not asked where that would wait."""
    waits = is_concrete(upstream) and "CPU" not in upstream.device
    if waits or _is_watched(upstream):
        return False
    known = tf.get_static_value(upstream)
    return known is not None and known == 1


def _derived_again(formula: Formula, constants: tuple[Tensor | None, ...]) -> Any:
    """The saved gradient, whose own derivatives are those of its closed form."""

    @tf.custom_gradient
    def run(scores: Tensor, weights: Tensor, labels: Tensor, saved: Tensor) -> Any:
        def backward(upstream: Tensor) -> tuple[Tensor | None, ...]:
            arguments = (upstream, scores, weights, labels, *constants)
            return *_along(formula, _ranks(arguments))(*arguments), None

        return saved, backward

    return run


@functools.cache
def _along(formula: Formula, ranks: tuple[int | None, ...]) -> Any:
    """The derivatives of the closed form along a direction.

    A function of its own, because forward mode does not see through a tape that a
    backward pass opens.
    """
    return _function(functools.partial(_derivatives, formula))


def _derivatives(
    formula: Formula,
    upstream: Tensor,
    scores: Tensor,
    weights: Tensor,
    labels: Tensor,
    *constants: Tensor | None,
) -> list[Tensor | None]:
    inputs = [scores, weights, labels]
    with tf.GradientTape() as tape:
        tape.watch([x for x in inputs if x.dtype.is_floating])
        closed = gradient_of_scores(formula, labels, scores, weights, constants)
        along = tf.reduce_sum(upstream * closed)
    found: list[Tensor | None] = tape.gradient(along, inputs)
    return found


def _by_the_rest(
    formula: Formula,
    constants: tuple[Tensor | None, ...],
    scores: Tensor,
    shape: Any,
) -> Any:
    """Zeros, with the derivatives that the value has by weights and labels."""

    @tf.custom_gradient
    def run(weights: Tensor, labels: Tensor, *passed: Tensor) -> Any:
        z = passed[0] if passed else scores

        def backward(upstream: Tensor) -> tuple[Tensor | None, ...]:
            inputs = [weights, labels]
            with tf.GradientTape() as tape:
                tape.watch([x for x in inputs if x.dtype.is_floating])
                along = sum_of_losses(formula, labels, z, weights, constants, upstream)
            return *tape.gradient(along, inputs), *[None for _ in passed]

        return tf.zeros(shape, weights.dtype), backward

    return run


def _ranks(tensors: tuple[Tensor | None, ...]) -> tuple[int | None, ...]:
    return tuple(None if x is None else x.shape.rank for x in tensors)


def _function(run: functools.partial[Any], **options: Any) -> Callable[..., Any]:
    """A compiled function, of a partial.

    TensorFlow counts tracings by the code that they are of, and would warn that one
    function was traced for each formula. A partial is counted by itself.

    Loops are said by `keras.ops`: AutoGraph would find none, and keep what it rewrote.
    """
    function: Callable[..., Any] = tf.function(
        run, reduce_retracing=True, autograph=False, **options
    )
    return function


def _value_and_gradient(
    formula: Formula,
    summed: bool,
    labels: Tensor,
    scores: Tensor,
    weights: Tensor,
    *constants: Tensor | None,
) -> tuple[Tensor, Tensor]:
    losses, gradient = formula.evaluate(labels, scores, weights, *constants)
    value = counted(losses, weights)
    return tf.reduce_sum(value) if summed else value, gradient


@functools.cache
def _compiled(
    formula: Formula, summed: bool, ranks: tuple[int | None, ...]
) -> Callable[..., Any]:
    """Value and gradient: by XLA, unless the batch is too small to pay.

    One for all sizes, but for each set of ranks: a trace that TensorFlow relaxed from
    two of them would know no rank at all.
    """
    run = functools.partial(_value_and_gradient, formula, summed)
    by_xla, as_graph = _function(run, jit_compile=True), _function(run)

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


def weighted_linear(
    formula: LinearFormula,
    labels: Tensor,
    linear: Linear,
    weights: Tensor,
    class_weights: Tensor | None,
    summed: bool,
) -> tuple[Tensor, Tensor | None]:
    """The losses of a fused pass; their gradients come with them if a tape watches.

    A tape outside of the graph that this is traced in is not seen from here: then the
    backward pass goes over all tokens again.
    """
    linear = Linear(*(None if x is None else read(x) for x in linear))
    wanted = Wanted(*(x is not None and _is_watched(x) for x in linear))
    at_once = wanted if summed else NOTHING
    features, kernel, bias = linear
    bias = () if bias is None else (bias,)

    @tf.custom_gradient
    def run(weights: Tensor, features: Tensor, kernel: Tensor, *bias: Tensor) -> Any:
        given = Linear(features, kernel, bias[0] if bias else None)
        with record.stop_recording():
            compiled = _compiled_pass(formula, at_once)
            found = compiled(given, labels, weights, class_weights)

        def backward(upstream: Tensor, *_: Tensor) -> list[Tensor | None]:
            gradients, up = found.gradients, upstream
            if not any(at_once):
                asked = wanted if any(wanted) else Wanted(True, True, bool(bias))
                up = tf.ones((), upstream.dtype)
                with record.stop_recording():
                    again = _compiled_pass(replace(formula, figures=()), asked)
                    batch = (given, labels, weights * upstream, class_weights)
                    gradients = again(*batch).gradients
            inputs = [weights, features, kernel, *bias]
            return [
                None if g is None else _not_again(tf.cast(u * g, x.dtype), *inputs)
                for x, u, g in [
                    (weights, upstream, found.losses),
                    *((x, up, g) for x, g in zip(inputs[1:], gradients, strict=False)),
                ]
            ]

        values = counted(found.losses, weights)
        value = tf.reduce_sum(values) if summed else values
        return (value, *([found.figures] if formula.figures else [])), backward

    found = run(weights, features, kernel, *bias)
    return found[0], found[1] if formula.figures else None


def _is_watched(tensor: Tensor) -> bool:
    return bool(record.should_record_backprop([tensor]))


@tf.custom_gradient
def _not_again(gradient: Tensor, *_: Tensor) -> Any:
    """The gradient itself, which refuses to be differentiated once more."""

    def backward(upstream: Tensor) -> None:
        raise ValueError(NO_SECOND_DERIVATIVE)

    return gradient, backward


@functools.cache
def _compiled_pass(formula: LinearFormula, wanted: Wanted) -> Any:
    verbs = Verbs(matmul, accurate_dtype, _add_rows)
    run = functools.partial(_pass_over, formula, wanted, verbs)
    # By XLA always: TensorFlow's own loops copy what they add to at each step.
    return _function(run, jit_compile=True)


def _pass_over(
    formula: LinearFormula,
    wanted: Wanted,
    verbs: Verbs,
    linear: Linear,
    labels: Tensor,
    weights: Tensor,
    class_weights: Tensor | None,
) -> Found:
    """The pass, with a token of weight 0 in a batch that turns out to be empty.

    XLA cannot compile what takes rows of such a batch.
    """
    tokens = tf.shape(weights)[0]
    missing = tf.cast(tokens < 1, "int32")

    def filled(rows: Tensor) -> Tensor:
        return tf.pad(rows, [[0, missing], *([0, 0] for _ in rows.shape[1:])])

    rows = linear._replace(features=filled(linear.features))
    batch = (rows, filled(labels), filled(weights), class_weights)
    losses, gradients, seen = pass_over(formula, wanted, verbs, *batch)
    if gradients.features is not None:
        gradients = gradients._replace(features=gradients.features[:tokens])
    return Found(losses[:tokens], gradients, None if seen is None else seen[:tokens])


def _add_rows(into: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return tf.tensor_scatter_nd_add(into, rows[:, None], values)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, which takes tensors alone, by XLA."""
    by_xla: Callable[..., Tensor] = tf.function(
        function, autograph=False, jit_compile=True
    )
    return by_xla


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


def read(variable: Tensor) -> Tensor:
    """What a variable holds now. Keras gives the variable itself, not its value.

    A graph that held the variable would keep the weights for ever.
    """
    return tf.convert_to_tensor(variable)


def device() -> str:
    return "accelerator" if tf.config.get_visible_devices("GPU") else "cpu"


def is_concrete(tensor: Tensor) -> bool:
    return tf.executing_eagerly() and not tf.is_symbolic_tensor(tensor)


def is_sparse(tensor: Tensor) -> bool:
    return isinstance(tensor, tf.SparseTensor)


def is_distributed(*tensors: Tensor | None) -> bool:
    """False: replicas hold whole arrays, each of its own part of the batch."""
    return False
