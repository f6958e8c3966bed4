"""Compares a sweep with the published numbers of ReDo.

Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning".
"""

import csv
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sb3_redo.reports.curves import ALL
from sb3_redo.reports.scores import game_of
from sb3_redo.reports.sweep_folder import REPLAY_RATIO, WIDTH, SweepRecord

_OF_THRESHOLDS = "dormancy_thresholds/"
_SHIPPED = ("replay_ratio", "replay_ratio_n3", "replay_ratio_resnet", "width", "sac_width", "redo", "interventions")

PAPER_SWEEPS = tuple(f"paper_{name}" for name in _SHIPPED)
"""Names of the shipped sweeps with the published settings."""


class Published(NamedTuple):
    """Holds one published number, digitised from a figure.

    :param game: its environment or collection of environments
    :param n_steps: of DQN's n-step return; ``None`` for any
    :param extractor: features extractor, named as in our policies; ``None`` without images
    :param rival: ``reset`` or ``weight_decay`` instead of ReDo
    """

    figure: str
    algorithm: str
    quantity: str
    game: str
    replay_ratio: float
    width: float
    redo: bool
    value: float
    low: float
    high: float
    scale: str
    n_steps: int | None
    extractor: str | None
    rival: str


@cache
def published_numbers() -> tuple[Published, ...]:
    """Return all numbers of ``published.csv``. Empty fields are ``None``."""
    with Path(__file__).with_name("published.csv").open(newline="", encoding="utf-8") as file:
        return tuple(map(_published, csv.DictReader(file)))


def _published(row: dict[str, str]) -> Published:
    numbers = {name: _number(row[name]) for name in ("replay_ratio", "width", "value", "low", "high")}
    n_steps = int(row["n_steps"]) if row["n_steps"] else None
    about: dict[str, Any] = {**row, **numbers, "redo": row["redo"] == "yes", "n_steps": n_steps}
    return Published(**about | {"extractor": row["extractor"] or None})


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text or "nan")


def beside_published(
    conditions: pd.DataFrame,
    algorithm: str,
    dormancy: pd.DataFrame,
    n_steps: int = 1,
    extractor: str = "nature",
) -> pd.DataFrame:
    """Compare with published numbers of the same algorithm, replay ratio and width, with and without ReDo.

    The table gives both scales, which differ. Compare directions and ratios, not sizes.

    :param conditions: from :func:`~sb3_redo.reports.outcomes.condition_outcomes`; an optional column ``rival`` names
        the paper's rival of ReDo in each condition, if any
    :param algorithm: the sweep's
    :param dormancy: last dormant fractions at thresholds: columns ``environment``, ``condition``, ``threshold``,
        ``value``
    :param n_steps: of the return that our DQN learned from
    :param extractor: of the images' features
    :return: columns ``quantity``, ``replay_ratio``, ``width``, ``redo``, ``rival``, ``ours``, ``ours_low``,
        ``ours_high``, ``our_scale``, ``paper``, ``paper_low``, ``paper_high``, ``paper_scale``, ``figure``; no rows if
        no published number fits
    """
    rows = []
    for number in published_numbers():
        if number.algorithm != algorithm.lower() or number.n_steps not in (None, n_steps):
            continue
        if number.extractor not in (None, extractor):
            continue
        for _, ours in _fitting(conditions, number).iterrows():
            row = _row(number, ours, dormancy)
            if row is not None:
                rows.append(row)
    return pd.DataFrame(rows)


def _fitting(conditions: pd.DataFrame, number: Published) -> pd.DataFrame:
    """Return our conditions with a number's settings. Settings without an axis are the algorithm's defaults."""
    if conditions.empty:
        return conditions
    default = 0.25 if number.algorithm == "dqn" else 1.0
    ratio = conditions[REPLAY_RATIO] if REPLAY_RATIO in conditions else pd.Series(default, conditions.index)
    width = conditions[WIDTH] if WIDTH in conditions else pd.Series(1.0, conditions.index)
    fits = (conditions["redo"].astype(bool) == number.redo) & np.isclose(ratio.astype(float), number.replay_ratio)
    fits &= np.isclose(width.astype(float), number.width)
    fits &= (conditions["rival"] if "rival" in conditions else pd.Series("", conditions.index)) == number.rival
    mine = conditions[fits]
    if number.game == "Atari":
        whole = mine[mine["environment"] == ALL]
        return whole if len(whole) else mine
    return mine[mine["environment"].map(lambda name: game_of(name) == number.game)]


