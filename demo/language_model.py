"""Train the language model in a process of its own, whose memory is its own too.

    python demo/language_model.py WAY GOT.json

WAY is "fused" or "plain"; GOT will hold the figures of the run.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from quiet import quiet_stderr

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

with quiet_stderr():
    import tensorflow as tf  # noqa: F401

import keras

import king_james
from keras_logits import LogitsHead, SoftmaxCrossEntropy
from king_james import LENGTH, Sequences

FUSED: dict[str, Literal["auto"] | bool] = {"fused": "auto", "plain": False}
WIDTH = 64
BATCH = 64  # sequences
STEPS, EPOCHS = 10, 15
HELD_OUT_STEPS = 10
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Run:
    """What a run was, and what came of it; one figure for each epoch in the lists."""

    way: str
    words: int
    losses: list[float]
    perplexities: list[float]
    accuracies: list[float]
    held_out_perplexity: float
    tokens_per_second: float
    peak_growth: int | None  # bytes; None where the system does not tell

    @property
    def tokens(self) -> list[int]:
        """Tokens seen at the end of each epoch."""
        return [(k + 1) * STEPS * BATCH * LENGTH for k in range(len(self.losses))]


def train(way: str) -> Run:
    text = king_james.read()
    keras.utils.set_random_seed(0)  # the same weights; the order is that of the text
    model = compiled(len(text.vocabulary), FUSED[way])
    progress = Progress(way)
    before = peak_memory()
    history = model.fit(
        batches(text.train),
        shuffle=False,
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[progress],
    ).history
    after = peak_memory()
    found = model.evaluate(
        batches(text.held_out), steps=HELD_OUT_STEPS, verbose=0, return_dict=True
    )
    progress.close()
    return Run(
        way,
        len(text.vocabulary),
        history["loss"],
        history["word_perplexity"],
        history["word_accuracy"],
        found["word_perplexity"],
        STEPS * BATCH * LENGTH / statistics.median(progress.seconds),
        None if before is None or after is None else after - before,
    )


def compiled(words: int, fused: Literal["auto"] | bool) -> Any:
    layers = [
        keras.Input((LENGTH,), dtype="int32"),
        keras.layers.Embedding(words, WIDTH),
        keras.layers.Conv1D(WIDTH, 5, padding="causal", activation="tanh"),
        LogitsHead(words, reports=["accuracy", "perplexity"], name="word"),
    ]
    model = keras.Sequential(layers)
    loss = SoftmaxCrossEntropy(fused=fused)
    model.compile(keras.optimizers.Adam(3e-3), loss=loss, jit_compile=True)
    return model


def batches(sequences: Sequences) -> Iterator[Sequences]:
    while True:
        for start in range(0, len(sequences.words) - BATCH + 1, BATCH):
            yield Sequences(*(part[start : start + BATCH] for part in sequences))


def peak_memory() -> int | None:
    """The highest resident set of this process so far, in bytes."""
    if not STATUS.exists():
        return None
    (line,) = (x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class Progress(keras.callbacks.Callback):
    """The seconds of each epoch, and one line on the screen."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.title = f"{'king james':12}{f'fused={FUSED[way]!r}':14}"
        self.seconds: list[float] = []
        self.line = ""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.seconds.append(time.perf_counter() - self.start)
        self.line = (
            f"{self.title}epoch {epoch + 1:2}/{EPOCHS}  loss {logs['loss']:8.5f}  "
            f"perplexity {logs['word_perplexity']:7.1f}  "
            f"accuracy {logs['word_accuracy']:.3f}"
        )
        if sys.stdout.isatty():
            print(f"\r{self.line}", end="", flush=True)

    def close(self) -> None:
        start = "\r" if sys.stdout.isatty() else ""
        print(f"{start}{self.line}  {sum(self.seconds):5.1f} s", flush=True)


if __name__ == "__main__":
    run = train(sys.argv[1])
    Path(sys.argv[2]).write_text(json.dumps(asdict(run)))
