"""Computes final values of runs and of conditions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sb3_redo.reports.curves import ACCURACY, ALL, LOSS, RETURN, blocks_of, is_normalised, measure_of
from sb3_redo.reports.scores import frames_per_step, reference_of
from sb3_redo.reports.statistics import (
    holm,
    is_few,
    mean_interval,
    paired_difference,
    probability_of_improvement,
    score_intervals,
)
from sb3_redo.reports.sweep_folder import CALLBACK, REPLAY_RATIO, RunRecord, SweepRecord

# Column of the outcomes: name in result.json, and the key whose last point replaces it if missing.
_SOURCES = {
    "final_return": ("final_return", RETURN),
    "dormant_fraction": ("final_dormant_fraction", "dormancy/fraction"),
    "recycled_total": ("recycled_total", "redo/recycled_total"),
    "steps_per_second": ("steps_per_second", "time/fps"),
    "gradient_steps": ("gradient_steps", "dormancy/gradient_step"),
    "final_accuracy": ("final_accuracy", ACCURACY),
    "final_loss": ("final_loss", LOSS),
}
# For classifiers, and for trainings on stored transitions.
_OF_SOME = ("final_accuracy", "final_loss")
_MEANS = ("dormant_fraction", "recycled_total", "steps_per_second", "num_timesteps", "frames", "gradient_steps")


def run_outcomes(sweep: SweepRecord, curves: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run, with its progress and final values.

    :return: columns that describe the run, ``state``, ``num_timesteps``, ``frames``, ``gradient_steps``,
        ``final_return``, ``normalised_return`` (NaN without reference scores), ``dormant_fraction``,
        ``recycled_total``, ``steps_per_second``; of classifiers also ``final_accuracy``, of trainings on stored
        transitions ``final_loss``
    """
    last = curves[curves["key"].isin([key for _, key in _SOURCES.values()])]
    last = last.groupby(["run", "key"], observed=True)["value"].last().unstack()
    steps = curves.groupby("run", observed=True)["step"].max()
    redo = dict(curves.groupby("condition", observed=True)["redo"].first())
    rows = [_outcome(run, last, steps) | {"redo": bool(redo.get(run.label, False))} for run in sweep.runs]
    outcomes = pd.DataFrame(rows, columns=None if rows else ["run", "environment", "condition", "seed", "state"])
    return outcomes.drop(columns=[name for name in _OF_SOME if name in outcomes and outcomes[name].isna().all()])


def _outcome(run: RunRecord, last: pd.DataFrame, steps: pd.Series) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run.name, "environment": run.environment, "condition": run.label}
    row |= {"seed": run.seed, **run.condition, "setting": run.setting, "state": run.state}
    result = run.result or {}
    row["num_timesteps"] = result.get("num_timesteps") or int(steps.get(run.name, 0))
    row["frames"] = row["num_timesteps"] * frames_per_step(run.environment)
    for column, (name, key) in _SOURCES.items():
        value = result.get(name)
        if value is None and run.name in last.index and key in last.columns:
            value = last.at[run.name, key]
        row[column] = np.nan if value is None else float(value)
    reference = reference_of(run.environment)
    row["normalised_return"] = np.nan if reference is None else float(reference.normalise(row["final_return"]))
    return row


def condition_outcomes(outcomes: pd.DataFrame, seed: int = 0, with_holm: bool = False) -> pd.DataFrame:
    """Return one row per environment and condition: its finished runs, compared with the baseline.

    If returns can be normalised, each condition also has a row over all environments.

    :param outcomes: from :func:`run_outcomes`
    :param seed: of the bootstrap
    :param with_holm: whether to adjust the p-values of an environment's comparisons by Holm's method
    :return: columns that describe the condition, ``measure``, ``estimator`` (``mean`` or ``IQM``), ``runs``,
        ``environments``. Outcomes are ``return``, ``return_low``, ``return_high`` and ``dormant_fraction`` with its
        interval. Classifiers have ``accuracy``, and trainings on stored transitions ``loss``, instead of ``return``.
        Comparisons are ``baseline`` (see :func:`baselines_of`), ``pairs``, ``difference`` with its interval,
        ``probability_of_improvement``, ``p_value``, ``p_value_holm``. The other columns are means over the runs.
    """
    finished = outcomes[outcomes["state"] == "finished"] if len(outcomes) else outcomes
    if finished.empty:
        return pd.DataFrame(columns=["environment", "condition", "return"])
    baselines = baselines_of(outcomes)
    blocks = []
    for title, environments in blocks_of(finished["environment"]):
        mine = finished[finished["environment"].isin(environments)]
        blocks.append(_Block(title, environments, mine, primary_of(finished), seed).rows(baselines, with_holm))
    return pd.concat(blocks, ignore_index=True)