def _row(number: Published, ours: pd.Series, dormancy: pd.DataFrame) -> dict[str, Any] | None:
    value, low, high = ours["return"], ours["return_low"], ours["return_high"]
    if number.quantity.startswith("dormant"):
        fits = (dormancy["environment"] == ours["environment"]) & (dormancy["condition"] == ours["condition"])
        fits &= np.isclose(dormancy["threshold"], float(number.quantity.rsplit(" ", 1)[1]))
        if not fits.any():
            return None
        value, low, high = dormancy.loc[fits, "value"].mean(), np.nan, np.nan
    row = {name: getattr(number, name) for name in ("quantity", "replay_ratio", "width", "redo", "rival")}
    row |= {"condition": ours["condition"], "ours": value, "ours_low": low, "ours_high": high}
    row |= {"our_scale": _our_scale(ours, number), "paper": number.value, "paper_low": number.low}
    return row | {"paper_high": number.high, "paper_scale": number.scale, "figure": number.figure}


def _our_scale(ours: pd.Series, number: Published) -> str:
    count = int(ours["environments"])
    where = ours["environment"] if ours["environment"] != ALL else f"{count} environment{'s' * (count > 1)}"
    amount = f"{ours['frames']:,.0f} frames" if ours["frames"] > ours["num_timesteps"] else ""
    amount = amount or f"{ours['num_timesteps']:,.0f} environment steps"
    measured = f", {ours['measure'].split(' (')[0]}" if number.quantity == "return" else ""
    return f"{where}, {ours['runs']} runs, {amount}{measured}"


def papers_beside(sweep: SweepRecord, curves: pd.DataFrame, conditions: pd.DataFrame) -> pd.DataFrame:
    """Compare a shipped sweep of the paper with published numbers; other sweeps give no rows."""
    rivals = rivals_of(sweep)
    comparable = conditions[conditions["condition"].isin(rivals)]
    if sweep.name not in PAPER_SWEEPS or not len(comparable):
        return pd.DataFrame()
    comparable = comparable.assign(rival=comparable["condition"].map(rivals))
    return beside_published(comparable, sweep.algorithm, _last_fractions(curves), _n_steps(sweep), _extractor(sweep))


def _n_steps(sweep: SweepRecord) -> int:
    return next((int(run.settings.get("n_steps") or 1) for run in sweep.runs), 1)


def rivals_of(sweep: SweepRecord) -> dict[str, str]:
    """Return the conditions that match the paper's, with their rival of ReDo, or ``""``."""
    plain = {"RunFolder", "DormancyCallback", "ReDoCallback"}
    rivals = {}
    for run in sweep.runs:
        acting = {name.rpartition(".")[2] for name in _callbacks(run.settings.get("callback"))} - plain
        acting |= {"weight_decay"} if "weight_decay" in str(run.settings.get("policy_kwargs")) else set()
        kind = {"": "", "ResetCallback": "reset", "weight_decay": "weight_decay"}.get(",".join(sorted(acting)))
        if kind is not None:
            rivals[run.label] = kind
    return rivals


def _callbacks(listed: object) -> list[str]:
    """Return the paths of callbacks given in the zoo's form."""
    listed = [listed] if isinstance(listed, (str, dict)) else listed
    return [name for each in listed or () for name in ([each] if isinstance(each, str) else each)]  # type: ignore[attr-defined]


def _extractor(sweep: SweepRecord) -> str:
    """Return the name of the features extractor: SB3's, unless ``policy_kwargs`` sets another."""
    told = (run.settings.get("policy_kwargs") for run in sweep.runs)
    return next((str(kwargs.get("extractor", "nature")) for kwargs in told if isinstance(kwargs, dict)), "nature")


def _last_fractions(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the last dormant fractions at each threshold, means over seeds."""
    mine = curves[curves["key"].str.startswith(_OF_THRESHOLDS)]
    last = mine.groupby(["environment", "condition", "run", "key"], observed=True)["value"].last()
    means = last.groupby(level=["environment", "condition", "key"], observed=True).mean().reset_index()
    return means.assign(threshold=means["key"].str.removeprefix(_OF_THRESHOLDS).astype(float))
