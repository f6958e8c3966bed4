"""What an experiment measured, beside what the paper published."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from sb3_redo.experiments.catalogue import Experiment
from sb3_redo.reports.curves import ALL
from sb3_redo.reports.outcomes import condition_outcomes, run_outcomes
from sb3_redo.reports.paper import PUBLISHED, Published
from sb3_redo.reports.scores import atari_game
from sb3_redo.reports.statistics import stratified_intervals
from sb3_redo.reports.styles import short_labels
from sb3_redo.reports.sweep_folder import CALLBACK, REPLAY_RATIO, SweepRecord, text
from sb3_redo.validation import one_of


@dataclass(frozen=True)
class Quantity:
    """Something that runs end with.

    :param words: what it is
    :param key: under which it was logged; the final return where there is none
    :param last: how many of its last points are averaged
    :param percent: whether it is a share
    :param of_first: whether it is divided by each run's first point
    """

    words: str
    key: str | None = None
    last: int = 1
    percent: bool = True
    of_first: bool = False


_SHARPNESS = "plasticity/sharpness/"
_NEGATIVE_SHARE = "plasticity/gradient_negative_share/"

QUANTITIES = {
    "dormant": Quantity("dormant neurons at the end", "dormancy/fraction"),
    "dead": Quantity("dead neurons at the end (threshold 0)", "dormancy_thresholds/0.0"),
    "dormant_at_0.025": Quantity("neurons dormant at a threshold of 0.025 at the end", "dormancy_thresholds/0.025"),
    "dormant_alike": Quantity("dormant neurons at the end, on 256 observations", "dormancy_2/fraction"),
    "actor": Quantity("dormant neurons of the actor at the end", "dormancy/actor"),
    "critic": Quantity("dormant neurons of the critics at the end", "dormancy/critic"),
    "overlap": Quantity("overlap with the measurement before, last five", "dormancy/overlap", 5),
    "accuracy": Quantity("accuracy at the end of the last five tasks", "classifier/task_accuracy", 5),
    "srank": Quantity("srank of the features at the end", "plasticity/feature_srank/q_net", percent=False),
    "effective_rank": Quantity(
        "effective rank of the features at the end", "plasticity/feature_effective_rank/q_net", percent=False
    ),
    "stable_rank": Quantity(
        "stable rank of the features at the end", "plasticity/feature_stable_rank/q_net", percent=False
    ),
    "weight_norm": Quantity("norm of the weights at the end", "plasticity/weight_norm/q_net", percent=False),
    "plasticity_loss": Quantity(
        "plasticity loss from the first probe to the end", "plasticity/plasticity_loss/q_net", percent=False
    ),
    "loss": Quantity("Huber loss at the end", "offline/loss", percent=False),
    "sharpness": Quantity("sharpness of the trained network at the end", f"{_SHARPNESS}q_net", percent=False),
    "sharpness_twin": Quantity("sharpness of its twin at the end", f"{_SHARPNESS}q_net_twin", percent=False),
    "sharpness_growth": Quantity(
        "sharpness of the trained network at the end over that at the start",
        f"{_SHARPNESS}q_net",
        percent=False,
        of_first=True,
    ),
    "sharpness_growth_twin": Quantity(
        "sharpness of its twin at the end over that at the start",
        f"{_SHARPNESS}q_net_twin",
        percent=False,
        of_first=True,
    ),
    "interference": Quantity(
        "pairs of samples with opposed gradients at the end, trained network, last five", f"{_NEGATIVE_SHARE}q_net", 5
    ),
    "interference_twin": Quantity(
        "pairs of samples with opposed gradients at the end, its twin, last five", f"{_NEGATIVE_SHARE}q_net_twin", 5
    ),
    "pruned": Quantity("neurons pruned by the end", "pruning/pruned_fraction"),
    "return": Quantity("final return", percent=False),
}


@dataclass(frozen=True)
class PaperNumber:
    """A number of the paper's.

    :param quantity: a name in :data:`QUANTITIES`
    :param figure: by the paper's number, of Lyle et al. 2023 with that name before it
    :param scale: what it is of
    :param source: how it was read: ``digitised``, ``read by eye`` from the figure's image, ``printed`` in it, or
        ``second hand``
    :param where: axis to label, of the conditions that it belongs to
    :param game: that it is of; in an environment that has its own number no other is shown
    :param algorithm: of the sweeps that it belongs to; of all if not given
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
        """An axis that the condition does not have is no reason against it."""
        if self.quantity != quantity or self.algorithm not in (None, algorithm):
            return False
        return all(text(condition[axis]) == text(label) for axis, label in self.where.items() if axis in condition)


