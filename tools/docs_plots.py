"""The pictures of the documentation, as SVG, for a light and for a dark page.

The build of the site calls `write_plots`: the pictures are made, not kept. Each is a
function of a figure and a palette, and NumPy computes what it shows.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

matplotlib.use("svg")


class Palette(NamedTuple):
    """Colours that are told apart on their ground, by hue and by lightness."""

    ink: str
    faint: str
    first: str
    second: str
    third: str


PALETTES = {
    "light": Palette("#2b2b33", "#b9bcc6", "#3949ab", "#c2410c", "#00796b"),
    "dark": Palette("#e4e6ee", "#5b6072", "#9fa8da", "#ffab70", "#4db6ac"),
}
STYLE = {
    "font.size": 11.0,
    "lines.linewidth": 2.2,
    "svg.hashsalt": "keras_logits",  # the same bytes at each build
}

CHANCES = ["0", "0.12", "0.5", "0.88", "1"]

# What Keras clips probabilities to, `keras.config.epsilon()`.
EPSILON = np.float32(1e-7)


def write_plots(folder: Path) -> None:
    """Write each picture in two variants: `name-light.svg` and `name-dark.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PLOTS.items():
        for ground, palette in PALETTES.items():
            with matplotlib.rc_context(STYLE):
                figure = Figure(figsize=(6.2, 2.95), layout="constrained")
                draw(figure, palette)
                path = folder / f"{name}-{ground}.svg"
                figure.savefig(path, transparent=True, metadata={"Date": None})


def sigmoid(z: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-z))


def logit(p: Any) -> Any:
    return np.log(p / (1.0 - p))


def plot_sigmoid_and_logit(figure: Figure, palette: Palette) -> None:
    """The two functions beside each other: one is the other with its axes exchanged."""
    left, right = figure.subplots(1, 2)
    z = np.linspace(-6.0, 6.0, 241)
    points = np.array([-2.0, 0.0, 2.0])

    left.plot(z, sigmoid(z), color=palette.first)
    dress(left, palette, "sigmoid", "logit", "probability")
    mark(left, points, sigmoid(points), palette)
    left.set_yticks([0, 0.12, 0.5, 0.88, 1], CHANCES)
    left.set_xticks([-6, -2, 0, 2, 6])

    right.plot(sigmoid(z), z, color=palette.second)
    dress(right, palette, "logit", "probability", "logit")
    mark(right, sigmoid(points), points, palette)
    right.set_xticks([0, 0.12, 0.5, 0.88, 1], CHANCES)
    right.set_yticks([-6, -2, 0, 2, 6])


def plot_loss_and_gradient(figure: Figure, palette: Palette) -> None:
    """Three classes, logits (z, 0, 0), the second is true: how wrong may a model be?"""
    left, right = figure.subplots(1, 2)
    z = np.linspace(0.0, 40.0, 401, dtype="float32")
    # exp(z) is finite up to 88 in float32; the softmax of Keras is exact this far.
    wrong = np.exp(z) / (np.exp(z) + np.float32(2.0))
    p = np.float32(1.0) / (np.exp(z) + np.float32(2.0))
    exact = np.log(np.exp(z.astype("float64")) + 2.0)
    clipped = -np.log(np.maximum(p, EPSILON))

    left.plot(z, exact, color=palette.first)
    left.plot(z, clipped, color=palette.second, linestyle=(0, (5, 2)))
    dress(left, palette, "loss", "logit of a wrong class", "")
    tell(left, 29.0, 33.0, "from logits", palette.first, "right")
    tell(left, 39.5, 12.5, "from probabilities", palette.second, "right")

    right.plot(z, wrong, color=palette.first)
    right.plot(z, wrong * (p > EPSILON), color=palette.second, linestyle=(0, (5, 2)))
    dress(right, palette, "gradient", "logit of a wrong class", "")
    right.set_ylim(-0.06, 1.12)
    tell(right, 39.5, 0.88, "from logits", palette.first, "right")
    tell(right, 39.5, 0.06, "from probabilities", palette.second, "right")


def plot_temperature(figure: Figure, palette: Palette) -> None:
    """The softmax of three logits, divided by three temperatures."""
    axes = figure.subplots()
    logits = np.array([2.0, 1.0, -1.0])
    temperatures = [0.5, 1.0, 4.0]
    colours = [palette.first, palette.second, palette.third]
    for at, temperature in enumerate(temperatures):
        powers = np.exp(logits / temperature)
        for i, chance in enumerate(powers / powers.sum()):
            place = at + 0.28 * (i - 1)
            label = f"logit {logits[i]:.0f}".replace("-", "\u2212") if at == 0 else None
            axes.bar(place, chance, width=0.24, color=colours[i], label=label)
            axes.text(
                place, chance + 0.02, f"{chance:.2f}", ha="center", color=palette.ink
            )
    dress(axes, palette, "", "temperature", "probability")
    axes.set_ylim(0.0, 1.1)
    axes.set_xticks(range(3), [f"{t:g}" for t in temperatures])
    axes.legend(frameon=False, labelcolor=palette.ink, loc="upper right")


def dress(axes: Any, palette: Palette, title: str, x: str, y: str) -> None:
    """What all axes have: quiet lines, and words in the colour of the page's text."""
    axes.set_title(title, color=palette.ink)
    axes.set_xlabel(x, color=palette.ink)
    axes.set_ylabel(y, color=palette.ink)
    axes.tick_params(colors=palette.ink, labelcolor=palette.ink, color=palette.faint)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(palette.faint)


def mark(axes: Any, x: Any, y: Any, palette: Palette) -> None:
    """Points, each with thin lines to where it is read off."""
    across, up = axes.get_xlim(), axes.get_ylim()
    for at, value in zip(x, y, strict=True):
        axes.plot(
            [at, at, across[0]],
            [up[0], value, value],
            color=palette.faint,
            linewidth=1.0,
            zorder=0,
        )
    axes.plot(x, y, "o", color=palette.ink, markersize=5)
    axes.set_xlim(across)
    axes.set_ylim(up)


def tell(axes: Any, x: float, y: float, words: str, colour: str, side: str) -> None:
    """Name a line beside it, in its colour."""
    axes.text(x, y, words, color=colour, ha=side, va="center")


PLOTS: dict[str, Callable[[Figure, Palette], None]] = {
    "sigmoid-and-logit": plot_sigmoid_and_logit,
    "loss-and-gradient": plot_loss_and_gradient,
    "temperature": plot_temperature,
}

if __name__ == "__main__":
    write_plots(Path(sys.argv[1] if len(sys.argv) > 1 else "docs-plots"))