def baselines_of(outcomes: pd.DataFrame) -> dict[str, str]:
    """Return the baseline of every condition that has one.

    The baseline has the same other settings and the callback ``none``. If there is none, it has the first callback that
    does not recycle, or else the first callback. In a sweep with one callback it is the first condition.

    :param outcomes: columns ``condition``, ``setting``, ``redo`` and, if it is an axis, ``callback``
    """
    conditions = outcomes.drop_duplicates("condition")
    baselines: dict[str, str] = {}
    groups = [group for _, group in conditions.groupby("setting", sort=False)]
    for group in groups if any(len(group) > 1 for group in groups) else [conditions]:
        named = group[group[CALLBACK].astype(str) == "none"] if CALLBACK in group else group.iloc[:0]
        plain = group[~group["redo"].astype(bool)] if CALLBACK in group else group.iloc[:0]
        first = next(each["condition"].iloc[0] for each in (named, plain, group) if len(each))
        baselines |= {condition: first for condition in group["condition"] if condition != first}
    return baselines


class Primary(NamedTuple):
    """Describes the quantity by which conditions are compared.

    :param name: of its column in tables
    :param column: of :func:`run_outcomes`
    :param sign: -1 if lower is better
    """

    name: str
    column: str
    sign: int = 1


def primary_of(outcomes: pd.DataFrame) -> Primary:
    """Return the quantity by which conditions are compared: accuracy or loss if present, else the return."""
    for primary in (Primary("accuracy", "final_accuracy"), Primary("loss", "final_loss", sign=-1)):
        if primary.column in outcomes:
            return primary
    return Primary("return", "final_return")


@dataclass
class _Block:
    """Computes the rows of pooled environments.

    :param runs: finished runs
    """

    title: str
    environments: list[str]
    runs: pd.DataFrame
    primary: Primary
    seed: int

    def __post_init__(self) -> None:
        self.is_few = is_few(list(self.runs["condition"].value_counts()))
        is_return = self.primary.name == "return"
        self.column = "normalised_return" if is_return and is_normalised(self.environments) else self.primary.column
        self.measure = measure_of(self.environments) if is_return else self.primary.name
        one_a_run = self.runs.drop_duplicates(["condition", "seed", "environment"])
        values = one_a_run.set_index(["condition", "seed", "environment"])[[self.column, "dormant_fraction"]].unstack()
        # One row per condition and seed, one column per environment.
        self.scores = {name: values[name][self.environments] for name in (self.column, "dormant_fraction")}

    def rows(self, baselines: Mapping[str, str], with_holm: bool) -> pd.DataFrame:
        groups = dict(iter(self.runs.groupby("condition", sort=False)))
        rows = pd.DataFrame([self._row(name, mine) | self._compared(name, baselines) for name, mine in groups.items()])
        return rows.assign(p_value_holm=holm(list(rows["p_value"]))) if with_holm else rows

    def _row(self, condition: str, group: pd.DataFrame) -> dict[str, Any]:
        varying = {"run", "environment", "seed", "state", *_MEANS, "normalised_return", "final_return", *_OF_SOME}
        row: dict[str, Any] = {"environment": self.title}
        row |= {name: group[name].iloc[0] for name in group.columns if name not in varying}
        row |= {"measure": self.measure, "estimator": "mean" if self.is_few else "IQM", "runs": len(group)}
        row["environments"] = group["environment"].nunique()
        scores = self.scores[self.column].loc[condition].to_numpy()
        found = score_intervals(scores[:, :, None], self.is_few, self.seed)
        row |= _with_interval(self.primary.name, found.value[0], found.low[0], found.high[0])
        dormant = mean_interval(self.scores["dormant_fraction"].loc[condition].to_numpy())
        row |= _with_interval("dormant_fraction", dormant.value, dormant.low, dormant.high)
        return row | {name: group[name].mean() for name in _MEANS[1:]}

    def _compared(self, condition: str, baselines: Mapping[str, str]) -> dict[str, Any]:
        baseline = baselines.get(condition, "")
        row: dict[str, Any] = {"baseline": baseline}
        pairs = np.full((1, 1), np.nan), np.full((1, 1), np.nan)
        scores = self.scores[self.column]
        if baseline in scores.index:
            tables = scores.loc[condition].align(scores.loc[baseline])
            pairs = tables[0].to_numpy(), tables[1].to_numpy()
        found = paired_difference(*pairs, self.is_few, self.seed)
        row |= {"pairs": found.count} | _with_interval("difference", found.value, found.low, found.high)
        improvement = probability_of_improvement(*(self.primary.sign * values for values in pairs))
        return row | {"probability_of_improvement": improvement, "p_value": found.p_value}


def _with_interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def by_replay_ratio(conditions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows to draw against the replay ratio: pooled over environments if possible, else of each.

    The column ``series`` has the condition without its replay ratio.
    """
    if not {REPLAY_RATIO, "return"} <= set(conditions):
        return conditions.iloc[:0]
    whole = conditions[conditions["environment"] == ALL]
    mine = conditions if whole.empty else whole
    series = (
        mine["condition"]
        .str.split(",")
        .map(lambda parts: ",".join(part for part in parts if not part.startswith(f"{REPLAY_RATIO}=")) or "all")
    )
    return mine.assign(series=series)
