"""Reads how the runs of a sweep ended: what was dormant, and what they returned or how accurate they were."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from sb3_redo.reports import read_curves, read_sweep_folder
from sb3_redo.reports.curves import RETURN
from sb3_redo.reports.sweep_folder import SweepRecord


def outcomes(
    folder: Path,
    summary: str | Callable[["pd.Series[float]"], float],
    axes: tuple[str, ...] = ("callback",),
    dormancy_key: str = "dormancy/fraction",
    return_key: str = RETURN,
) -> pd.DataFrame:
    """Read how the finished runs of a sweep ended. Others are left out.

    SB3 logs the mean return whenever four episodes have ended. Where some run of a sweep is too short for that, the
    returns of all are those of the episodes that did end.

    :param summary: what becomes ``return``: ``mean`` over the run, or ``last`` of it, or a function of all values
    :return: columns ``environment``, the axes, ``seed``, ``fraction``, the last value of ``dormancy_key`` in %, and
        ``return``, of ``return_key``
    """
    sweep = read_sweep_folder(folder)
    sweep = dataclasses.replace(sweep, runs=sweep.in_state("finished"))
    curves = read_curves(sweep, max_points=10_000)
    names = ["environment", *axes, "seed"]
    fractions = curves[curves["key"] == dormancy_key].groupby(names, observed=True)["value"].last()
    returns = curves[curves["key"] == return_key].groupby(names, observed=True)["value"].agg(summary)
    if len(returns) < len(fractions):
        returns = episodes(sweep).groupby(names, observed=True)["return"].agg(summary)
    return pd.DataFrame({"fraction": 100 * fractions, "return": returns}).reset_index()


def episodes(sweep: SweepRecord) -> pd.DataFrame:
    """Read the return of every finished episode, with the run's environment, condition and seed."""
    tables = []
    for run in sweep.runs:
        about = {"environment": run.environment, **run.condition, "seed": run.seed}
        for file in sorted(run.folder.rglob("*.monitor.csv")):
            tables.append(pd.DataFrame({"return": pd.read_csv(file, comment="#")["r"], **about}))
    return pd.concat(tables)
