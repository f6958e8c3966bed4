"""Reads what becomes of recycled neurons by age, and of classifiers by task."""

from pathlib import Path

import pandas as pd

from sb3_redo.reports import read_curves, read_sweep_folder


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


def by_task(file: Path) -> pd.DataFrame:
    """Read what :mod:`studies.shuffled_labels` wrote.

    :return: columns ``environment``, ``epsilon``, ``callback``, ``seed``, ``task``, ``fraction``, what is dormant in %,
        and ``return``, the accuracy in %
    """
    table = pd.read_csv(file, dtype={"epsilon": str}).rename(columns={"mode": "callback"})
    shares = {"fraction": 100 * table["dormant"], "return": 100 * table["accuracy"]}
    return table.assign(environment="shuffled labels", **shares).drop(columns=["dormant", "accuracy"])
