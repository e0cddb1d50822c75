"""The report of `linear_cross_entropy.py`: what was promised, and every ratio."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from linear_contenders import FORWARD, FUSED, KERAS, PEERS, PLAIN, PRODUCTS
from side_by_side import MIB, shown_versions, table

ABOUT = {
    "function": "One mean loss with its gradients by features and kernel, float32: "
    "tokens x width x classes.",
    "accelerator": "One mean loss with its gradients: tokens x width x classes. The "
    "logits of Keras, optax and the products are in bfloat16.",
    "tokens": "The fused loss with its gradients, one run each: what XLA keeps for "
    "temporaries does not grow with the tokens; the peak does, by the features and "
    "their gradient.",
    "fit": "One step of `fit` of a language model: embedding, dense layer, head; SGD; "
    "float32.",
    "evaluate": "One step of `evaluate` of the same model.",
    "reports": "Steps of `fit` with all reports against none, in four processes each: "
    "what is compared are a few percent, which two of the same program may differ by.",
    "budgets": "The fused loss with its gradients under memory budgets that are parts "
    "of what tf.nn or optax keep for temporaries, against these.",
    "chunks": "Tokens that are taken at a time, against the planned number.",
    "valid": "Tokens of weight 0 are left out of the products.",
    "options": "Each option alone, against none.",
    "sizes": "Fused against plain: the vocabulary from which the fused loss costs no "
    'more time is where "auto" begins.',
}
MEASURES = {
    "time": "seconds",
    "temporaries": "temporaries",
    "peak": "growth",
    "rise": "rise",
}
Data = dict[str, Any]
Row = dict[str, Any]


def as_markdown(data: Data) -> str:
    lines = [
        "# From features to the loss, without holding the logits",
        "",
        "Ratios within a framework, of medians of contenders that take turns. Lower is "
        "better. Temporaries are what XLA keeps for them; the peak is how far the "
        "resident set of a process of its own rises, from before the first run to its "
        "highest in the second, results included, when what compiling had has been "
        "given back. The rise is the part of it that comes with the second run: the "
        "rest are results of the first, and compiled programs. Repeat with `make "
        "bench`.",
        "",
        *_promises(data),
    ]
    for case, found in data.items():
        lines += [f"## {case}", "", ABOUT[case], ""]
        for comparison in found["comparisons"]:
            lines += [f"### {comparison['backend']}, {comparison['title']}", ""]
            lines += [*_table(comparison), ""]
            lines += [f"Did not run: {len(comparison['failures'])}.", ""] * bool(
                comparison["failures"]
            )
        lines += [f"Machine: {found['machine']}. {shown_versions(found['versions'])}"]
        lines.append("")
    return "\n".join(lines)


def _table(comparison: Data) -> list[str]:
    rows = [
        row
        for row in comparison["rows"]
        if not comparison["pairs"] or row["name"] != row["reference"]
    ]
    columns = dict(MEASURES)
    if not comparison["memory"]:
        del columns["peak"], columns["rise"]
    columns = {
        title: key
        for title, key in columns.items()
        if any(row.get(key) is not None for row in rows)
    }
    titles = [t for title in columns for t in (title, _unit(columns[title]))]
    cells = [
        [row["name"], *(c for key in columns.values() for c in _cells(row, key))]
        for row in rows
    ]
    return table(titles, cells)


def _unit(key: str) -> str:
    return "ms" if key == "seconds" else "MiB"


def _cells(row: Row, key: str) -> tuple[str, str]:
    ratio, value = row.get(f"{key}_ratio"), row[key]
    scale = 1e3 if key == "seconds" else 1 / MIB
    return (
        "" if ratio is None else f"{ratio:.3f}",
        "" if value is None else f"{value * scale:.4g}",
    )


class Promise(NamedTuple):
    """A figure, and the most that it may be."""

    claim: str
    value: float
    at_most: float


def _promises(data: Data) -> list[str]:
    rows = [
        [claim, f"{value:.3f}", f"{at_most:g}", "yes" if value <= at_most else "NO"]
        for claim, value, at_most in promises(data)
    ]
    return [
        "## What is promised",
        "",
        *table(["measured", "at most", "kept"], rows),
        "",
    ]


def promises(data: Data) -> Iterator[Promise]:
    of_case = {
        "function": _of_function,
        "tokens": _of_tokens,
        "fit": _of_fit,
        "reports": _of_reports,
        "budgets": _of_budgets,
        "chunks": _of_chunks,
        "valid": _of_valid,
        "options": _of_options,
    }
    for case, claims in of_case.items():
        for comparison in data.get(case, {}).get("comparisons", ()):
            where = f"{comparison['backend']}, {comparison['title']}"
            rows = {row["name"]: row for row in comparison["rows"]}
            for claim, value, at_most in claims(comparison["backend"], rows):
                yield Promise(f"{where}: {claim}", value, at_most)


Claims = Iterator[tuple[str, float, float]]
Rows = dict[str, Row]


def _of_function(backend: str, rows: Rows) -> Claims:
    if FUSED not in rows:
        return
    fused = rows[FUSED]
    held = [rows[n] for n in (PLAIN, KERAS, PEERS[backend]) if n in rows]
    if held:
        best = min(row["seconds"] for row in held)
        yield "time of the best plain form", fused["seconds"] / best, 1.0
    peer = rows.get(PEERS[backend])
    if peer and fused["temporaries"]:
        share = fused["temporaries"] / peer["temporaries"]
        yield f"temporaries of {PEERS[backend]}", share, 0.06
    if PRODUCTS in rows:
        overhead = fused["seconds"] / rows[PRODUCTS]["seconds"]
        yield "time of the three products alone", overhead, 1 / 0.93
    if FORWARD in rows:
        share = rows[FORWARD]["seconds"] / fused["seconds"]
        yield "the loss alone, of the time with gradients", share, 0.45


def _of_tokens(backend: str, rows: Rows) -> Claims:
    found = [row["temporaries"] for row in rows.values()]
    if len(found) > 1:
        yield (
            "temporaries under the most tokens, of the fewest",
            found[-1] / found[0],
            1.1,
        )


def _of_fit(backend: str, rows: Rows) -> Claims:
    fused = rows.get("keras_logits, fused, jit")
    if fused is None:
        return
    if "Keras, jit" in rows:
        time, peak = {"tensorflow": (1.0, 0.2), "jax": (0.6, 0.1)}[backend]
        yield "fit, peak of Keras", fused["growth_ratio"], peak
        yield "fit, time of Keras", fused["seconds_ratio"], time
    graph = rows.get("keras_logits, fused, graph")
    if graph:
        yield (
            "fit, peak in a graph of that jitted",
            graph["growth"] / fused["growth"],
            1.1,
        )
    reports = rows.get("keras_logits, fused, jit, all reports")
    if reports:
        for word in ("temporaries", "peak", "rise"):
            if (key := MEASURES[word]) in fused:
                yield f"fit, {word} with all reports", reports[key] / fused[key], 1.03


def _of_reports(backend: str, rows: Rows) -> Claims:
    row = rows.get("keras_logits, fused, jit, all reports")
    if row and "seconds_ratio" in row:
        yield "fit, time with all reports", row["seconds_ratio"], 1.03


def _of_budgets(backend: str, rows: Rows) -> Claims:
    peer = PEERS[backend]
    for part, at_most in ((4, 1.05), (8, 1.05), (16, 1.15)):
        row = rows.get(f"budget 1/{part}")
        if row and "seconds_ratio" in row:
            claim = f"time of {peer}, at 1/{part} of its temporaries"
            yield claim, row["seconds_ratio"], at_most


def _of_chunks(backend: str, rows: Rows) -> Claims:
    best = min(row["seconds"] for row in rows.values())
    yield (
        "time of the planned chunk, of the best",
        rows["planned"]["seconds"] / best,
        1.05,
    )


def _of_valid(backend: str, rows: Rows) -> Claims:
    yield "time of 60 %", rows["60 % of the tokens"]["seconds_ratio"], 0.65


def _of_options(backend: str, rows: Rows) -> Claims:
    for name, row in rows.items():
        if name != row["reference"]:
            yield f"time with {name}", row["seconds_ratio"], 1.03
