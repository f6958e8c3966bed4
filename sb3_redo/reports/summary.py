"""Writes a sweep's results: one table and its conclusions in words."""

import math
from typing import Any

import numpy as np
import pandas as pd

from sb3_redo.reports.curves import ALL
from sb3_redo.reports.outcomes import primary_of
from sb3_redo.reports.statistics import CONFIDENCE, TOO_FEW_RUNS
from sb3_redo.reports.styles import short_labels
from sb3_redo.reports.sweep_folder import text

_BETTER = "P(better)"


def summary_table(conditions: pd.DataFrame, axes: tuple[str, ...]) -> pd.DataFrame:
    """Write one row of text per condition. Columns with equal values are left out.

    :param conditions: of :func:`~sb3_redo.reports.outcomes.condition_outcomes`
    :param axes: of the sweep; varying ones become columns
    :return: columns ``environment``, the axes, ``n``, ``dormant``, ``return`` (or another compared quantity),
        ``difference``, ``P(better)``, and ``p (Holm)`` if p-values were adjusted. Brackets hold 95 % intervals
    """
    if conditions.empty:
        return pd.DataFrame()
    name = primary_of_table(conditions)
    baselines = set(conditions["baseline"])
    rows = []
    for _, row in conditions.iterrows():
        cells = {"environment": row["environment"]} | {axis: text(row[axis]) for axis in axes}
        cells |= {"n": str(row["runs"]), "dormant": _share(row), name: with_interval(row, name)}
        is_baseline = not row["baseline"] and row["condition"] in baselines
        cells["difference"] = "baseline" if is_baseline else with_interval(row, "difference", signed=True)
        cells[_BETTER] = _probability(row["probability_of_improvement"])
        if "p_value_holm" in row:
            cells["p"], cells["p (Holm)"] = _probability(row["p_value"], 3), _probability(row["p_value_holm"], 3)
        rows.append(cells)
    table = pd.DataFrame(rows)
    names = {axis: axis.rpartition(".")[2].replace("_", " ") for axis in axes}
    repeated = [axis for axis in ("environment", *axes) if table[axis].nunique() == 1]
    empty = [column for column in table if (table[column] == "").all()]
    return table.drop(columns=list(dict.fromkeys([*repeated, *empty]))).rename(columns=names)


def primary_of_table(conditions: pd.DataFrame) -> str:
    """Return the name of the column by which conditions are compared."""
    return next(name for name in ("accuracy", "loss", "return") if name in conditions)


def findings(conditions: pd.DataFrame, outcomes: pd.DataFrame) -> list[str]:
    """Return sentences on the best condition, on differences whose intervals exclude 0, and on limits.

    :param conditions: rows of one block: pooled environments, or one environment
    :param outcomes: of :func:`~sb3_redo.reports.outcomes.run_outcomes`
    """
    if conditions.empty:
        return ["No run has finished."]
    name, sign = primary_of_table(conditions), primary_of(outcomes).sign
    labels = short_labels(list(dict.fromkeys(conditions["condition"])))
    sentences = []
    if conditions["environment"].nunique() == 1 and conditions[name].notna().any():
        best = conditions.loc[(sign * conditions[name]).idxmax()]
        about = f" ({labels[best['condition']]})" if labels[best["condition"]] else ""
        sentences.append(f"{'Highest' if sign > 0 else 'Lowest'} {name}: {with_interval(best, name)}{about}.")
    if name == "return" and len(conditions) > 1 and conditions["dormant_fraction"].notna().any():
        ends = conditions["dormant_fraction"].agg(["idxmin", "idxmax"])
        told = [f"{_share(conditions.loc[end])} ({labels[conditions.loc[end, 'condition']]})" for end in ends]
        sentences.append(f"Dormant neurons: from {told[0]} to {told[1]}.")
    compared = conditions[conditions["difference_low"].notna()]
    apart = compared[(compared["difference_low"] > 0) | (compared["difference_high"] < 0)]
    if len(compared):
        sentences.append(_of_differences(name, compared, apart, labels))
    return sentences


def _of_differences(name: str, compared: pd.DataFrame, apart: pd.DataFrame, labels: dict[str, str]) -> str:
    count = len(compared)
    what = f"{count} comparison{'s' * (count > 1)} with the baseline"
    if not len(apart):
        return f"In {what}, every interval of the difference in {name} includes 0: no difference is shown."
    several = compared["environment"].nunique() > 1
    told = [
        f"{row['environment']}, " * several
        + f"{labels[row['condition']]}: {with_interval(row, 'difference', signed=True)}"
        for _, row in apart.head(6).iterrows()
    ]
    more = f"; and {len(apart) - 6} more" if len(apart) > 6 else ""
    return f"In {what}, the interval of the difference in {name} excludes 0 in {len(apart)}: {'; '.join(told)}{more}."


