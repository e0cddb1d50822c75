"""What is wrong with a batch whose loss came out NaN, said so that one can mend it.

Nothing is checked ahead: a bad label makes the loss NaN, and only then, in eager code,
is the batch looked at. Good batches pay for one comparison.
"""

import numpy as np

Array = np.ndarray


def explain_weights(weights: Array, reduction: object) -> None:
    """Raises on weights that no mean can be divided by, and on NaN."""
    if reduction == "mean_with_sample_weight" and (weights < 0).any():
        raise ValueError(
            "`sample_weight` must not be negative under a mean that divides by the "
            "weights: it would flip every gradient. Received: "
            f"{int((weights < 0).sum())} negative weights, the lowest "
            f"{weights.min():g}. Write reduction='sum_over_batch_size' in the loss."
        )
    if np.isnan(weights).any():
        raise ValueError(
            f"`sample_weight` must not be NaN. Received: {int(np.isnan(weights).sum())}"
            " NaN weights. Write 0.0 for a position that is not to count."
        )


def explain_class_ids(labels: Array, counts: Array, classes: int) -> None:
    """Raises if class ids are fractional or out of range, and says why that may be."""
    with np.errstate(invalid="ignore"):
        bad = counts & ~((labels >= 0) & (labels < classes) & (labels == labels // 1))
    if not bad.any():
        return
    raise ValueError(
        f"`labels` must be class ids from 0 to {classes - 1}, since the logits have "
        f"{classes} classes. Received: {_some(labels, bad)}. "
        f"{_reason_for_class_ids(labels[bad], labels[counts], classes)}"
    )


def explain_distributions(labels: Array, counts: Array, axis: int) -> None:
    """Raises if labels of the logits' shape hold what no distribution holds."""
    counts = np.expand_dims(counts, axis)
    with np.errstate(invalid="ignore"):
        bad = counts & ~((labels >= 0) & (labels < np.inf))
    if bad.any():
        raise ValueError(
            "`labels` of the logits' shape are distributions over the classes: finite "
            f"and not negative. Received: {_some(labels, bad)}. Write "
            "sample_weight=0 for positions that have no label."
        )


def explain_units(labels: Array, counts: Array) -> None:
    """Raises if labels of independent units lie outside of [0, 1]."""
    with np.errstate(invalid="ignore"):
        bad = counts & ~((labels >= 0) & (labels <= 1))
    if not bad.any():
        return
    lowest = np.nanmin(labels[bad]) if not np.isnan(labels[bad]).all() else np.nan
    remedy = "Write labels.astype('bool') if any positive number means yes."
    if np.isnan(labels[bad]).any():
        remedy = "For an unknown label write -1, and ignore_index=-1 in the loss."
    elif lowest < 0:
        remedy = f"If {lowest:g} marks an unknown label, write ignore_index={lowest:g}."
    raise ValueError(
        "`labels` of a sigmoid must be 0 or 1, or probabilities between. Received: "
        f"{_some(labels, bad)}. {remedy}"
    )


def explain_probabilities(scores: Array, wrong: Array) -> None:
    """Raises if scores that were said to be probabilities cannot be any."""
    if wrong.any():
        raise ValueError(
            "`y_pred` must hold probabilities, from 0 to 1, since from_logits=False "
            f"says so. Received: {int(wrong.sum())} of {scores.size} scores outside of "
            f"that range, from {scores[wrong].min():g} to {scores[wrong].max():g}. If "
            "these are logits, end the model with LogitsHead(units) and leave "
            "from_logits out, or write from_logits=True."
        )


def _reason_for_class_ids(bad: Array, counted: Array, classes: int) -> str:
    if not np.isfinite(bad).all():
        return "Write sample_weight=0 for positions that have no label."
    if (bad != bad // 1).any():
        return "Class ids are whole numbers: write labels.astype('int32')."
    if (bad < 0).any():
        lowest = int(bad.min())
        return f"If {lowest} marks padding, write ignore_index={lowest} in the loss."
    if bad.max() == classes and not (counted == 0).any():
        return "The labels seem to start at 1: write labels - 1."
    highest = int(bad.max())
    head = f"LogitsHead({highest + 1}) if that many classes exist"
    if bad.min() < highest:
        return f"Write {head}."
    return f"Write ignore_index={highest} if it marks what is to be ignored, or {head}."


def _some(labels: Array, bad: Array) -> str:
    values = np.unique(labels[bad])
    shown = ", ".join(f"{value:g}" for value in values[:5])
    more = ", ..." if len(values) > 5 else ""
    return f"{int(bad.sum())} bad of {labels.size} labels, with values {shown}{more}"
