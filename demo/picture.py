"""The learning curves of all ways, as one picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from language_model import Run
from tasks import Array
from training import EAGER, EPOCHS, GRAPH, JITTED, KERAS, WRONG, Trained

TITLE = "The same network from the same seed, trained five ways"

BAND: dict[str, Any] = {"color": "#9ecae9", "linewidth": 9, "solid_capstyle": "round"}
LINE: dict[str, Any] = {"color": "#1b3a57", "linewidth": 1.6}

# What is drawn first lies below: two bands for Keras, and our two lines upon them.
STYLES: dict[str, dict[str, Any]] = {
    KERAS.name: BAND,
    JITTED.name: {"color": "#f2b134", "linewidth": 4.5, "solid_capstyle": "round"},
    WRONG.name: {"color": "#d1495b", "linewidth": 2, "linestyle": (0, (5, 2))},
    GRAPH.name: LINE,
    EAGER.name: {
        "color": "#1b3a57",
        "linestyle": "none",
        "marker": "o",
        "markersize": 5,
        "markerfacecolor": "white",
        "markevery": 3,
    },
}
LOOK = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
}


def draw(results: list[Trained], path: Path) -> None:
    tasks = {result.task.name: result.task for result in results}
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(10, 7), layout="constrained")
        axes = figure.subplots(2, len(tasks), sharex=True)
        for (above, below), task in zip(axes.T, tasks.values(), strict=True):
            of_task = {r.way.name: r for r in results if r.task is task}
            draw_losses(above, {name: r.losses for name, r in of_task.items()})
            draw_accuracies(below, {name: r.accuracies for name, r in of_task.items()})
            above.set_title(
                f"{task.name}: {task.units} units, {task.kind.activation}, "
                f"{task.optimizer} {task.learning_rate:g}",
                loc="left",
                fontweight="bold",
            )
        axes[0, 0].set_ylabel("training loss, as fit reports it")
        axes[1, 0].set_ylabel("held-out accuracy")
        figure.suptitle(TITLE, fontsize=13)
        lines = axes[0, 0].get_lines()
        figure.legend(handles=lines, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, dpi=150)


def draw_language(runs: list[Run], path: Path) -> None:
    """Loss against tokens seen: the fused curve upon the band of the plain one."""
    fused, plain = runs
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(10, 5), layout="constrained")
        axis = figure.subplots()
        for run, style in ((plain, BAND), (fused, LINE)):
            thousands = [tokens / 1000 for tokens in run.tokens]
            axis.plot(thousands, run.losses, label=described(run), **style)
        axis.set_xlim(0, fused.tokens[-1] / 1000)
        axis.set_xlabel("thousand tokens seen")
        axis.set_ylabel("training loss, as fit reports it")
        title = f"The King James text, word by word: {fused.words} words, one network"
        figure.suptitle(title, fontsize=13)
        axis.legend(frameon=False)
        figure.savefig(path, dpi=150)


def described(run: Run) -> str:
    text = f"{run.way}: {run.tokens_per_second:,.0f} tokens per second"
    if run.peak_growth is None:
        return text
    return f"{text}, peak memory +{run.peak_growth / 2**20:,.0f} MiB"


def draw_losses(axis: Any, curves: dict[str, Array]) -> None:
    draw_curves(axis, curves)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())


def draw_accuracies(axis: Any, curves: dict[str, Array]) -> None:
    draw_curves(axis, curves)
    axis.set_xlabel("epoch")
    axis.set_xlim(0, EPOCHS + 1)


def draw_curves(axis: Any, curves: dict[str, Array]) -> None:
    for name, style in STYLES.items():
        values = curves[name]
        axis.plot(range(1, len(values) + 1), values, label=name, **style)
