"""Writes means over seeds with their intervals, and marks which of a family of differences are there."""

from collections.abc import Sequence

import pandas as pd

from sb3_redo.reports.statistics import holm, mean_interval

MARK = r" \*"


def cell(values: "pd.Series[float]", form: str) -> str:
    """Write mean and 95 % t interval, each in the given format; a hyphen where there are no values."""
    found = mean_interval(values.to_numpy())
    if not found.count:
        return "-"
    mean, low, high = (format(value, form) for value in (found.value, found.low, found.high))
    return f"{mean} [{low}, {high}]" if found.count > 1 else mean


def p_cell(p: float) -> str:
    """Write a p-value with three digits."""
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def family(differences: Sequence["pd.Series[float]"], form: str) -> list[str]:
    """Write the differences of a family as :func:`cell` does, those marked whose p-value by Holm is below 0.05.

    :param differences: of each comparison, paired by seed
    """
    p_values = holm([mean_interval(each.to_numpy()).p_value for each in differences])
    return [cell(each, form) + (MARK if p < 0.05 else "") for each, p in zip(differences, p_values, strict=True)]


def rule(compared: int, of: str) -> str:
    """Return the sentences below a table that say what its intervals and marks are.

    :param compared: how many comparisons a family has
    :param of: what a family is
    """
    return (
        f"Means over n seeds with 95 % t intervals; differences are paired by seed.\n"
        f"{MARK.strip()} p < 0.05 in a paired t test, by Holm over a family of {compared}: {of}."
    )
