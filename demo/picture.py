"""The learning curves of all ways, as one picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from tasks import Array
from training import EAGER, EPOCHS, GRAPH, KERAS, WRONG, Trained

TITLE = "The same network from the same seed, trained four ways"

# What is drawn first lies below: a broad band for Keras, and our two lines upon it.
STYLES: dict[str, dict[str, Any]] = {
    KERAS.name: {"color": "#9ecae9", "linewidth": 7, "solid_capstyle": "round"},
    WRONG.name: {"color": "#d1495b", "linewidth": 2, "linestyle": (0, (5, 2))},
    GRAPH.name: {"color": "#1b3a57", "linewidth": 1.6},
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
        figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, dpi=150)


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
