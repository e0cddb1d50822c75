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
            "weights. It could flip every gradient.\n"
            f"Received: {int((weights < 0).sum())} negative weights, the lowest "
            f"{weights.min():g}\n"
            "Fix: reduction='sum_over_batch_size' in the loss."
        )
    if np.isnan(weights).any():
        raise ValueError(
            "`sample_weight` must not be NaN.\n"
            f"Received: {int(np.isnan(weights).sum())} NaN weights\n"
            "Fix: sample_weight=0.0 for positions that should not count."
        )


def explain_class_ids(labels: Array, counts: Array, classes: int) -> None:
    """Raises if class ids are fractional or out of range, and says why that may be."""
    with np.errstate(invalid="ignore"):
        bad = counts & ~((labels >= 0) & (labels < classes) & (labels == labels // 1))
    if not bad.any():
        return
    raise ValueError(
        f"`labels` must be class ids from 0 to {classes - 1}, because the logits have "
        f"{classes} classes.\n"
        f"Received: {_some(labels, bad)}\n"
        f"Fix: {_fix_for_class_ids(labels[bad], labels[counts], classes)}"
    )


def explain_distributions(labels: Array, counts: Array, axis: int) -> None:
    """Raises if labels of the logits' shape hold what no distribution holds."""
    counts = np.expand_dims(counts, axis)
    with np.errstate(invalid="ignore"):
        bad = counts & ~((labels >= 0) & (labels < np.inf))
    if bad.any():
        raise ValueError(
            "`labels` of the logits' shape must be distributions over the classes, "
            "finite and not negative.\n"
            f"Received: {_some(labels, bad)}\n"
            "Fix: sample_weight=0 for positions without a label."
        )


def explain_units(labels: Array, counts: Array) -> None:
    """Raises if labels of independent units lie outside of [0, 1]."""
    with np.errstate(invalid="ignore"):
        bad = counts & ~((labels >= 0) & (labels <= 1))
    if not bad.any():
        return
    lowest = np.nanmin(labels[bad]) if not np.isnan(labels[bad]).all() else np.nan
    fix = "labels.astype('bool'), if any positive number means yes."
    if np.isnan(labels[bad]).any():
        fix = "-1 for an unknown label, and ignore_index=-1 in the loss."
    elif lowest < 0:
        fix = f"ignore_index={lowest:g} in the loss, if {lowest:g} is an unknown label."
    raise ValueError(
        "`labels` of a sigmoid must be 0 or 1, or probabilities in between.\n"
        f"Received: {_some(labels, bad)}\n"
        f"Fix: {fix}"
    )


def explain_probabilities(scores: Array, wrong: Array) -> None:
    """Raises if scores that were said to be probabilities cannot be any."""
    if wrong.any():
        raise ValueError(
            "`y_pred` must hold probabilities from 0 to 1, because from_logits=False.\n"
            f"Received: {int(wrong.sum())} of {scores.size} scores outside that range, "
            f"from {scores[wrong].min():g} to {scores[wrong].max():g}\n"
            "Fix: end the model with LogitsHead(units) and omit from_logits.\n"
            "If these are logits of another layer: from_logits=True."
        )


def _fix_for_class_ids(bad: Array, counted: Array, classes: int) -> str:
    if not np.isfinite(bad).all():
        return "sample_weight=0 for positions without a label."
    if (bad != bad // 1).any():
        return "labels.astype('int32'). Class ids are whole numbers."
    if (bad < 0).any():
        lowest = int(bad.min())
        return f"ignore_index={lowest} in the loss, if {lowest} marks padding."
    if bad.max() == classes and not (counted == 0).any():
        return "labels - 1. The labels seem to start at 1."
    highest = int(bad.max())
    head = f"LogitsHead({highest + 1}), if there are {highest + 1} classes."
    if bad.min() < highest:
        return head
    ignore = f"ignore_index={highest} in the loss, if {highest} is to be ignored."
    return f"{ignore}\nOr {head}"


def _some(labels: Array, bad: Array) -> str:
    values = np.unique(labels[bad])
    shown = ", ".join(f"{value:g}" for value in values[:5])
    more = ", ..." if len(values) > 5 else ""
    return f"{int(bad.sum())} bad of {labels.size} labels, with values {shown}{more}"