def paper_numbers(experiment: Experiment) -> list[PaperNumber]:
    """Those that the catalogue has, and those that it takes from the report."""
    own = [PaperNumber(**number) for number in experiment.published]
    for number in own:
        one_of("quantity", number.quantity, tuple(QUANTITIES))
    known = experiment.report_figures or {}
    return own + [_of_report(number) for number in PUBLISHED if number.replay_ratio in known.get(number.figure, ())]


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


def conditions_of(sweep: SweepRecord, curves: pd.DataFrame, quantities: Iterable[str], seed: int = 0) -> pd.DataFrame:
    """One row for every environment, condition and quantity of a sweep's finished runs.

    :param curves: from :func:`~sb3_redo.reports.tables.read_curves`
    :param quantities: names in :data:`QUANTITIES`; those that no run logged are left out
    :param seed: of the bootstrap
    :return: columns ``environment``, ``condition``, the axes, ``quantity`` (its name), ``value`` (interquartile mean
        over runs), ``low``, ``high`` (95 % stratified bootstrap), ``runs``, ``measure`` (in words)
    """
    outcomes = run_outcomes(sweep, curves)
    finished = outcomes[outcomes["state"] == "finished"] if len(outcomes) else outcomes
    rows = []
    for _, condition in condition_outcomes(outcomes, seed).iterrows():
        mine = finished[finished["condition"] == condition["condition"]]
        if condition["environment"] != ALL:
            mine = mine[mine["environment"] == condition["environment"]]
        about = {name: condition[name] for name in ("environment", "condition", *sweep.axes, "runs")}
        for name in quantities:
            quantity = QUANTITIES[one_of("quantity", name, tuple(QUANTITIES))]
            if quantity.key is None:
                found = {"value": condition["value"], "low": condition["low"], "high": condition["high"]}
                words = f"{quantity.words}: {condition['measure']}"
            else:
                found = _estimate(_ends(curves, mine, quantity), seed)
                words = quantity.words
            if np.isfinite(found["value"]):
                rows.append({**about, "quantity": name, **found, "measure": words})
    return pd.DataFrame(rows)


def _ends(curves: pd.DataFrame, runs: pd.DataFrame, quantity: Quantity) -> list[np.ndarray]:
    """What the runs of each environment ended with."""
    logged = curves[(curves["key"] == quantity.key) & curves["run"].isin(runs["run"])]
    last = logged.groupby("run", observed=True).tail(quantity.last).groupby("run", observed=True)["value"].mean()
    if quantity.of_first:
        last = last / logged.groupby("run", observed=True)["value"].first()
    ends = runs["run"].map(last.to_dict())
    return [ends[runs["environment"] == name].to_numpy(dtype=float) for name in runs["environment"].unique()]


def _estimate(of_environments: list[np.ndarray], seed: int) -> dict[str, float]:
    scores = np.full((max(map(len, of_environments)), len(of_environments), 1), np.nan)
    for column, values in enumerate(of_environments):
        scores[: len(values), column, 0] = values
    estimate = stratified_intervals(scores, seed)
    return {"value": estimate.value[0], "low": estimate.low[0], "high": estimate.high[0]}


def beside_paper(conditions: pd.DataFrame, published: Iterable[PaperNumber], algorithm: str) -> pd.DataFrame:
    """Our numbers with the paper's in the same row, one row for each of the latter, and a row for ours without any.

    :param conditions: from :func:`conditions_of`
    :param published: all that may fit
    :param algorithm: of the sweep
    :return: columns ``environment``, ``condition`` (what not all have), ``quantity`` (in words), ``ours``, ``low``,
        ``high``, ``runs``, ``paper``, ``paper_low``, ``paper_high``, ``paper_scale``, ``figure``, ``source``
    """
    rows = []
    labels = short_labels(list(conditions["condition"])) if len(conditions) else {}
    for _, ours in conditions.iterrows():
        row = {"environment": ours["environment"], "condition": labels[ours["condition"]], "quantity": ours["measure"]}
        row |= {"ours": ours["value"], "low": ours["low"], "high": ours["high"], "runs": ours["runs"]}
        fitting = [number for number in published if number.fits(ours["quantity"], ours, algorithm)]
        mine = [number for number in fitting if number.game == _game(ours["environment"])]
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


def _game(environment: str) -> str:
    return atari_game(environment) or environment.split("-")[0]
