"""Computes what runs ended with, and what their conditions ended with."""

from typing import Any

import numpy as np
import pandas as pd

from sb3_redo.reports.curves import ACCURACY, ALL, LOSS, RETURN, is_normalised, measure_of
from sb3_redo.reports.scores import frames_per_step, reference_of
from sb3_redo.reports.statistics import stacked, stratified_intervals
from sb3_redo.reports.sweep_folder import REPLAY_RATIO, RunRecord, SweepRecord

# Column of the outcomes: name in result.json, key whose last point stands in for it.
_SOURCES = {
    "final_return": ("final_return", RETURN),
    "dormant_fraction": ("final_dormant_fraction", "dormancy/fraction"),
    "recycled_total": ("recycled_total", "redo/recycled_total"),
    "steps_per_second": ("steps_per_second", "time/fps"),
    "gradient_steps": ("gradient_steps", "dormancy/gradient_step"),
    "final_accuracy": ("final_accuracy", ACCURACY),
    "final_loss": ("final_loss", LOSS),
}
# Of classifiers, and of trainings on stored transitions.
_OF_SOME = ("final_accuracy", "final_loss")


def run_outcomes(sweep: SweepRecord, curves: pd.DataFrame) -> pd.DataFrame:
    """Return one row a run: how far it came and what it had then.

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
    outcomes = pd.DataFrame(rows)
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


def condition_outcomes(outcomes: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return one row an environment and condition, of its finished runs.

    Where returns can be normalised, there is a row a condition over all environments, too.

    :param outcomes: from :func:`run_outcomes`
    :param seed: of the bootstrap
    :return: columns that describe the condition, ``measure``, ``value`` (interquartile mean of the final return),
        ``low``, ``high`` (95 % stratified bootstrap), ``runs``, ``environments``, and means over the runs:
        ``dormant_fraction``, ``recycled_total``, ``steps_per_second``, ``num_timesteps``, ``frames``, and of
        some ``final_accuracy`` or ``final_loss``
    """
    finished = outcomes[outcomes["state"] == "finished"] if len(outcomes) else outcomes
    if finished.empty:
        return pd.DataFrame(columns=["environment", "condition", "value"])
    names = list(finished["environment"].unique())
    tables = [(name, [name]) for name in names]
    if len(names) > 1 and is_normalised(names):
        tables.insert(0, (ALL, names))
    rows = [
        _condition_row(group, title, environments, seed)
        for title, environments in tables
        for _, group in finished[finished["environment"].isin(environments)].groupby("condition", sort=False)
    ]
    return pd.DataFrame(rows)


def _condition_row(group: pd.DataFrame, title: str, environments: list[str], seed: int) -> dict[str, Any]:
    column = "normalised_return" if is_normalised(environments) else "final_return"
    per_environment = [group.loc[group["environment"] == name, [column]].to_numpy() for name in environments]
    estimate = stratified_intervals(stacked(per_environment), seed)
    varying = {"run", "environment", "seed", "state", "final_return", "normalised_return"}
    means = ["dormant_fraction", "recycled_total", "steps_per_second", "num_timesteps", "frames", "gradient_steps"]
    means += [name for name in _OF_SOME if name in group]
    row: dict[str, Any] = {"environment": title}
    row |= {name: group[name].iloc[0] for name in group.columns if name not in varying and name not in means}
    row |= {"measure": measure_of(environments), "runs": len(group), "environments": group["environment"].nunique()}
    row |= {"value": estimate.value[0], "low": estimate.low[0], "high": estimate.high[0]}
    return row | {name: group[name].mean() for name in means}


def by_replay_ratio(conditions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows to draw against the replay ratio: over all environments where there are such, else of each.

    ``series`` is the condition without its replay ratio.
    """
    if REPLAY_RATIO not in conditions:
        return conditions.iloc[:0]
    whole = conditions[conditions["environment"] == ALL]
    mine = conditions if whole.empty else whole
    series = (
        mine["condition"]
        .str.split(",")
        .map(lambda parts: ",".join(part for part in parts if not part.startswith(f"{REPLAY_RATIO}=")) or "all")
    )
    return mine.assign(series=series)
