"""TensorFlow, where the logits are a tensor: the gradient in the forward pass, by XLA.

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
from tensorflow.python.eager import context, record  # no public name tells as much

from keras_logits._typing import Tensor
from keras_logits.kernels.contract import (
    Formula,
    counted,
    evaluated_again,
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
            upstream = shaped(upstream, value.shape)
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


def shaped(upstream: Tensor, shape: Any) -> Tensor:
    """What comes from above, in the shape of what it is a gradient by.

    Not every operation tells the shape of its own gradient: `tf.py_function` does not.
    """
    known = upstream.shape.rank is not None
    return upstream if known else tf.ensure_shape(upstream, shape)


def _is_one(upstream: Tensor) -> bool:
    """Whether a product with it can be spared; not asked where that would wait."""
    waits = is_concrete(upstream) and "CPU" not in upstream.device
    if waits or is_watched(upstream):
        return False
    known = tf.get_static_value(upstream)
    return known is not None and known == 1


def _derived_again(formula: Formula, constants: tuple[Tensor | None, ...]) -> Any:
    """The saved gradient, whose own derivatives are those of its closed form."""

    @tf.custom_gradient
    def run(scores: Tensor, weights: Tensor, labels: Tensor, saved: Tensor) -> Any:
        def backward(upstream: Tensor) -> tuple[Tensor | None, ...]:
            upstream = shaped(upstream, saved.shape)
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
    return function(functools.partial(_derivatives, formula))


def _derivatives(
    formula: Formula,
    upstream: Tensor,
    scores: Tensor,
    weights: Tensor,
    labels: Tensor,
    *constants: Tensor | None,
) -> list[Tensor | None]:
    def along() -> Tensor:
        closed = evaluated_again(formula, labels, scores, weights, constants)
        return tf.reduce_sum(upstream * closed.gradient)

    return _derived(along, [scores, weights, labels])


def _derived(total: Callable[[], Tensor], inputs: list[Tensor]) -> list[Tensor | None]:
    """The gradients of a total, taken inside of a function that TensorFlow keeps.

    Where forward mode is the first to ask, tapes record nothing while that function is
    traced, and there would be no gradients in it from then on.
    """
    if not tf.executing_eagerly():
        found: list[Tensor | None] = tf.gradients(total(), inputs)
        return found
    with tf.GradientTape() as tape:
        tape.watch([x for x in inputs if x.dtype.is_floating])
        along = total()
    found = tape.gradient(along, inputs)
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
            upstream = shaped(upstream, zeros.shape)
            arguments = (upstream, z, weights, labels, *constants)
            found = _along_the_rest(formula, _ranks(arguments))(*arguments)
            return *found, *[None for _ in passed]

        zeros = tf.zeros(shape, weights.dtype)
        return zeros, backward

    return run


@functools.cache
def _along_the_rest(formula: Formula, ranks: tuple[int | None, ...]) -> Any:
    return function(functools.partial(_derivatives_by_the_rest, formula))


def _derivatives_by_the_rest(
    formula: Formula,
    upstream: Tensor,
    scores: Tensor,
    weights: Tensor,
    labels: Tensor,
    *constants: Tensor | None,
) -> list[Tensor | None]:
    def along() -> Tensor:
        return sum_of_losses(formula, labels, scores, weights, constants, upstream)

    return _derived(along, [weights, labels])


def _ranks(tensors: tuple[Tensor | None, ...]) -> tuple[int | None, ...]:
    return tuple(None if x is None else x.shape.rank for x in tensors)


def function(run: functools.partial[Any], **options: Any) -> Callable[..., Any]:
    """A compiled function, of a partial.

    TensorFlow counts tracings by the code that they are of, and would warn that one
    function was traced for each formula. A partial is counted by itself.

    Loops are said by `keras.ops`: AutoGraph would find none, and keep what it rewrote.
    """
    options = {"reduce_retracing": True, "autograph": False, **options}
    return unseen(tf.function(run, **options))


def unseen(made: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled function, whose inside no tool is shown that calls back for each op.

    `tf.debugging.enable_check_numerics` would add operations that XLA does not know,
    and stop at the infinities that logits are compared with. It sees what comes out.
    """

    def called(*arguments: Any) -> Any:
        state = context.context()
        before, state.invoking_op_callbacks = state.invoking_op_callbacks, True
        try:
            return made(*arguments)
        finally:
            state.invoking_op_callbacks = before

    return called


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
    by_xla, as_graph = function(run, jit_compile=True), function(run)

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


def is_watched(tensor: Tensor) -> bool:
    return bool(record.should_record_backprop([tensor]))


def is_concrete(tensor: Tensor) -> bool:
    if tf.is_symbolic_tensor(tensor):
        return False
    # A tensor that was made outside of a graph has its values inside of it as well.
    return tf.executing_eagerly() or isinstance(tensor, tf.Tensor)
