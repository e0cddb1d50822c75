"""What has to hold for the demo to end well."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from language_model import Run
from training import EAGER, GRAPH, JITTED, KERAS, Trained

PREDICT = Path(__file__).parent / "predict.py"
LEAST_TOLERANCE = 1e-5
ROUNDING = 1e-6
SAME_CURVE = 1e-3  # over hundreds of steps of Adam, which magnifies rounding


class Check(NamedTuple):
    """A claim, and whether it held."""

    held: bool
    claim: str


def same_curves(results: list[Trained]) -> list[Check]:
    """Our curves are those of Keras with the right flag, on one task.

    Rounding makes Keras differ from itself, jitted against not: three times that
    difference, or 1e-5, is what ours may differ.
    """
    by_way = {result.way: result for result in results}
    right = by_way[KERAS]
    of_keras = by_way[JITTED].from_curve_of(right)
    tolerance = max(LEAST_TOLERANCE, 3 * of_keras)
    checks = []
    for way in (GRAPH, EAGER):
        difference = by_way[way].from_curve_of(right)
        claim = (
            f"{right.task.name}: the curve of {way.name} is that of {KERAS.name}: "
            f"relative difference {difference:.1e}, allowed {tolerance:.1e} "
            f"(Keras jitted: {of_keras:.1e})"
        )
        checks.append(Check(difference <= tolerance, claim))
    return checks


def loads_back(trained: Trained, path: Path) -> Check:
    """A new process reads the saved model, and gets the same logits and loss."""
    rows = trained.task.held_out
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder, "given.npz"), Path(folder, "got.npz")
        np.savez(given, x=rows.x, y=rows.y)
        command = [sys.executable, *map(str, (PREDICT, path, given, got))]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            return Check(False, f"{path.name} did not load:\n{done.stderr.strip()}")
        with np.load(got) as loaded:
            logits, loss = loaded["logits"], float(loaded["loss"])
    expected = trained.model.predict(rows.x, verbose=0)
    difference = float(np.max(np.abs(logits - expected)))
    expected_loss = trained.model.evaluate(*rows, verbose=0)
    held = difference <= ROUNDING * float(np.max(np.abs(expected))) and bool(
        np.isclose(loss, expected_loss, rtol=ROUNDING, atol=0)
    )
    claim = (
        f"{path.name}, loaded in a new process, predicts the same: largest difference "
        f"{difference:.1e} in the logits; loss {loss:.6f}, here {expected_loss:.6f}"
    )
    return Check(held, claim)


def fused_as_plain(fused: Run, plain: Run) -> list[Check]:
    """The fused loss has the plain one's curve, in less memory where that is known."""
    ours, theirs = np.array(fused.losses), np.array(plain.losses)
    difference = float(np.max(np.abs(ours - theirs) / theirs))
    claim = (
        "king james: the fused curve is the plain one: relative difference "
        f"{difference:.1e}, allowed {SAME_CURVE:.1e}"
    )
    made = [Check(difference <= SAME_CURVE, claim)]
    if fused.peak_growth is not None and plain.peak_growth is not None:
        less, more = fused.peak_growth / 2**20, plain.peak_growth / 2**20
        claim = (
            f"king james: the fused loss raised the peak of memory by {less:.0f} MiB, "
            f"the plain one by {more:.0f} MiB"
        )
        made.append(Check(less < more, claim))
    return made
