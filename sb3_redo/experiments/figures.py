"""Figures of what experiments alone compare: as those of :mod:`sb3_redo.reports.figures`."""

import textwrap
from typing import TYPE_CHECKING

import pandas as pd

from sb3_redo.reports.figures import Styles, draw_curves, in_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_pruned(table: pd.DataFrame, ax: "Axes | None" = None, styles: Styles | None = None) -> "Axes":
    """Share of neurons that have been pruned; as :func:`~sb3_redo.reports.figures.plot_dormancy`.

    :param table: of one environment, from :func:`~sb3_redo.reports.curves.over_seeds` of ``pruning/pruned_fraction``
    """
    return in_percent(draw_curves(table, ax, styles), "pruned neurons [%]")


def plot_sharpness(table: pd.DataFrame, ax: "Axes | None" = None, styles: Styles | None = None) -> "Axes":
    """Largest eigenvalue of a loss's Hessian on a logarithmic axis; as :func:`~sb3_redo.reports.figures.plot_dormancy`.

    :param table: of one environment, from :func:`~sb3_redo.reports.curves.side_by_side`
    """
    ax = draw_curves(table, ax, styles)
    ax.set_ylabel("sharpness (largest eigenvalue)")
    ax.set_yscale("log")
    return ax


def plot_interference(table: pd.DataFrame, ax: "Axes | None" = None, styles: Styles | None = None) -> "Axes":
    """Share of pairs of samples whose gradients point apart; as :func:`~sb3_redo.reports.figures.plot_dormancy`.

    :param table: of one environment, from :func:`~sb3_redo.reports.curves.side_by_side`
    """
    return in_percent(draw_curves(table, ax, styles), "pairs of samples with\nopposed gradients [%]")


def plot_loss(table: pd.DataFrame, ax: "Axes | None" = None, styles: Styles | None = None) -> "Axes":
    """Loss of a training on stored transitions, on a logarithmic axis.

    As :func:`~sb3_redo.reports.figures.plot_dormancy`.

    :param table: of one environment, from :func:`~sb3_redo.reports.curves.over_seeds` of ``offline/loss``
    """
    ax = draw_curves(table, ax, styles)
    ax.set_yscale("log")
    ax.set_ylabel("Huber loss of the values\n[discounted return]")
    return ax


def plot_measure(table: pd.DataFrame, ax: "Axes | None" = None, styles: Styles | None = None) -> "Axes":
    """Anything else that was logged, in its own unit; as :func:`~sb3_redo.reports.figures.plot_dormancy`.

    :param table: of one environment, from :func:`~sb3_redo.reports.curves.over_seeds`, with a column ``measure`` that
        says what it is
    """
    ax = draw_curves(table, ax, styles)
    if len(table):
        ax.set_ylabel(textwrap.fill(table["measure"].iloc[0], 30))
    return ax
