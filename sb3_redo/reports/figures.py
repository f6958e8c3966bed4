"""Draws figures for papers and notebooks: each function draws a tidy table on ``ax`` and returns ``ax``."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sb3_redo.reports.styles import Style, short_labels, styles_of
from sb3_redo.validation import needs, one_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

with needs("report", "a figure"):
    from matplotlib import rc_context
    from matplotlib.figure import Figure as _Figure
    from matplotlib.ticker import EngFormatter, NullLocator, PercentFormatter

PLAIN_TEXT: dict[Any, Any] = {"text.parse_math": False}
"""Matplotlib's setting that switches formulas in names off."""
AXIS_LABELS = {"gradient_step": "gradient steps", "step": "environment steps"}
Styles = Mapping[str, Style]
_GREY = "0.5"
_APART = 1.04  # so that intervals at the same replay ratio do not cover each other


def plot_return(table: pd.DataFrame, ax: "Axes | None" = None, styles: Styles | None = None) -> "Axes":
    """Draw the return against environment steps or frames: one line per condition, 95 % interval shaded.

    :param table: of one environment, from :func:`~sb3_redo.reports.curves.return_curves`
    :param styles: of the conditions; without them, those of this table
    """
    ax = plot_curves(table, ax, styles)
    if len(table):
        ax.set_xlabel(table["unit"].iloc[0])
        ax.set_ylabel(f"{table['estimator'].iloc[0]} of {table['measure'].iloc[0]}".replace(" (", "\n(", 1))
    return ax


def plot_replay_ratio(table: pd.DataFrame, ax: "Axes | None" = None, styles: Styles | None = None) -> "Axes":
    """Draw the final return against the replay ratio: one line with and one without ReDo, 95 % intervals.

    Marks have the colours of their conditions.

    :param table: of one environment, from :func:`~sb3_redo.reports.outcomes.by_replay_ratio`
    :param styles: of the conditions; without them, those of this table
    """
    ax = _axes(ax)
    styles = styles_of(table) if styles is None else styles
    for number, (name, series) in enumerate(table.groupby("series", sort=False)):
        series = series.sort_values("replay_ratio")
        line, marker = styles[series["condition"].iloc[0]].line, "os^Dv"[number % 5]
        at = series["replay_ratio"].astype(float) * _APART**number
        ax.plot(at, series["return"], color=_GREY, linestyle=line)
        ax.plot([], [], color=_GREY, linestyle=line, marker=marker, label=name)
        for ratio, (_, row) in zip(at, series.iterrows(), strict=True):
            errors = [[row["return"] - row["return_low"]], [row["return_high"] - row["return"]]]
            style = styles[row["condition"]]
            bars = ax.errorbar(ratio, row["return"], errors, color=style.colour, capsize=3, marker=marker)
            for artist in bars.get_children():
                artist.set_gid(_gid(style, ax, "mark"))
    ratios = sorted({float(ratio) for ratio in table["replay_ratio"]})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("replay ratio\n(gradient steps per environment step)")
    if len(table):
        ax.set_ylabel(f"{table['estimator'].iloc[0]} of final {table['measure'].iloc[0]}".replace(" (", "\n(", 1))
        ax.legend(frameon=False)
    return _tidied(ax)


def plot_dormancy(table: pd.DataFrame, ax: "Axes | None" = None, styles: Styles | None = None) -> "Axes":
    """Draw the share of dormant neurons, mean over seeds; the range from the lowest to the highest seed is shaded.

    :param table: of one environment, from :func:`~sb3_redo.reports.curves.over_seeds` of ``dormancy/fraction``
    :param styles: of the conditions; without them, those of this table
    """
    return plot_curves(table, ax, styles, label="dormant neurons [%]", scale="share")


def plot_curves(
    table: pd.DataFrame,
    ax: "Axes | None" = None,
    styles: Styles | None = None,
    *,
    label: str = "",
    scale: str = "linear",
) -> "Axes":
    """Draw one line for each condition, shaded from ``low`` to ``high``.

    :param table: of one environment, from :func:`~sb3_redo.reports.curves.over_seeds`
    :param styles: of the conditions; without them, those of this table
    :param label: of the values
    :param scale: of the values: ``share`` in percent from 0 up, ``count`` from 0 up, ``log`` or ``linear``
    """
    ax = _axes(ax)
    styles = styles_of(table) if styles is None else styles
    for condition, mine in table.groupby("condition", sort=False, observed=True):
        style = styles[condition]
        drawn: dict[str, Any] = {"color": style.colour, "gid": _gid(style, ax, "mark")}
        ax.plot(mine["at"], mine["value"], linestyle=style.line, label=style.label or "all runs", **drawn)
        ax.fill_between(mine["at"], mine["low"], mine["high"], alpha=0.15, linewidth=0, **drawn)
        if "seeds" in mine:  # the page can draw into the same axes
            seeds = np.array(mine["seeds"].tolist())
            ends = mine["at"].iloc[0], np.nanmin(seeds), mine["at"].iloc[0], np.nanmax(seeds)
            ax.update_datalim(np.reshape(ends, (2, 2)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if len(table):
        ax.legend(frameon=False, fontsize="small")
        ax.set_xlabel(AXIS_LABELS.get(table["by"].iloc[0], "") if "by" in table else "")
    ax.set_ylabel(label)
    if one_of("scale", scale, ("share", "count", "log", "linear")) == "log":
        ax.set_yscale("log")
    elif scale != "linear":
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol="") if scale == "share" else EngFormatter(sep=""))
        ax.set_ylim(bottom=0)
    return _tidied(ax)


