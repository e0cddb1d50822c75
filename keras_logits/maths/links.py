"""Between logits and probabilities."""

from typing import Any, get_args

import keras
from keras import ops

from keras_logits._typing import Activation, Returns, Tensor
from keras_logits.maths.shapes import checked_axis
from keras_logits.symbolic import symbolic_too

ACTIVATIONS = get_args(Activation)


def check_activation(activation: object) -> Activation:
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            "`activation` must be 'softmax' (one class among several) or 'sigmoid' "
            "(independent yes/no units).\n"
            f"Received: activation={activation!r}\n"
            "Fix: activation='softmax', or activation='sigmoid'.\n"
            "For another activation: keras.layers.Dense(units, activation=...)."
        )
    return activation  # type: ignore[return-value]


def check_returns(returns: Any) -> str:
    if not isinstance(returns, str) or returns not in get_args(Returns):
        raise ValueError(
            "`returns` must be 'logits' or 'probabilities'.\n"
            f"Received: returns={returns!r}\n"
            "Fix: returns='probabilities', if predict() is to return probabilities."
        )
    return str(returns)


def check_softmax(shape: Any, axis: int, fix: str) -> None:
    """Refuses a softmax over fewer than two classes, if it is known how many."""
    if shape[axis] in (0, 1):
        raise ValueError(
            "`logits` of a softmax must have at least 2 classes. The softmax of a "
            "single class is always 1.\n"
            f"Received: shape {tuple(shape)}, with axis={axis}\n"
            f"Fix: {fix}"
        )


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that."""
    return ops.cast(tensor, accurate_dtype(tensor.dtype))


def accurate_dtype(*dtypes: Any) -> str:
    """float64 if one of them is that, else float32.

    Not `keras.backend.result_type`, which knows no float64 on JAX and torch.
    """
    names = [keras.backend.standardize_dtype(dtype) for dtype in dtypes]
    return "float64" if "float64" in names else "float32"


@symbolic_too
def logit(p: Tensor) -> Tensor:
    r"""The log-odds of a probability, the inverse of the sigmoid.

    $$\operatorname{logit}(p) = \log \frac{p}{1 - p}$$

    It is computed as `log(p) - log1p(-p)`, which is accurate for tiny p. The result is
    0 at p = 0.5, negative below and positive above, -inf at 0 and +inf at 1. Outside
    [0, 1] it is NaN.

    Args:
        p: `[...]`, probabilities; half precision is computed in float32.

    Returns:
        `[...]`, logits, float32 (float64 for float64 input).

    Example:
        >>> logit([0.5, 0.9])
        [0.0, 2.1972246]

    Source:
        J. Berkson, "Application of the logistic function to bio-assay", Journal of
        the American Statistical Association 39 (1944), which introduced the word.

    See also:
        `probabilities`, which is the inverse with `activation="sigmoid"`.
    """
    p = at_least_float32(as_float(p))
    return ops.log(p) - ops.log1p(-p)


@symbolic_too
def probabilities(
    logits: Tensor, activation: Activation = "softmax", *, axis: int = -1
) -> Tensor:
    r"""Converts logits to probabilities, with softmax or sigmoid.

    $$\operatorname{softmax}(z)_k = e^{z_k} / \sum_j e^{z_j}, \qquad
      \operatorname{sigmoid}(z) = 1 / (1 + e^{-z})$$

    Args:
        logits: `[..., K]` for softmax, `[...]` for sigmoid; half precision is
            computed in float32.
        activation: "softmax" for one class among K, "sigmoid" for independent units.
        axis: the axis of the classes (softmax only).

    Returns:
        Probabilities in the shape of the logits, float32 (float64 for float64 input). A
        logit of -inf has probability 0. A softmax sums to 1 along `axis`.

    Raises:
        ValueError: if `activation` is neither "softmax" nor "sigmoid", or if a softmax
            has fewer than two classes.

    Example:
        >>> probabilities([2.1972246], "sigmoid")
        [0.9]

    See also:
        `logit`, the inverse of the sigmoid.
    """
    check_activation(activation)
    logits = at_least_float32(as_float(logits))
    if activation == "sigmoid":
        return ops.sigmoid(logits)
    axis = checked_axis(axis, logits.shape)
    fix = "probabilities(logits, 'sigmoid'), for yes/no units."
    check_softmax(logits.shape, axis, fix)
    return ops.softmax(logits, axis=axis)


def as_float(values: Tensor) -> Tensor:
    """A tensor of floats; integers become Keras' float type."""
    tensor = ops.convert_to_tensor(values)
    if not keras.backend.is_float_dtype(tensor.dtype):
        return ops.cast(tensor, keras.config.floatx())
    return tensor
