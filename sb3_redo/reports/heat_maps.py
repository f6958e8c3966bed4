"""Draws final values against two axes as heat maps."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sb3_redo.reports.sweep_folder import text
from sb3_redo.validation import needs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

with needs("report", "a figure"):
    from matplotlib.figure import Figure as _Figure


def plot_heat_map(table: pd.DataFrame, x: str, y: str, ax: "Axes", label: str = "", percent: bool = False) -> "Axes":
    """Draw one value for each pair of two axes' values, as colour and number.

    :param table: columns of both axes and ``value``; pairs without a row stay empty
    :param x: column of the horizontal axis
    :param y: column of the vertical axis
    :param label: of the colour bar
    :param percent: whether values are shares, to be written in percent
    """
    columns, rows = (list(dict.fromkeys(table[axis].map(text))) for axis in (x, y))
    grid = np.full((len(rows), len(columns)), np.nan)
    for _, row in table.iterrows():
        grid[rows.index(text(row[y])), columns.index(text(row[x]))] = row["value"] * (100 if percent else 1)
    shown: dict[str, Any] = {"vmin": 0, "vmax": 100} if percent else {}
    image = ax.imshow(grid, cmap="cividis", aspect="auto", **shown)
    low, high = image.get_clim()
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            # Low values have dark colours.
            colour = "black" if value > (low + high) / 2 else "white"
            ax.text(column, row, f"{value:.3g}", ha="center", va="center", color=colour)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    ax.set_xlabel(_words(x))
    ax.set_ylabel(_words(y))
    label = textwrap.fill(f"{label} [%]" if percent else label, 30)  # otherwise it would be longer than the bar
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax


def heat_maps(table: pd.DataFrame, x: str, y: str, label: str = "", percent: bool = False) -> "Figure":
    """Return a figure without a window, with one heat map for each environment.

    :param table: as for :func:`plot_heat_map`, with a column ``environment``
    """
    environments = list(dict.fromkeys(table["environment"]))
    figure = _Figure(figsize=(max(4.8, 4.4 * len(environments)), 3.6), layout="constrained")
    axes = figure.subplots(1, max(1, len(environments)), squeeze=False)
    for ax, environment in zip(axes.flat, environments, strict=False):
        plot_heat_map(table[table["environment"] == environment], x, y, ax, label, percent)
        ax.set_title(environment, fontsize="medium")
    return figure


def _words(axis: str) -> str:
    words = axis.rpartition(".")[2].replace("_", " ")
    return f"{words}\n[gradient steps]" if words.endswith("period") else words
