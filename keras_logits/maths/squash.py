"""What a head does to its scores after the product: soft-cap and temperature."""

from dataclasses import dataclass

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.links import accurate_dtype


@dataclass(frozen=True)
class Squash:
    r"""The map from scores to logits, `z = softcap * tanh(a / softcap) / temperature`.

    Args:
        softcap: the bound of the logits before temperature; None for no bound.
        temperature: the divisor of the logits.
    """

    softcap: float | None = None
    temperature: float = 1.0

    def logits(self, scores: Tensor) -> Tensor:
        if self.softcap is not None:
            scores = self.softcap * _tanh(scores / self.softcap)
        return scores if self.temperature == 1.0 else scores / self.temperature

    def of_products(self, products: Tensor, bias: Tensor | None) -> Tensor:
        """The logits of products, to which a bias may have to be added first."""
        if bias is not None:
            products = products + ops.cast(bias, products.dtype)
        return self.logits(products)

    def times_slope(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """The gradient by the scores, of one by the logits that they became."""
        if self.softcap is not None:
            share = logits * (self.temperature / self.softcap)
            gradient = gradient * (1.0 - share * share)
        return gradient if self.temperature == 1.0 else gradient / self.temperature


def _tanh(a: Tensor) -> Tensor:
    """tanh, in float64 too, which that of Keras rounds to float32 on JAX."""
    if accurate_dtype(a.dtype) == "float32":
        return ops.tanh(a)
    positive = a >= 0
    e = ops.expm1(ops.where(positive, -2.0 * a, 2.0 * a))
    return ops.where(positive, -e, e) / (e + 2.0)
