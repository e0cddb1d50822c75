"""Figures that a head shows in training, filled by the loss from its own pass.

A metric of `compile` reads the predictions, and so has all logits made for it. These
are read where the loss has them anyway, a chunk at a time if it is fused.
"""

from typing import Any

from keras import ops

from keras_logits._typing import Tensor
from keras_logits.maths.figures import FIGURES, INVALID, OF_UNITS


def checked_reports(reports: Any, activation: str) -> tuple[str, ...]:
    known = FIGURES if activation == "softmax" else OF_UNITS
    good = isinstance(reports, list | tuple) and all(
        isinstance(name, str) and name in known for name in reports
    )
    if not good or len(set(reports)) < len(reports):
        raise ValueError(
            f"`reports` must be a list of distinct names from {known} for a "
            f"{activation}.\n"
            f"Received: reports={reports!r}\n"
            "Fix: reports=['accuracy']"
        )
    return tuple(reports)


class ExponentialOfMean:
    """The exponential of a mean: a perplexity, from cross-entropies."""

    def result(self) -> Tensor:
        return ops.exp(super().result())  # type: ignore[misc]


class Reports:
    """The trackers behind a head's reports, in the order of their names."""

    def __init__(self, names: tuple[str, ...], head: Any) -> None:
        self.names = names
        metrics = head._keras.metrics
        kinds = {"perplexity": head._exponential_of_mean, INVALID: metrics.Sum}
        self.trackers = [
            kinds.get(name, metrics.Mean)(name=f"{head.name}_{name}") for name in names
        ]

    def update(self, figures: Tensor, weights: Tensor) -> None:
        """Adds a batch: figures `[..., 1 + names]`, weights `[...]`."""
        invalid = figures[..., 0]
        counted = ops.cast(ops.not_equal(weights, 0), weights.dtype)
        good = weights * (1.0 - invalid)
        for column, (name, tracker) in enumerate(
            zip(self.names, self.trackers, strict=True), start=1
        ):
            weight = counted if name == INVALID else good
            # Selected, so that NaN behind a mask stays there.
            figure = figures[..., column]
            figure = ops.where(ops.equal(weight, 0), ops.zeros_like(figure), figure)
            tracker.update_state(figure, sample_weight=weight)
