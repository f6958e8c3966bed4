"""Makes tables of what became of neurons that were recycled once; :mod:`studies.recycled` shows them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from sb3_redo.reports import read_curves, read_sweep_folder
from studies.intervals import cell
from studies.recycled_figures import LABELS, QUANTITIES, draw_survival


def by_age(folder: Path) -> pd.DataFrame:
    """Read what :class:`studies.survival.Survival` logged in the runs of a sweep.

    :return: columns ``environment``, ``epsilon``, ``callback``, ``seed``, ``age`` in gradient steps, and one for each
        quantity, shares of 1
    """
    curves = read_curves(read_sweep_folder(folder))
    mine = curves[curves["key"].str.startswith("survival/")]
    names = ["environment", "policy_kwargs", "callback", "seed", "step", "key"]
    wide = mine.astype({"environment": str}).set_index(names)["value"].unstack("key").reset_index()
    wide = wide.rename(columns={"survival/age": "age", "policy_kwargs": "epsilon"}).astype({"age": int})
    return wide.drop(columns="step")


def survival(table: pd.DataFrame, figure: Path | None) -> None:
    """Print and draw what became of the neurons."""
    for environment, mine in table.groupby("environment", sort=False):
        for epsilon, of in mine.groupby("epsilon", sort=False):
            for quantity, name in QUANTITIES.items():
                title = f"{environment}, Adam's epsilon {epsilon}, {of['seed'].nunique()} seeds: {name}"
                _tell_ages(title, of, quantity)
        _tell_growth(str(environment), mine)
        _tell_pairs(str(environment), mine)
    if figure is not None:
        draw_survival(table, figure)


def mean_of_all(values: "pd.Series[float]") -> float:
    """Return the mean, NaN where one value is: a seed without other live neurons is not left out in silence."""
    return float(values.mean(skipna=False))


def median_of_all(values: "pd.Series[float]") -> float:
    """Return the median, NaN where one value is."""
    return float(values.median(skipna=False))


def _tell_ages(title: str, mine: pd.DataFrame, quantity: str) -> None:
    means = mine.pivot_table(index="callback", columns="age", values=quantity, aggfunc=mean_of_all, dropna=False)
    _tell(title, [f"{age:,}" for age in means], means)


def _tell_growth(environment: str, mine: pd.DataFrame) -> None:
    """Print dormant and outgoing norm, means over seeds, and contribution, their median, at a few ages."""
    seen = sorted(mine["age"].unique())
    late = max(age for age in seen if age <= 1000)
    shown = {"dormant": sorted({10, late, seen[-1]}), "norm": [late], "contribution": sorted({10, late})}
    columns, parts = [], []
    for epsilon in mine["epsilon"].unique():
        for quantity, some in shown.items():
            of_all = median_of_all if quantity == "contribution" else mean_of_all
            of = mine[mine["epsilon"] == epsilon].groupby(["callback", "age"])[f"survival/{quantity}"].agg(of_all)
            parts.append(of.unstack("age").reindex(columns=some))
            columns += [f"{epsilon}: {quantity} [%] after {some[0]:,}", *(f"{age:,}" for age in some[1:])]
    _tell(environment, columns, pd.concat(parts, axis=1))


def _tell_pairs(environment: str, mine: pd.DataFrame) -> None:
    """Print how much more ``match`` contributes than each other way, by seed, at the latest age up to 1,000."""
    late = max(age for age in mine["age"] if age <= 1000)
    at = mine[mine["age"] == late].set_index(["epsilon", "callback", "seed"])["survival/contribution"] * 100
    if "match" not in at.index.get_level_values("callback"):
        return
    epsilons = list(mine["epsilon"].unique())
    print(f"\n{environment}: contribution with match, against that with others, after {late:,} [points]\n")
    print(f"| | {' | '.join(epsilons)} |\n|---|{'---|' * len(epsilons)}")
    for callback, label in LABELS.items():
        gains = [(at[epsilon]["match"] - at[epsilon].get(callback, pd.Series())).dropna() for epsilon in epsilons]
        if callback != "match" and any(len(gain) for gain in gains):
            print(f"| {label} | {' | '.join(cell(gain, '+.1f') for gain in gains)} |")


def _tell(title: str, columns: list[str], shares: pd.DataFrame) -> None:
    """Print a table with a line for each way to recycle, and a hyphen where there is no value."""
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for label, values in _by_label(100 * shares):
        cells = ["-" if np.isnan(value) else f"{value:.{int(value < 9.95)}f}" for value in values]
        print(f"| {label} | {' | '.join(cells)} |")


def _by_label(shares: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    for callback, label in LABELS.items():
        if callback in shares.index:
            yield label, shares.loc[callback].to_numpy(float)
