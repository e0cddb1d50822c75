"""How many tokens the fused pass takes at a time, and why."""

import math
import warnings
from dataclasses import dataclass

DEFAULT_BUDGET = 2**28
"""Bytes for the logits of one chunk and their gradient: 256 MiB."""

BUFFERS = 2  # the logits of a chunk, and their gradient; options may need more
FLOAT = 4
# Rows that keep a product busy: fewer are bound by reading the kernel, more only cost
# memory. Measured on CPU cores; accelerators do more work for each byte that they read.
ENOUGH_ROWS = {"cpu": 256, "accelerator": 2048}
# Columns of the kernel's gradient that are updated together: no product of the whole
# kernel's size lies beside the gradient, and what is updated stays in the cache.
COLUMNS = {"cpu": 4096, "accelerator": 32768}


@dataclass(frozen=True)
class Plan:
    """A plan of the fused pass. Print it to see what it expects.

    Args:
        tokens: number of tokens; None where it is not known before the run.
        vocabulary: number of classes.
        chunk: tokens that are taken at a time.
        columns: classes whose kernel gradient is updated at a time.
        why: what decided on the chunk.
        width: features of a token.
        buffers: arrays as large as a chunk's logits that are held at a time.
    """

    tokens: int | None
    vocabulary: int
    chunk: int
    columns: int
    why: str
    width: int = 0
    buffers: int = BUFFERS

    @property
    def chunks(self) -> int | None:
        """How many chunks all tokens make, if none of them is left out."""
        return None if self.tokens is None else math.ceil(self.tokens / self.chunk)

    @property
    def expected_bytes(self) -> int:
        """Memory beside inputs and gradients, at the peak.

        The logits of a chunk and what is made of them, its features and their gradient,
        and a block of the kernel's gradient.
        """
        logits = self.buffers * self.chunk * self.vocabulary
        return FLOAT * (logits + self.width * (2 * self.chunk + self.columns))

    def __str__(self) -> str:
        counted = {None: "as many chunks as needed", 1: "1 chunk"}
        many = counted.get(self.chunks, f"{self.chunks} chunks")
        return (
            f"{many} of {self.chunk} tokens x {self.vocabulary} classes, "
            f"{self.expected_bytes / 2**20:.0f} MiB at the peak: {self.why}"
        )


def plan(
    tokens: int | None,
    vocabulary: int,
    *,
    device: str = "cpu",
    budget: int | None = None,
    width: int = 0,
    buffers: int = BUFFERS,
) -> Plan:
    """The plan for shapes, a device ("cpu" or "accelerator") and a budget in bytes."""
    budget = DEFAULT_BUDGET if budget is None else budget
    enough = ENOUGH_ROWS[device]
    row = buffers * FLOAT * vocabulary
    allowed = budget // row
    if allowed < 1:
        warnings.warn(
            f"`memory_budget` is too small for the logits of one token. Received: "
            f"memory_budget={budget}, where {row} bytes are needed. One token is taken "
            "at a time.",
            stacklevel=2,
        )
    chunk = max(1, min(enough, allowed))
    why = (
        f"more would not be faster on this {device}"
        if allowed >= enough
        else f"that is what a budget of {budget / 2**20:.4g} MiB holds"
    )
    if tokens is not None and tokens <= chunk:
        chunk, why = max(1, tokens), "these are all tokens"
    elif tokens is not None:
        chunk = math.ceil(tokens / math.ceil(tokens / chunk))  # chunks of equal size
    columns = min(COLUMNS[device], vocabulary)
    return Plan(tokens, vocabulary, chunk, columns, why, width, buffers)
