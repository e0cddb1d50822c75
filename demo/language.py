"""The demo's third task: one language model, its loss fused and plain."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import checks
import picture
import table
from language_model import FUSED, Run

SCRIPT = Path(__file__).parent / "language_model.py"
COLUMNS = {
    "task": "s",
    "loss": "s",
    "final loss": ".6f",
    "perplexity": ".1f",
    "accuracy": ".4f",
    "held-out perplexity": ".1f",
    "tokens/s": ".0f",
    "peak memory, MiB": "s",
}
NOTES = """\
perplexity    mean of the last epoch, from the head's report, as is accuracy
tokens/s      of the median epoch of fit
peak memory   how far the peak of the resident set rose in fit, compilation included,
              in a process of its own"""


def trained_and_checked(output: Path) -> list[checks.Check]:
    runs = [in_own_process(way) for way in FUSED]
    table.write_csv(
        [row for run in runs for row in epochs(run)], output / "language-model.csv"
    )
    picture.draw_language(runs, output / "language-model.png")
    print(f"\n{table.as_text([summary(run) for run in runs], COLUMNS)}\n\n{NOTES}")
    return checks.fused_as_plain(*runs)


def in_own_process(way: str) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        got = Path(folder, "got.json")
        subprocess.run([sys.executable, str(SCRIPT), way, str(got)], check=True)
        return Run(**json.loads(got.read_text()))


def epochs(run: Run) -> list[table.Row]:
    """What goes into the file: a row for each epoch."""
    curves = zip(run.tokens, run.losses, run.perplexities, run.accuracies, strict=True)
    return [
        {
            **{"task": "king james", "loss": run.way, "tokens": tokens},
            **{"training loss": loss, "perplexity": perplexity, "accuracy": accuracy},
            "tokens per second": run.tokens_per_second,
            "peak memory in bytes": "" if run.peak_growth is None else run.peak_growth,
        }
        for tokens, loss, perplexity, accuracy in curves
    ]


def summary(run: Run) -> table.Row:
    peak = run.peak_growth
    return {
        "task": "king james",
        "loss": run.way,
        "final loss": run.losses[-1],
        "perplexity": run.perplexities[-1],
        "accuracy": run.accuracies[-1],
        "held-out perplexity": run.held_out_perplexity,
        "tokens/s": run.tokens_per_second,
        "peak memory, MiB": "?" if peak is None else f"{peak / 2**20:.0f}",
    }
