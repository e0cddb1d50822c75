"""Plots of the pages, drawn by the build."""

from pathlib import Path


def write_plots(folder: Path) -> None:
    """Writes NAME-light.svg and NAME-dark.svg of each plot."""
