"""The table of the demo, on the screen and as CSV."""

import csv
from pathlib import Path

from training import KERAS, Trained

# Heading, and the format of the printed value.
COLUMNS = {
    "task": "s",
    "way": "s",
    "final loss": ".6f",
    "accuracy": ".4f",
    "ours - tf.nn": ".1e",
    "from Keras": ".1e",
    "seconds": ".1f",
}
Row = dict[str, str | float]


def rows(results: list[Trained]) -> list[Row]:
    keras_right = {r.task.name: r for r in results if r.way is KERAS}
    return [
        {
            "task": result.task.name,
            "way": result.way.name,
            "final loss": float(result.losses[-1]),
            "accuracy": float(result.accuracies[-1]),
            "ours - tf.nn": result.from_tf_nn(),
            "from Keras": result.from_curve_of(keras_right[result.task.name]),
            "seconds": result.seconds,
        }
        for result in results
    ]


def as_text(rows: list[Row], columns: dict[str, str] = COLUMNS) -> str:
    lines = [list(columns)]
    lines += [
        [format(row[name], form) for name, form in columns.items()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def write_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
