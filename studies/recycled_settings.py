"""Reads sweeps that compare ``match`` with ``clear`` at several thresholds and periods."""

from pathlib import Path

import pandas as pd

from sb3_redo.experiments.classifier import TASK_ACCURACY
from sb3_redo.reports import read_sweep_folder
from sb3_redo.reports.curves import RETURN
from studies.sweep_outcomes import outcomes

AXES = {"callback.dormancy_threshold": "threshold", "callback.recycling_period": "period", "callback": "callback"}
CLASSIFIER_AXES = {"dormancy_threshold": "threshold", "period": "period", "optimizer_state": "callback"}


def by_settings(folder: Path) -> pd.DataFrame:
    """Read how the finished runs of a sweep ended.

    :return: columns ``environment``, ``threshold``, ``period``, ``callback`` (``"clear"`` or ``"match"``), ``seed``,
        ``fraction``, what is dormant at 0.025 at the end in %, whatever was recycled, and ``return``, the mean over
        the run, of classifiers the accuracy at the end of the last five tasks in %
    """
    of_classifiers = read_sweep_folder(folder).algorithm == "classifier"
    axes = CLASSIFIER_AXES if of_classifiers else AXES
    key, summary = (TASK_ACCURACY, _late_percents) if of_classifiers else (RETURN, "mean")
    table = outcomes(folder, summary, tuple(axes), "dormancy_thresholds/0.025", key)
    table = table[["environment", *axes, "seed", "fraction", "return"]].rename(columns=axes)
    return table.astype({"environment": str, "threshold": float, "period": int, "callback": str})


def _late_percents(accuracies: "pd.Series[float]") -> float:
    return 100 * float(accuracies.tail(5).mean())
