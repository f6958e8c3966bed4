"""Compares an experiment's measurements with published numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from sb3_redo.experiments.catalogue import Experiment
from sb3_redo.reports.build import markdown_table
from sb3_redo.reports.curves import ALL
from sb3_redo.reports.outcomes import condition_outcomes, run_outcomes
from sb3_redo.reports.paper import Published, published_numbers
from sb3_redo.reports.scores import game_of
from sb3_redo.reports.statistics import score_intervals, stacked
from sb3_redo.reports.styles import short_labels
from sb3_redo.reports.sweep_folder import CALLBACK, REPLAY_RATIO, SweepRecord, text
from sb3_redo.validation import one_of


@dataclass(frozen=True)
class Quantity:
    """Describes a final quantity of runs.

    :param words: its description
    :param key: its logged key; without one, the final return
    :param last: number of last points to average
    :param percent: whether it is a share
    :param of_first: whether it is divided by each run's first point
    :param label: of its curves
    :param log: whether its curves are drawn on a logarithmic axis
    """

    words: str
    key: str | None = None
    last: int = 1
    percent: bool = True
    of_first: bool = False
    label: str = ""
    log: bool = False


@cache
def quantities() -> dict[str, Quantity]:
    """Return all quantities by name, from ``quantities.yml``."""
    content = yaml.safe_load(Path(__file__).with_name("quantities.yml").read_text(encoding="utf-8"))
    return {name: Quantity(**entry) for name, entry in content.items()}


@dataclass(frozen=True)
class PaperNumber:
    """Holds a published number.

    :param quantity: a name in :func:`quantities`
    :param figure: number of the figure, for Lyle et al. 2023 with the authors' name in front
    :param scale: its unit and setting
    :param source: ``digitised`` from the figure, ``read by eye``, ``printed`` in it, or ``second hand``
    :param where: axis to label of its conditions
    :param game: its game; an environment with a number of its own shows no other
    :param algorithm: of its sweeps; by default all
    """

    quantity: str
    value: float
    figure: str
    scale: str
    source: str
    where: Mapping[str, Any] = field(default_factory=dict)
    low: float = np.nan
    high: float = np.nan
    game: str | None = None
    algorithm: str | None = None

    def fits(self, quantity: str, condition: Mapping[str, Any], algorithm: str) -> bool:
        """Return whether the number belongs to a condition. Axes missing in the condition are ignored."""
        if self.quantity != quantity or self.algorithm not in (None, algorithm):
            return False
        return all(text(condition[axis]) == text(label) for axis, label in self.where.items() if axis in condition)


def paper_numbers(experiment: Experiment) -> list[PaperNumber]:
    """Return the numbers of the catalogue, with those that it takes from the report."""
    own = [PaperNumber(**number) for number in experiment.published]
    for number in own:
        one_of("quantity", number.quantity, tuple(quantities()))
    known = experiment.report_figures or {}
    return own + [
        _of_report(number) for number in published_numbers() if number.replay_ratio in known.get(number.figure, ())
    ]


def _of_report(number: Published) -> PaperNumber:
    return PaperNumber(
        quantity="return" if number.quantity == "return" else "dead",
        value=number.value,
        low=number.low,
        high=number.high,
        figure=number.figure,
        scale=number.scale.removeprefix(f"{number.game}, "),
        source="digitised" if number.figure.startswith("1") else "read by eye",
        where={REPLAY_RATIO: number.replay_ratio, CALLBACK: number.rival or ("redo" if number.redo else "none")},
        game=None if number.game == "Atari" else number.game,
    )


def conditions_of(sweep: SweepRecord, curves: pd.DataFrame, names: Iterable[str], seed: int = 0) -> pd.DataFrame:
    """Return one row per environment, condition and quantity of a sweep's finished runs.

    :param curves: from :func:`~sb3_redo.reports.tables.read_curves`
    :param names: of quantities, in :func:`quantities`; quantities without points are left out
    :param seed: of the bootstrap
    :return: columns ``environment``, ``condition``, the axes, ``quantity`` (its name), ``value``, ``low``, ``high`` (by
        the rule of :mod:`sb3_redo.reports.statistics`), ``runs``, ``measure`` (in words)
    """
    outcomes = run_outcomes(sweep, curves)
    finished = outcomes[outcomes["state"] == "finished"] if len(outcomes) else outcomes
    rows, known = [], quantities()
    for _, condition in condition_outcomes(outcomes, seed).iterrows():
        mine = finished[finished["condition"] == condition["condition"]]
        if condition["environment"] != ALL:
            mine = mine[mine["environment"] == condition["environment"]]
        about = {name: condition[name] for name in ("environment", "condition", *sweep.axes, "runs")}
        for name in names:
            quantity = known[one_of("quantity", name, tuple(known))]
            if quantity.key is None:
                of_return = {"value": "return", "low": "return_low", "high": "return_high"}
                found = {name: condition.get(column, np.nan) for name, column in of_return.items()}
                words = f"{quantity.words}: {condition['measure']}"
            else:
                found = _estimate(_ends(curves, mine, quantity), condition["estimator"] == "mean", seed)
                words = quantity.words
            if np.isfinite(found["value"]):
                rows.append({**about, "quantity": name, **found, "measure": words})
    return pd.DataFrame(rows)


def _ends(curves: pd.DataFrame, runs: pd.DataFrame, quantity: Quantity) -> list[np.ndarray]:
    """Return the final values of each environment's runs, ``[runs, 1]``."""
    logged = curves[(curves["key"] == quantity.key) & curves["run"].isin(runs["run"])]
    last = logged.groupby("run", observed=True).tail(quantity.last).groupby("run", observed=True)["value"].mean()
    if quantity.of_first:
        last = last / logged.groupby("run", observed=True)["value"].first()
    ends = runs["run"].map(last.to_dict())
    return [ends[runs["environment"] == name].to_numpy(dtype=float)[:, None] for name in runs["environment"].unique()]


