"""How many tokens the fused pass takes at a time, and why."""

import math
import warnings
from dataclasses import dataclass, replace

BUFFERS = 1  # the logits of a chunk; options may need more
FLOAT = 4
FEWEST_COLUMNS = 256  # of which a product is still worth its start


@dataclass(frozen=True)
class Device:
    """What is best on a kind of device, as it was measured.

    Args:
        budget: bytes beside inputs and gradients, where nobody says how many.
        rows: tokens that keep a product busy: fewer are bound by reading the kernel and
            by adding to its gradient, more only cost memory.
        columns: classes that are taken at a time; None for all of them.
    """

    budget: int
    rows: int
    columns: int | None


DEVICES = {
    # No product as large as the kernel lies beside its gradient, and what is made of a
    # block stays in the cache.
    "cpu": Device(budget=2**28, rows=896, columns=2048),
    # A product is added to its sum as it is made, and copies of parts of the kernel
    # would take as long as a product: seen on an H200.
    "accelerator": Device(budget=2**31, rows=1024, columns=None),
}


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
        in_blocks: whether blocks of classes, with a part of the kernel and of its
            gradient, lie beside what is held as a whole.
    """

    tokens: int | None
    vocabulary: int
    chunk: int
    columns: int
    why: str
    width: int = 0
    buffers: int = BUFFERS
    in_blocks: bool = True

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
        return FLOAT * 2 * self.width * self.columns if self.in_blocks else 0

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
    best = DEVICES[device]
    budget = best.budget if budget is None else budget
    in_blocks = best.columns is not None
    columns = min(best.columns or vocabulary, vocabulary)
    one = Plan(tokens, vocabulary, 1, columns, "", width, buffers, in_blocks)
    while 4 * one._bytes_of_a_block > budget and one.columns > FEWEST_COLUMNS:
        one = replace(one, columns=one.columns // 2)
    allowed = (budget - one._bytes_of_a_block) // one._bytes_of_a_token
    if allowed < 1:
        warnings.warn(
            "`memory_budget` is too small for the logits of one token. The loss runs "
            "one token at a time.\n"
            f"Received: memory_budget={budget}, where {one.expected_bytes} bytes are "
            "needed\n"
            f"Fix: memory_budget={100 * one.expected_bytes}, for larger chunks.",
            stacklevel=2,
        )
    chunk = max(1, min(best.rows, allowed))
    why = (
        f"more would not be faster on this {device}"
        if allowed >= best.rows
        else f"that is what a budget of {budget / 2**20:.4g} MiB holds"
    )
    if tokens is not None and tokens <= chunk:
        chunk, why = max(1, tokens), "these are all tokens"
    elif tokens is not None:
        chunk = math.ceil(tokens / math.ceil(tokens / chunk))  # chunks of equal size
    return replace(one, chunk=chunk, why=why)
