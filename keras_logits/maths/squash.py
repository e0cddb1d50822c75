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

    def of_products(
        self, products: Tensor, bias: Tensor | None, *, as_quotient: bool = False
    ) -> Tensor:
        """The logits of products, to which a bias may have to be added first.

        As a quotient they are as exact, and cost less where XLA compiles for a CPU.
        """
        if bias is not None:
            products = products + ops.cast(bias, products.dtype)
        logits = self._as_quotient(products) if as_quotient else self.logits(products)
        return self.masked(logits, bias)

    def masked(self, logits: Tensor, bias: Tensor | None) -> Tensor:
        """The logits, -inf where the bias is: a soft-cap would bound these too."""
        if bias is None or self.softcap is None:
            return logits
        closed, none = ops.equal(bias, -float("inf")), -float("inf")
        return ops.where(closed, ops.full((), none, dtype=logits.dtype), logits)

    def past_nan(self, products: Tensor, bias: Tensor | None) -> Tensor:
        """The logits of products; a gradient of 0 by one that is NaN goes back as 0."""
        if self.softcap is None:
            return self.of_products(products, bias)
        unknown = ops.isnan(products)
        known = ops.where(unknown, ops.zeros_like(products), products)
        return ops.where(unknown, products, self.of_products(known, bias))

    def _as_quotient(self, scores: Tensor) -> Tensor:
        """The logits, where the last step of a soft-cap is a division.

        What reads a product, XLA lets multiply by itself if it can, and keeps a second
        array for what cannot. A product after a tanh took 3 to 5 % of the fused pass on
        a CPU, the quotient 1 to 2 %. (On an H200 the product took 2 %, the quotient 7.)
        """
        if self.softcap is None or accurate_dtype(scores.dtype) != "float32":
            return self.logits(scores)
        above, below = _tanh_as_quotient(scores / self.softcap)
        return (self.softcap / self.temperature * above) / below

    def times_slope(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """The gradient by the scores, of one by the logits that they became."""
        if self.softcap is not None:
            share = logits * (self.temperature / self.softcap)
            masked = ops.equal(logits, -float("inf"))
            share = ops.where(masked, ops.ones((), dtype=share.dtype), share)
            gradient = gradient * (1.0 - share * share)
        return gradient if self.temperature == 1.0 else gradient / self.temperature


def _tanh_as_quotient(a: Tensor) -> tuple[Tensor, Tensor]:
    """What to divide by what, to the digits of float32.

    Lambert's continued fraction at a quarter of `a`, where five of its parts are
    enough; then `tanh(2v) = 2 tanh(v) / (1 + tanh(v)^2)`, twice.
    """
    v = ops.clip(a, -10.0, 10.0) / 4.0  # beyond, tanh is 1 in float32
    square = v * v
    above = v * (1.0 + square * (1.0 / 9.0 + square / 945.0))
    below = 1.0 + square * (4.0 / 9.0 + square / 63.0)
    for _ in range(2):
        above, below = 2.0 * above * below, above * above + below * below
    return above, below


def _tanh(a: Tensor) -> Tensor:
    """tanh, in float64 too, which that of Keras rounds to float32 on JAX."""
    if accurate_dtype(a.dtype) == "float32":
        return ops.tanh(a)
    positive = a >= 0
    e = ops.expm1(ops.where(positive, -2.0 * a, 2.0 * a))
    return ops.where(positive, -e, e) / (e + 2.0)
