"""Value and gradients of a function of arrays, on each backend, in each mode."""

import functools

import keras
from keras import ops

BACKEND = keras.config.backend()
MODES = {
    "tensorflow": ["eager", "graph", "jit"],
    "jax": ["eager", "jit"],
    "torch": ["eager"],
}[BACKEND]


def value_and_gradients(function, arrays, mode="eager"):
    """As NumPy arrays; 0 where a backend says that there is none."""
    tensors = [ops.convert_to_tensor(array) for array in arrays]
    run = {"tensorflow": by_tensorflow, "jax": by_jax, "torch": by_torch}[BACKEND]
    value, found = run(function, tensors, mode)
    pairs = zip(tensors, found, strict=True)
    return numpy_of(value), [numpy_of(0 * t if g is None else g) for t, g in pairs]


def gradients(function, arrays, mode="eager"):
    return value_and_gradients(function, arrays, mode)[1]


def by_tensorflow(function, tensors, mode):
    import tensorflow as tf

    def run(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        return value, tape.gradient(value, tensors)

    if mode != "eager":
        run = tf.function(run, jit_compile=mode == "jit", autograph=False)
    return run(*tensors)


def by_jax(function, tensors, mode):
    import jax

    run = jax.value_and_grad(function, tuple(range(len(tensors))))
    return (jax.jit(run) if mode == "jit" else run)(*tensors)


def by_torch(function, tensors, mode):
    import torch

    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = function(*tensors)
    return value, torch.autograd.grad(value, tensors, allow_unused=True)


def derived_again(function, arrays, by, then, vector, mode="eager"):
    """The gradient by argument `then` of the gradient by `by`, times a vector."""

    def along(*tensors):
        return ops.sum(ops.multiply(vector, gradient_of(function, by)(*tensors)))

    return gradients(along, arrays, mode)[then]


def gradient_of(function, by):
    """One gradient as a function, which can be differentiated again."""
    if BACKEND == "jax":
        import jax

        return jax.grad(function, by)
    return functools.partial(_gradient, function, by)


def _gradient(function, by, *tensors):
    if BACKEND == "torch":
        import torch

        return torch.autograd.grad(function(*tensors), tensors[by], create_graph=True)[
            0
        ]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensors[by])
        value = function(*tensors)
    return tape.gradient(value, tensors[by])


def numpy_of(tensor):
    return ops.convert_to_numpy(tensor.detach() if BACKEND == "torch" else tensor)
