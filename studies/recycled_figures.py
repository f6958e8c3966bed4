"""Draws what becomes of recycled neurons; :mod:`studies.recycled` makes the tables that are drawn."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sb3_redo.reports.styles import COLOURS

LABELS = {
    "clear": "clear (the paper)",
    "restart": "restart",
    "match": "match: layer's mean",
    "median": "match: layer's median",
    "own": "second moment kept",
    "gradient": "seeded with first gradient",
    "counted": "step counted per weight",
    "clear_active": "clear, redrawn until active",
    "match_active": "match, redrawn until active",
    "none": "no recycling",
    "redo": "ReDo",
    "reset": "reset of the last two layers",
    "weight_decay": "weight decay",
    "lowest": "scheduled, lowest scores",
    "random": "scheduled, random",
    "highest": "scheduled, highest scores",
}
_BLUE, _ORANGE, _GREEN, _PINK, _YELLOW, _SKY, _BLACK, _GREY = COLOURS
# The same colour for the same method in every figure. Variants of a method differ in their lines.
STYLES = {
    "clear": (_ORANGE, "-"),
    "restart": (_PINK, "-."),
    "match": (_GREEN, "-"),
    "median": (_GREEN, "-."),
    "own": (_BLACK, "-"),
    "gradient": (_SKY, "--"),
    "counted": (_YELLOW, "-"),
    "clear_active": (_ORANGE, ":"),
    "match_active": (_GREEN, ":"),
    "none": (_BLUE, "--"),
    "redo": (_ORANGE, "-"),
    "reset": (_SKY, ":"),
    "weight_decay": (_BLACK, "-."),
    "lowest": (_PINK, ":"),
    "random": (_YELLOW, "-."),
    "highest": (_GREY, "-."),
}
QUANTITIES = {
    "survival/dormant": "dormant [%]",
    "survival/norm": "outgoing norm [% of the others']",
    "survival/contribution": "contribution [% of the others']",
}


def draw_survival(table: pd.DataFrame, figure: Path) -> None:
    """Draw what became of neurons, by age. Contributions are cut off above those of the first 1,000 steps.

    Lines end where a seed has no value.
    """
    names = ["environment", "epsilon", "callback", "age"]
    quantities = list(QUANTITIES)
    complete = table.groupby(names)[quantities].transform(lambda values: values.notna().all())
    grid = draw(table.assign(**table[quantities].where(complete)), "age", QUANTITIES, factor=100)
    # Later so few of the others may live that a share of what they do is without bounds.
    early = table[table["age"] <= 1000].groupby(["environment", "epsilon"], sort=False)["survival/contribution"].max()
    highest = early.groupby("environment", sort=False).transform("max")
    for ax, top in zip(grid[:, list(QUANTITIES).index("survival/contribution")], highest, strict=True):
        if ax.get_ylim()[1] > 105 * top:
            ax.set_ylim(-5 * top, 105 * top)
    for ax in grid.flat:
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0)
    for ax in grid[-1]:
        ax.set_xlabel("gradient steps since recycling")
    grid[0, 0].figure.savefig(figure, dpi=110)


def draw(table: pd.DataFrame, x: str, quantities: dict[str, str], factor: float = 1.0) -> np.ndarray:
    """Draw a row for each environment and epsilon, a column for each quantity, and one legend below all.

    :return: the axes, [rows, columns]
    """
    of_rows = list(table.groupby([name for name in ("environment", "epsilon") if name in table], sort=False))
    shape = (len(of_rows), len(quantities))
    size = (4.4 * shape[1], 3.2 * shape[0] + 0.9)
    drawn, grid = plt.subplots(*shape, figsize=size, sharex=True, squeeze=False, layout="constrained")
    firsts: dict[tuple[str, ...], np.ndarray] = {}
    for row, (about, mine) in zip(grid, of_rows, strict=True):
        *environment, epsilon = about
        # The epsilons of an environment are to be compared.
        for ax, first in zip(row, firsts.setdefault(tuple(environment), row), strict=True):
            if first is not ax:
                ax.sharey(first)
        for ax, (quantity, name) in zip(row, quantities.items(), strict=True):
            draw_modes(ax, mine, x, quantity, factor)
            ax.set_ylabel(name)
            ax.set_title(", ".join([*environment, f"Adam's epsilon {epsilon}"]), fontsize="medium")
    handles, names = grid[0, 0].get_legend_handles_labels()
    drawn.legend(handles, names, loc="outside lower center", ncols=2 * shape[1] - 1, frameon=False, fontsize="small")
    return grid


def draw_modes(ax: Axes, table: pd.DataFrame, x: str, quantity: str, factor: float = 1.0) -> None:
    """Draw a line for each way to recycle, the mean over seeds, in a band from the least to the greatest."""
    for callback, label in LABELS.items():
        of = table[table["callback"] == callback]
        if len(of):
            each = of.groupby(x)[quantity].agg(["mean", "min", "max"]) * factor
            colour, line = STYLES[callback]
            ax.plot(each.index, each["mean"], label=label, color=colour, linestyle=line)
            ax.fill_between(each.index, each["min"], each["max"], color=colour, alpha=0.12, linewidth=0)
    ax.spines[["top", "right"]].set_visible(False)


def draw_runs(returns: str, table: pd.DataFrame, figure: Path) -> None:
    """Draw a dot for each seed and a tick for the mean, with the epsilons above one another."""
    environments = list(dict.fromkeys(table["environment"]))
    epsilons = list(dict.fromkeys(table["epsilon"]))
    there = [callback for callback in LABELS if callback in set(table["callback"])][::-1]
    shape = (len(environments), 2)
    size = (10, (0.7 + 0.38 * len(there)) * shape[0])
    drawn, grid = plt.subplots(*shape, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for row, environment in zip(grid, environments, strict=True):
        mine = table[table["environment"] == environment]
        for ax, quantity, name in zip(row, ("fraction", "return"), ("dormant at the end [%]", returns), strict=True):
            for number, epsilon in enumerate(epsilons):
                of = mine[mine["epsilon"] == epsilon]
                places = of["callback"].map(there.index) + 0.15 * (len(epsilons) - 1 - 2 * number)
                style: dict[str, Any] = {"color": COLOURS[number], "label": f"Adam's epsilon {epsilon}"}
                ax.plot(of[quantity], places, "os^"[number], alpha=0.45, markersize=4, **style)
                means = of[quantity].groupby(places).mean()
                ax.plot(means, means.index, "|", color=COLOURS[number], markersize=11, markeredgewidth=2)
            ax.set_yticks(range(len(there)), [LABELS[callback] for callback in there])
            ax.set_ylim(-0.7, len(there) - 0.3)
            ax.set_xlabel(f"{environment}:\n{name}")
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(axis="x", alpha=0.3)
    if len(epsilons) > 1:
        handles, names = grid[0, 0].get_legend_handles_labels()
        drawn.legend(handles, names, loc="outside lower center", ncols=len(epsilons), frameon=False)
    drawn.savefig(figure, dpi=110)


def draw_labels(table: pd.DataFrame, figure: Path) -> None:
    """Draw accuracy and dormant neurons by task."""
    grid = draw(table, "task", {"return": "accuracy at the end of a task [%]", "fraction": "dormant [%]"})
    for ax in grid[-1]:
        ax.set_xlabel("task")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0, 0].figure.savefig(figure, dpi=110)