def _estimate(of_environments: list[np.ndarray], few: bool, seed: int) -> dict[str, float]:
    estimate = score_intervals(stacked(of_environments), few, seed)
    return {"value": estimate.value[0], "low": estimate.low[0], "high": estimate.high[0]}


def beside_paper(conditions: pd.DataFrame, published: Iterable[PaperNumber], algorithm: str) -> pd.DataFrame:
    """Compare with the paper: one row per published number, and one per number of ours without any.

    :param conditions: from :func:`conditions_of`
    :param published: candidates
    :param algorithm: of the sweep
    :return: columns ``environment``, ``condition`` (its differing parts), ``quantity`` (in words), ``ours``, ``low``,
        ``high``, ``runs``, ``paper``, ``paper_low``, ``paper_high``, ``paper_scale``, ``figure``, ``source``
    """
    rows = []
    labels = short_labels(list(conditions["condition"])) if len(conditions) else {}
    for _, ours in conditions.iterrows():
        row = {"environment": ours["environment"], "condition": labels[ours["condition"]], "quantity": ours["measure"]}
        row |= {"ours": ours["value"], "low": ours["low"], "high": ours["high"], "runs": ours["runs"]}
        fitting = [number for number in published if number.fits(ours["quantity"], ours, algorithm)]
        mine = [number for number in fitting if number.game == game_of(ours["environment"])]
        for number in mine or fitting:
            scale = f"{number.game}: {number.scale}" if number.game else number.scale
            rows.append(
                row
                | {"paper": number.value, "paper_low": number.low, "paper_high": number.high}
                | {"paper_scale": scale, "figure": number.figure, "source": number.source}
            )
        if not fitting:
            rows.append(row)
    return pd.DataFrame(rows)


def beside_table(numbers: pd.DataFrame) -> str:
    """Write one row per condition. Each quantity has a column of ours, and one of the paper's if published.

    :param numbers: from :func:`beside_paper`
    :return: Markdown
    """
    rows = []
    for (environment, condition), mine in numbers.groupby(["environment", "condition"], sort=False):
        row = {"environment": environment, "condition": condition, "runs": mine["runs"].iloc[0]}
        for quantity, found in mine.groupby("quantity", sort=False):
            row[quantity] = _number(found.iloc[0], "ours", quantity)
            if _published(numbers[numbers["quantity"] == quantity]).size:
                row[f"{str(quantity).partition(': ')[0]}: the paper"] = ", ".join(
                    _of_game(number, quantity) for _, number in _published(found).iterrows()
                )
        rows.append(row)
    return markdown_table(pd.DataFrame(rows).dropna(axis="columns", how="all"))


def sources_table(numbers: pd.DataFrame) -> str:
    """Write the scales and sources of the paper's numbers, or nothing without any."""
    published = _published(numbers)
    if not len(published):
        return ""
    shown = published[["quantity", "figure", "paper_scale", "source"]].drop_duplicates(ignore_index=True)
    return markdown_table(shown.rename(columns={"paper_scale": "of", "source": "how we know it"}))


def _published(numbers: pd.DataFrame) -> pd.DataFrame:
    return numbers[numbers["paper"].notna()] if "paper" in numbers else numbers.iloc[:0]


def _of_game(number: "pd.Series[object]", quantity: str) -> str:
    game, parted, _ = str(number["paper_scale"]).partition(": ")
    told = _number(number, "paper", quantity, "paper_")
    return f"{told} ({game})" if parted else told


def _number(row: "pd.Series[object]", name: str, quantity: str, prefix: str = "") -> str:
    """Write a value with its interval, if it has one. Shares are in percent."""
    is_share = any(known.percent and known.words == quantity for known in quantities().values())
    scale, unit, form = (100, " %", ".1f") if is_share else (1, "", ".3g")
    value, low, high = (float(row[key]) * scale for key in (name, f"{prefix}low", f"{prefix}high"))
    if not is_share and abs(value) >= 100:
        form = ".0f"
    told = f"{value:{form}}{unit}"
    return told if low != low else f"{told} [{low:{form}}, {high:{form}}]"
