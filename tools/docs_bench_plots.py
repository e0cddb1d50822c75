"""Pictures of `benchmarks/results/linear_cross_entropy.json`, drawn by the build.

A picture is left out if what it shows was not measured. Each is an SVG file for light
pages and one for dark ones. Run as a script, it draws `docs/assets/fused.png`, which
the README shows: a package index cannot build it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FUSED, PLAIN = "keras_logits, fused", "keras_logits, plain"
NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "torch"}
MIB = 2**20
# Of one hue each, told apart without colour by lightness and dash, too.
THEMES = {
    "light": {
        "ink": "#20222c",
        "grid": "#d4d6df",
        "fused": "#2f49b8",
        "plain": "#b4450b",
    },
    "dark": {
        "ink": "#e4e6ef",
        "grid": "#4a4d5c",
        "fused": "#9db0ff",
        "plain": "#ffb066",
    },
}
Comparison = dict[str, Any]
Theme = dict[str, str]


def write_plots(
    folder: Path, path: Path = RESULTS / "linear_cross_entropy.json"
) -> None:
    """Writes NAME-light.svg and NAME-dark.svg of each picture."""
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    pictures: dict[str, tuple[str, Callable[[list[Comparison], Theme], Figure]]] = {
        "bench-fit": ("fit", fit_against_keras),
        "bench-memory-vocabulary": ("function", memory_by_vocabulary),
        "bench-memory-tokens": ("tokens", memory_by_tokens),
        "bench-time-vocabulary": ("sizes", time_by_vocabulary),
    }
    for name, (case, draw) in pictures.items():
        comparisons = data.get(case, {}).get("comparisons", [])
        comparisons = [c for c in comparisons if c["backend"] != "torch" and c["rows"]]
        if not comparisons:
            continue
        for scheme, theme in THEMES.items():
            with mpl.rc_context(_style(theme)):
                figure = draw(comparisons, theme)
                figure.savefig(folder / f"{name}-{scheme}.svg", metadata={"Date": None})


def fit_against_keras(comparisons: list[Comparison], theme: Theme) -> Figure:
    """Peak memory and time of a training step, as shares of what Keras takes."""
    figure = Figure(figsize=(5.2, 2.6), layout="constrained")
    ax = figure.subplots()
    bars = [
        (f"{NAMES[c['backend']]}, {label}", row[key])
        for key, label in (("growth_ratio", "memory"), ("seconds_ratio", "time"))
        for c in comparisons
        for row in c["rows"]
        if row["name"] == f"{FUSED}, jit"
    ]
    names, shares = zip(*reversed(bars), strict=True)
    drawn = ax.barh(names, shares, color=theme["fused"], height=0.55)
    ax.bar_label(drawn, fmt="%.2f", padding=4, color=theme["ink"])
    ax.axvline(1.0, color=theme["plain"], linewidth=2)
    ax.annotate(
        "the Keras loss",
        (1.0, 0.5),
        (-8, 0),
        ("data", "axes fraction"),
        "offset points",
        color=theme["plain"],
        rotation=90,
        ha="right",
        va="center",
    )
    ax.set(xlim=(0, 1.05), xlabel="share of what the Keras loss takes")
    ax.set_axisbelow(True)
    ax.grid(axis="y", visible=False)
    return figure


def memory_by_vocabulary(comparisons: list[Comparison], theme: Theme) -> Figure:
    """Temporaries of the plain and of the fused loss."""
    figure, axes = _panels(comparisons, "classes", "MiB of temporaries")
    for backend, ax in axes.items():
        own = [c for c in comparisons if c["backend"] == backend]
        for name, kind in ((PLAIN, "plain"), (FUSED, "fused")):
            points = [
                (int(c["title"].rpartition(" x ")[2]), row["temporaries"] / MIB)
                for c in own
                for row in c["rows"]
                if row["name"] == name and row["temporaries"]
            ]
            _line(ax, points, kind, theme)
        ax.legend()
    return figure


def memory_by_tokens(comparisons: list[Comparison], theme: Theme) -> Figure:
    """Temporaries of the fused loss, beside the bytes of the logits alone."""
    figure, axes = _panels(comparisons, "tokens", "MiB")
    for backend, ax in axes.items():
        (comparison,) = (c for c in comparisons if c["backend"] == backend)
        classes = int(comparison["title"].rpartition(" x ")[2])
        counts = [int(row["name"].split()[0]) for row in comparison["rows"]]
        logits = [(n, 4 * n * classes / MIB) for n in counts]
        held = [
            (n, row["temporaries"] / MIB)
            for n, row in zip(counts, comparison["rows"], strict=True)
            if row["temporaries"]
        ]
        _line(ax, logits, "plain", theme, "the logits alone")
        _line(ax, held, "fused", theme, "all that the fused loss holds")
        ax.legend()
    return figure


def time_by_vocabulary(comparisons: list[Comparison], theme: Theme) -> Figure:
    """One loss with its gradients, plain and fused."""
    figure, axes = _panels(comparisons, "classes", "ms")
    for backend, ax in axes.items():
        (comparison,) = (c for c in comparisons if c["backend"] == backend)
        for kind in ("plain", "fused"):
            points = [
                (int(row["name"].split()[0]), 1e3 * row["seconds"])
                for row in comparison["rows"]
                if row["name"].endswith(kind)
            ]
            _line(ax, points, kind, theme)
        ax.axvline(8192, color=theme["grid"], linestyle="dotted", linewidth=2)
        ax.legend()
    return figure


def _panels(
    comparisons: list[Comparison], across: str, up: str
) -> tuple[Figure, dict[str, Any]]:
    backends = list(dict.fromkeys(c["backend"] for c in comparisons))
    # One above the other: a phone shows them as large as a desk.
    figure = Figure(figsize=(5.2, 2.7 * len(backends) + 0.4), layout="constrained")
    axes = figure.subplots(len(backends), 1, sharex=True, squeeze=False)[:, 0]
    for backend, ax in zip(backends, axes, strict=True):
        ax.set(title=NAMES[backend], ylabel=up, yscale="log")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
        ax.yaxis.set_major_formatter(lambda value, place: f"{value:,g}")
        ax.tick_params(axis="x", labelrotation=30)
    axes[-1].set_xlabel(across)
    return figure, dict(zip(backends, axes, strict=True))


def _line(
    ax: Any,
    points: list[tuple[int, float]],
    kind: str,
    theme: Theme,
    label: str | None = None,
) -> None:
    x, y = zip(*sorted(points), strict=True) if points else ((), ())
    marker, dash = ("o", "solid") if kind == "fused" else ("s", "dashed")
    ax.plot(x, y, label=label or kind, color=theme[kind], marker=marker, linestyle=dash)


def _style(theme: Theme) -> dict[str, Any]:
    ink = dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme["ink"]
    )
    return {
        **ink,
        "axes.edgecolor": theme["grid"],
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": "none",
        "font.size": 10,
        "grid.color": theme["grid"],
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 2,
        "savefig.facecolor": "none",
        "svg.hashsalt": "keras-logits",
    }


def write_readme_picture(path: Path = ROOT / "docs" / "assets" / "fused.png") -> None:
    data = json.loads((RESULTS / "linear_cross_entropy.json").read_text("utf-8"))
    with mpl.rc_context({**_style(THEMES["light"]), "savefig.facecolor": "white"}):
        figure = fit_against_keras(data["fit"]["comparisons"], THEMES["light"])
        figure.savefig(path, dpi=160)


if __name__ == "__main__":
    write_readme_picture()
