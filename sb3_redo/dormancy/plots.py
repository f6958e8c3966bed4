"""Draws dormancy reports."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from sb3_redo.dormancy.scores import LayerDormancy
from sb3_redo.validation import needs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

with needs("plots", "the plot of a report"):
    from matplotlib.figure import Figure as _Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import PercentFormatter
    from mpl_toolkits.axes_grid1 import make_axes_locatable

# Okabe and Ito's palette, whose colours stay apart for every kind of colour vision; vermilion is the threshold's.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
_THRESHOLD_COLOUR = "#D55E00"
_HATCH = "////"


Layers = Sequence[LayerDormancy]


def figure_of(layers: Layers, dormancy_threshold: float, observations: int) -> "Figure":
    """Return a figure drawn by :func:`plot_layers`, without a window."""
    figure = _Figure(figsize=_size(layers), layout="tight")
    plot_layers(layers, dormancy_threshold, observations, figure.subplots())
    return figure


def plot_layers(layers: Layers, dormancy_threshold: float, observations: int, ax: "Axes | None" = None) -> "Axes":
    """Draw layers measured on a number of observations, see :meth:`~sb3_redo.dormancy.DormancyReport.plot`."""
    if ax is None:
        from matplotlib import pyplot  # here, because it chooses a backend

        ax = pyplot.subplots(figsize=_size(layers), layout="tight")[1]
    networks = dict.fromkeys(layer.network for layer in layers)
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(networks)}
    strip = make_axes_locatable(ax).append_axes("right", size="110%", pad=0.3, sharey=ax)
    _draw_bars(ax, layers, colours)
    _draw_scores(strip, layers, dormancy_threshold, colours)
    handles = _legend(layers, dormancy_threshold, colours)
    strip.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), **_LEGEND)
    dormant, neurons = sum(int(layer.dormant.sum()) for layer in layers), sum(layer.neurons for layer in layers)
    title = f"{dormant / neurons:.1%} of {neurons:,} neurons dormant\non {observations:,} observations"
    ax.set_title(title, loc="left", fontsize="medium")
    return ax


_LEGEND: dict[str, Any] = {"ncols": 5, "frameon": False, "fontsize": "small", "handlelength": 1, "columnspacing": 1}


def _legend(layers: Layers, dormancy_threshold: float, colours: dict[str, str]) -> list[Any]:
    handles: list[Any] = [Patch(color=colour, label=name) for name, colour in colours.items()]
    if not all(layer.recyclable for layer in layers):
        handles.append(Patch(facecolor="0.6", edgecolor="white", hatch=_HATCH, label="measured only"))
    return [*handles, Line2D([], [], color=_THRESHOLD_COLOUR, label=f"threshold {dormancy_threshold:g}")]


def _size(layers: Layers) -> tuple[float, float]:
    return 9.0, 1.5 + 0.42 * len(layers)


def _draw_bars(ax: "Axes", layers: Layers, colours: dict[str, str]) -> None:
    for row, layer in enumerate(layers):
        hatch = None if layer.recyclable else _HATCH
        ax.barh(row, layer.dormant_fraction, 0.7, color=colours[layer.network], hatch=hatch, edgecolor="white")
        count = f"{int(layer.dormant.sum())}/{layer.neurons}"
        is_long = layer.dormant_fraction > 0.6
        ax.annotate(
            f"{layer.dormant_fraction:.1%}  ({count})",
            (layer.dormant_fraction, row),
            xytext=(-4 if is_long else 4, 0),
            textcoords="offset points",
            ha="right" if is_long else "left",
            va="center",
            fontsize="small",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1} if is_long else None,
        )
    ax.set_yticks(range(len(layers)), [layer.name for layer in layers], fontsize="small")
    ax.set_ylim(len(layers) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel("dormant neurons")
    _tidy(ax)


def _draw_scores(strip: "Axes", layers: Layers, dormancy_threshold: float, colours: dict[str, str]) -> None:
    # Scores average 1, and dormant ones are far below. The few much greater scores are drawn at the edge.
    last = max(4, math.ceil(2 * dormancy_threshold))
    are_many = sum(layer.neurons for layer in layers) > 2000
    for row, layer in enumerate(layers):
        scores = layer.scores.detach().float().cpu()
        # Multiples of the golden ratio fill a row evenly, without a random draw.
        spread = (torch.arange(len(scores)) * 0.618034) % 1.0
        strip.plot(
            scores.clamp(max=last).numpy(),
            (row + 0.7 * (spread - 0.5)).numpy(),
            linestyle="none",
            marker="o",
            markersize=2 if are_many else 3.5,
            markeredgewidth=0,
            alpha=0.3 if are_many else 0.55,
            color=colours[layer.network],
            rasterized=True,
            clip_on=False,
        )
    strip.axvline(dormancy_threshold, color=_THRESHOLD_COLOUR, linewidth=1.5)
    strip.set_xlim(0, last)
    ticks = range(0, last + 1, math.ceil(last / 8))
    strip.set_xticks(ticks, [f"≥{last}" if tick == last else str(tick) for tick in ticks])
    strip.set_xlabel("score")
    strip.tick_params(labelleft=False)
    _tidy(strip)


def _tidy(ax: Any) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
