"""How the runs of a sweep ended: dormancy and return of each."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from sb3_redo.reports import read_curves, read_sweep
from sb3_redo.reports.runs import Sweep

RETURN = "rollout/ep_rew_mean"
ACCURACY = "classifier/task_accuracy"


def outcomes(
    folder: Path,
    of_returns: str | Callable[["pd.Series[float]"], float],
    axes: tuple[str, ...] = ("callback",),
    dormancy: str = "dormancy/fraction",
    returns: str = RETURN,
) -> pd.DataFrame:
    """Columns ``environment``, the sweep's axes, ``seed``, ``fraction`` (at the end, in %), ``return``.

    SB3 logs the mean return whenever four episodes have ended. Where some run of a sweep is too short for that, the
    returns of all are those of the episodes that did end.

    :param of_returns: ``mean`` over the run, or ``last`` of it, or what makes one value of all
    :param dormancy: the key whose end is ``fraction``
    :param returns: the key of ``return``
    """
    sweep = read_sweep(folder)
    curves = read_curves(sweep, max_points=10_000)
    names = ["environment", *axes, "seed"]
    ends = curves[curves["key"] == dormancy].groupby(names, observed=True)["value"].last()
    means = curves[curves["key"] == returns].groupby(names, observed=True)["value"].agg(of_returns)
    if len(means) < len(ends):
        means = episodes(sweep).groupby(names, observed=True)["return"].agg(of_returns)
    return pd.DataFrame({"fraction": 100 * ends, "return": means}).reset_index()


def episodes(sweep: Sweep) -> pd.DataFrame:
    """The return of every finished episode, with the run's environment, condition and seed."""
    tables = []
    for run in sweep.runs:
        about = {"environment": run.environment, **run.condition, "seed": run.seed}
        for file in sorted(run.folder.rglob("*.monitor.csv")):
            tables.append(pd.DataFrame({"return": pd.read_csv(file, comment="#")["r"], **about}))
    return pd.concat(tables)
