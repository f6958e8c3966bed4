"""Writes the Markdown tables of the study of recycled neurons; differences are paired by seed."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from studies.intervals import cell, family, rule
from studies.recycled_figures import LABELS

MODES = ["clear", "match"]


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write a table."""
    lines = [" | ".join(map(str, row)) for row in (head, *rows)]
    return "\n".join(f"| {line} |" for line in (lines[0], " | ".join("---" for _ in head), *lines[1:]))


def late_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """Return the means over the last five tasks, as :func:`ways` takes them.

    :param table: as :func:`studies.recycled.by_task`
    """
    late = table[table["task"] >= table["task"].max() - 4]
    return late.groupby(["epsilon", "callback", "seed"], as_index=False, sort=False)[["fraction", "return"]].mean()


def ways(table: pd.DataFrame, returns: str) -> str:
    """Write a row for each epsilon of Adam and way to recycle, and its difference from no recycling.

    :param table: columns ``callback``, ``epsilon``, ``seed``, ``fraction``, what is dormant in %, and ``return``
    :param returns: name of the last of them
    """
    conditions = [
        (epsilon, callback)
        for epsilon in table["epsilon"].unique()
        for callback in LABELS
        if callback in set(table.loc[table["epsilon"] == epsilon, "callback"])
    ]
    seeds = table.set_index(["epsilon", "callback", "seed"]).sort_index()
    columns, compared = [], [(epsilon, callback) for epsilon, callback in conditions if callback != "none"]
    for quantity in ("fraction", "return"):
        digits = 0 if table[quantity].abs().max() >= 10 else 2
        values = {condition: seeds.loc[condition, quantity] for condition in conditions}
        gains = [values[condition] - values.get((condition[0], "none"), np.nan) for condition in compared]
        differences = dict(zip(compared, family(gains, f"+.{digits}f"), strict=True))
        columns.append([cell(values[condition], f".{digits}f") for condition in conditions])
        columns.append([differences.get(condition, "") for condition in conditions])
    about = [(epsilon, LABELS[callback], len(seeds.loc[epsilon, callback])) for epsilon, callback in conditions]
    head = ["Adam's epsilon", "", "n", "dormant [%]", "against none", returns, "against none"]
    rows = [(*first, *rest) for first, rest in zip(about, zip(*columns, strict=True), strict=True)]
    return f"{markdown(head, rows)}\n\n{rule(len(compared), 'the differences of one column')}"


def growth(table: pd.DataFrame) -> str:
    """Write what became of neurons that were recycled once, at a few ages.

    Dormancy and outgoing norm are means over seeds, contributions medians, since they differ much from seed to seed.
    A hyphen stands where a seed has no value: none is left out in silence.

    :param table: as :func:`studies.recycled_ages.by_age`, of one environment
    """
    ages = sorted(table["age"].unique())
    late = _late(table)
    shown = {"dormant": sorted({0, 10, late, ages[-1]}), "norm": [late], "contribution": sorted({10, late})}
    head, parts = ["", "n"], []
    for epsilon in table["epsilon"].unique():
        for quantity, some in shown.items():
            of_all = "median" if quantity == "contribution" else "mean"
            by_age = table[table["epsilon"] == epsilon].groupby(["callback", "age"])[f"survival/{quantity}"]
            parts.append(by_age.agg(of_all, skipna=False).unstack("age").reindex(columns=some))
            head += [f"{epsilon}: {quantity} [%] after {some[0]:,}", *(f"{age:,}" for age in some[1:])]
    shares, counts = 100 * pd.concat(parts, axis=1), table.groupby("callback")["seed"].nunique()
    rows = [
        (label, counts[callback], *("-" if np.isnan(value) else f"{value:.{int(value < 9.95)}f}" for value in values))
        for callback, label, values in _by_label(shares)
    ]
    return markdown(head, rows)


def pairs(table: pd.DataFrame) -> str:
    """Write by how much neurons contribute more with ``match`` than with each other way, at the latest age up to 1,000.

    :param table: as :func:`studies.recycled_ages.by_age`, of one environment
    """
    late, epsilons = _late(table), list(table["epsilon"].unique())
    at = table[table["age"] == late].set_index(["epsilon", "callback", "seed"])["survival/contribution"] * 100
    others = [callback for callback in LABELS if callback != "match" and callback in set(table["callback"])]
    gains = [at[epsilon]["match"] - at[epsilon].get(other, np.nan) for other in others for epsilon in epsilons]
    cells = iter(family(gains, "+.1f"))
    rows = [(LABELS[other], *(next(cells) for _ in epsilons)) for other in others]
    head = [f"`match` against, after {late:,} steps [points]", *epsilons]
    return f"{markdown(head, rows)}\n\n{rule(len(gains), 'all differences of the table')}"


def thresholds(table: pd.DataFrame) -> str:
    """Write a row for each environment, threshold and period: ``clear``, ``match``, and their difference.

    :param table: as :func:`studies.recycled_settings.by_settings`
    """
    settings = [
        ((environment, threshold, period), rows)
        for environment, mine in table.groupby("environment", sort=False)
        for (threshold, period), rows in mine.groupby(["threshold", "period"])
    ]
    columns = []
    for quantity in ("fraction", "return"):
        values = [
            rows.pivot(index="seed", columns="callback", values=quantity).reindex(columns=MODES) for _, rows in settings
        ]
        top = table.groupby("environment")[quantity].agg(lambda some: some.abs().max())
        digits = [0 if top[environment] >= 10 else 2 for (environment, *_), _ in settings]
        columns += [[cell(of[mode], f".{n}f") for of, n in zip(values, digits, strict=True)] for mode in MODES]
        columns.append(_one_family([of["match"] - of["clear"] for of in values], digits))
    about = [
        (environment, f"{threshold:g}", f"{period:,}", rows["seed"].nunique())
        for (environment, threshold, period), rows in settings
    ]
    head = ["", "threshold", "period", "n", "dormant [%]: clear", "match", "difference"]
    head += ["return: clear", "match", "difference"]
    rows = [(*first, *rest) for first, rest in zip(about, zip(*columns, strict=True), strict=True)]
    return f"{markdown(head, rows)}\n\n{rule(len(rows), 'the differences of one column')}"


def _one_family(differences: list["pd.Series[float]"], digits: list[int]) -> list[str]:
    """Write a family whose members have their own number of decimals."""
    written = {n: family(differences, f"+.{n}f") for n in set(digits)}
    return [written[n][number] for number, n in enumerate(digits)]


def _late(table: pd.DataFrame) -> int:
    return int(table.loc[table["age"] <= 1000, "age"].max())


def _by_label(shares: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    for callback, label in LABELS.items():
        if callback in shares.index:
            yield callback, label, shares.loc[callback].to_numpy(float)