def plot_layers_over_time(table: pd.DataFrame, ax: "Axes | None" = None, *, with_bar: bool = True) -> "Axes":
    """Draw the dormant fraction of every layer over time as a heat map, with the first layer on top.

    :param table: of one condition, from :func:`~sb3_redo.reports.curves.layers_over_seeds`
    :param with_bar: whether to draw a colour bar
    """
    ax = _axes(ax)
    layers = list(dict.fromkeys(table["layer"]))
    for row, layer in enumerate(layers):
        mine = table[table["layer"] == layer]
        at = mine["at"].to_numpy()
        half = (at[1] - at[0]) / 2 if len(at) > 1 else 0.5
        edges = [at[0] - half, *(at + half)]
        mesh = ax.pcolormesh(
            edges, [row - 0.5, row + 0.5], mine[["value"]].to_numpy().T, vmin=0, vmax=1, cmap="cividis", rasterized=True
        )
    ax.set_yticks(range(len(layers)), layers, fontsize="small")
    ax.set_ylim(len(layers) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if layers:
        ax.set_xlabel(AXIS_LABELS[table["by"].iloc[0]])
    if layers and with_bar:
        bar = ax.figure.colorbar(mesh, ax=ax, format=PercentFormatter(1.0))
        bar.set_label("dormant neurons")
    return ax


def plot_speed(outcomes: pd.DataFrame, ax: "Axes | None" = None, styles: Styles | None = None) -> "Axes":
    """Draw the environment steps per second of every run, by condition.

    :param outcomes: from :func:`~sb3_redo.reports.outcomes.run_outcomes`
    :param styles: of the conditions; without them, those of this table
    """
    ax = _axes(ax)
    styles = styles_of(outcomes) if styles is None else styles
    for row, (condition, style) in enumerate(styles.items()):
        mine = outcomes.loc[outcomes["condition"] == condition, "steps_per_second"]
        drawn: dict[str, Any] = {"color": style.colour, "alpha": 0.6, "gid": _gid(style, ax, "mark")}
        drawn["markerfacecolor"] = style.colour if style.line != "--" else "white"
        ax.plot(mine, [row] * len(mine), "o", clip_on=False, **drawn)
    ax.set_yticks(range(len(styles)), [style.label or "all runs" for style in styles.values()], fontsize="small")
    ax.set_ylim(len(styles) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel("environment steps per second (one mark a run)")
    return _tidied(ax)


@rc_context(PLAIN_TEXT)
def panels(
    table: pd.DataFrame,
    plot: Callable[..., "Axes"],
    by: str = "environment",
    title: str = "",
    across: int = 3,
    styles: Styles | None = None,
) -> "Figure":
    """Return a figure without a window: one panel for each value of a column, and one legend.

    :param plot: one of the functions above
    :param by: the column; its values are the panels' titles and axes' labels
    :param across: largest number of panels in a row
    :param styles: of the conditions, and of others; without them, those of this table
    """
    values = list(dict.fromkeys(table[by]))
    columns = max(1, min(across, len(values)))
    rows = max(1, -(-len(values) // columns))
    labels = short_labels(list(dict.fromkeys(table["condition"].astype(str))))
    known = styles_of(table) if styles is None else styles
    styles = {condition: replace(known[condition], label=label) for condition, label in labels.items()}
    is_styled = "styles" in signature(plot).parameters
    width = 5.0 if plot is plot_layers_over_time else 3.6
    figure = _Figure(figsize=(max(6.4, width * columns), 1.6 + 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for number, (ax, value) in enumerate(zip(axes.flat, values, strict=False)):
        mine = table[table[by] == value]
        ax.set_label(str(value))
        if plot is plot_layers_over_time:
            plot_layers_over_time(mine, ax, with_bar=number % columns == columns - 1)
        else:
            plot(mine, ax, **({"styles": styles} if is_styled else {}))
        if is_styled and len(values) > across:
            ax.locator_params(nbins=4)  # drawing ticks takes most of the time
        ax.set_title(styles[value].label if by == "condition" else value, fontsize="medium")
    for ax in axes.flat[len(values) :]:
        ax.set_axis_off()
    _label_the_rim(axes, len(values))
    if title:
        figure.suptitle(title)
    _share_legend(figure, axes)
    return figure


def _label_the_rim(axes: Any, count: int) -> None:
    columns = axes.shape[1]
    for number, ax in enumerate(axes.flat[:count]):
        if number % columns:
            ax.set_ylabel("")
        if number + columns < count:
            ax.set_xlabel("")


def _share_legend(figure: "Figure", axes: Any) -> None:
    entries: dict[str, Any] = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    if not entries:
        return
    # A letter is about a twelfth of an inch wide; the line before each label is as wide as six letters.
    fitting = int(figure.get_figwidth() * 12 / (max(map(len, entries)) + 6))
    ncols = max(1, min(4, fitting))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=ncols, frameon=False)


def _gid(style: Style, ax: "Axes", kind: str) -> str:
    return f"{style.key}-{ax.figure.axes.index(ax)}-{kind}"


def _axes(ax: "Axes | None") -> "Axes":
    if ax is None:
        from matplotlib import pyplot  # imported here, because the import selects a backend

        ax = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")[1]
    return ax


def _tidied(ax: "Axes") -> "Axes":
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    return ax