def caveats(conditions: pd.DataFrame) -> list[str]:
    """Return sentences on the method of the numbers and on their limits.

    :param conditions: rows of one block

    """
    if conditions.empty:
        return []
    name = primary_of_table(conditions)
    is_mean = conditions["estimator"].iloc[0] == "mean"
    how = "means over runs with 95 % t intervals" if is_mean else (
        "interquartile means (IQM) over runs with 95 % stratified bootstrap intervals"
    )  # fmt: skip
    measure = str(conditions["measure"].iloc[0])
    what = name if measure == name else f"{name} is the {measure}"
    sentences = [f"n: runs; dormant: share of neurons at the end; {what}. Values are {how}."]
    compared = conditions[conditions["baseline"] != ""]
    if len(compared):
        sentences.append(
            f"Differences are paired by seed and taken from {_baseline(compared)}. {_BETTER}: the probability that a "
            "run exceeds one of the baseline."
        )
    count = int(compared["difference_low"].notna().sum())
    if count > 1 and "p_value_holm" not in conditions:
        chance = 1 - CONFIDENCE**count
        sentences.append(
            f"{count} comparisons: without any real effect, one or more intervals exclude 0 in up to "
            f"{100 * chance:.0f} % of sweeps. Option --holm gives p-values that are adjusted for this."
        )
    elif count > 1:
        sentences.append(f"p-values are adjusted for {count} comparisons (Holm).")
    fewest = int(conditions["runs"].min())
    if fewest < TOO_FEW_RUNS:
        sentences.append(f"Warning: only {fewest} run{'s' * (fewest > 1)} in a condition. Too few for a conclusion.")
    return sentences


def _baseline(compared: pd.DataFrame) -> str:
    names = list(dict.fromkeys(compared["baseline"]))
    if len(names) == 1:
        return str(names[0])
    shared = set.intersection(*(set(name.split(",")) for name in names))
    return f"{', '.join(sorted(shared)) or 'the baseline'} with the same other settings"


def shown_first(conditions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the first table: pooled over environments if possible, else all."""
    whole = conditions[conditions["environment"] == ALL]
    return whole if len(whole) else conditions


def with_interval(row: "pd.Series[Any]", name: str, signed: bool = False) -> str:
    """Write a value and its interval, with digits chosen by the interval's width.

    >>> with_interval(pd.Series({"return": 99.08, "return_low": 79.84, "return_high": 125.9}), "return")
    '99 [80, 126]'
    """
    value, low, high = (float(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    if not np.isfinite(value):
        return ""
    width = high - low
    scale = width if np.isfinite(width) and width > 0 else abs(value) or 1.0
    # Two digits of the interval's width, and at most four of the value.
    digits = max(0, min(1 - math.floor(math.log10(scale)), 3 - math.floor(math.log10(max(abs(value), scale)))))
    form = f"{'+' * signed}.{digits}f" if abs(value) < 1e6 else ".3g"
    told = [_unsigned_zero(format(each, form)) for each in (value, low, high)]
    return f"{told[0]} [{told[1]}, {told[2]}]" if np.isfinite(width) else told[0]


def _unsigned_zero(number: str) -> str:
    return number if float(number) else number.lstrip("+-")


def _share(row: "pd.Series[Any]") -> str:
    percent = {name: 100 * row[f"dormant_fraction{name}"] for name in ("", "_low", "_high")}
    if not np.isfinite(percent[""]):
        return ""
    told = f"{percent['']:.{0 if percent[''] >= 10 else 1}f} %"
    low, high = max(0.0, percent["_low"]), min(100.0, percent["_high"])
    return told if not np.isfinite(low) else f"{told} [{low:.0f}, {high:.0f}]"


def _probability(value: float, digits: int = 2) -> str:
    if not np.isfinite(value):
        return ""
    least = 10**-digits
    return f"<{least:g}" if digits > 2 and value < least else f"{value:.{digits}f}"


def text_table(table: pd.DataFrame, width: int) -> str:
    """Write a table for a terminal. If it is too wide, the dormant share has no interval.

    :param width: in characters
    """
    if table.empty:
        return ""
    short = table.assign(dormant=table["dormant"].str.partition(" [")[0]) if "dormant" in table else table
    choices = [_padded(table, "  "), _padded(short, "  "), _padded(short, " ")]
    return next((told for told in choices if max(map(len, told.splitlines())) <= width), choices[-1])


def _padded(table: pd.DataFrame, gap: str) -> str:
    rows = [list(table.columns), *table.to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(gap.join(map(str.ljust, row, widths)).rstrip() for row in rows)
