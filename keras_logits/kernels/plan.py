"""How many tokens the fused pass takes at a time, and why."""

import math
import warnings
from dataclasses import dataclass, replace

DEFAULT_BUDGET = 2**28
"""Bytes beside inputs and gradients: 256 MiB."""

BUFFERS = 1  # the logits of a chunk; options may need more
FLOAT = 4
# Rows that keep a product busy: fewer are bound by reading the kernel and by adding to
# its gradient, more only cost memory. Measured on CPU cores; accelerators do more work
# for each byte that they read.
ENOUGH_ROWS = {"cpu": 896, "accelerator": 2048}
# Classes that are taken at a time. No product as large as the kernel lies beside its
# gradient, and what is made of a block stays in the cache.
COLUMNS = {"cpu": 2048, "accelerator": 16384}
FEWEST_COLUMNS = 256  # of which a product is still worth its start


@dataclass(frozen=True)
class Plan:
    """A plan of the fused pass. Print it to see what it expects.

    Args:
        tokens: number of tokens; None where it is not known before the run.
        vocabulary: number of classes.
        chunk: tokens that are taken at a time.
        columns: classes that are taken at a time.
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

        The logits of a chunk; its features, those turned around, and their gradient;
        and of one block its logits, and its part of the kernel and of that's gradient.
        """
        return self.chunk * self._bytes_of_a_token + self._bytes_of_a_block

    @property
    def _bytes_of_a_token(self) -> int:
        return FLOAT * (self.buffers * self.vocabulary + self.columns + 3 * self.width)

    @property
    def _bytes_of_a_block(self) -> int:
        return FLOAT * 2 * self.width * self.columns

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
    columns = min(COLUMNS[device], vocabulary)
    one = Plan(tokens, vocabulary, 1, columns, "", width, buffers)
    while 4 * one._bytes_of_a_block > budget and one.columns > FEWEST_COLUMNS:
        one = replace(one, columns=one.columns // 2)
    allowed = (budget - one._bytes_of_a_block) // one._bytes_of_a_token
    if allowed < 1:
        warnings.warn(
            f"`memory_budget` is too small for the logits of one token. Received: "
            f"memory_budget={budget}, where {one.expected_bytes} bytes are needed. One "
            "token is taken at a time.",
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
    return replace(one, chunk=chunk, why=why)
