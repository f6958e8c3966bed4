"""Published numbers of ReDo (Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning"),
beside ours."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sb3_redo.reports.curves import ALL
from sb3_redo.reports.scores import atari_game
from sb3_redo.reports.sweep_folder import REPLAY_RATIO, WIDTH

_ATARI = "17 Atari games, 5 seeds, 10M frames, human-normalised"
_DEMON = "DemonAttack, 5 seeds, 40M frames"
_AT_A_TENTH = "dormant fraction at threshold 0.1"
_DEMON_WIDTH = "DemonAttack, 5 seeds, 2.5M gradient steps; read from the curves, low and high over widths"
_WIDTH = "17 Atari games, 5 seeds, replay ratio 1, 10M frames, human-normalised"
_ATARI_100K = "26 Atari 100k games, 10 seeds, 400,000 agent steps, human-normalised"
_MUJOCO = "10 seeds, 1M environment steps; read from the curves"


class Published(NamedTuple):
    """One published number, digitised from a figure.

    :param game: the environment it is of, or the collection
    :param n_steps: of the return that DQN learns from; nothing where it is not said to matter
    :param extractor: of the images' features, by the name that our policies give it; nothing without images
    :param rival: ``reset`` or ``weight_decay`` in place of ReDo
    """

    figure: str
    algorithm: str
    quantity: str
    game: str
    replay_ratio: float
    width: float
    redo: bool
    value: float
    low: float = np.nan
    high: float = np.nan
    scale: str = _ATARI
    n_steps: int | None = 1
    extractor: str | None = "nature"
    rival: str = ""


def _figure_10(
    figure: str, n_steps: int, redo: bool, *numbers: tuple[float, float, float], extractor: str = "nature"
) -> list[Published]:
    ratios = (0.25, 0.5, 1.0, 2.0)
    return [
        Published(figure, "dqn", "return", "Atari", ratio, 1, redo, *number, n_steps=n_steps, extractor=extractor)
        for ratio, number in zip(ratios, numbers, strict=True)
    ]


_NONE = np.nan
PUBLISHED: tuple[Published, ...] = (
    *_figure_10(
        "10a", 1, False, (0.410, 0.36, 0.46), (0.474, 0.42, 0.53), (0.302, 0.255, 0.358), (0.089, 0.075, 0.108)
    ),
    *_figure_10("10a", 1, True, (0.397, 0.37, 0.44), (0.574, 0.54, 0.61), (0.625, 0.585, 0.666), (0.537, 0.49, 0.58)),
    *_figure_10(
        "10b", 3, False, (0.656, _NONE, _NONE), (0.688, 0.66, _NONE), (0.554, 0.536, 0.577), (0.344, 0.298, 0.392)
    ),
    *_figure_10(
        "10b", 3, True, (0.689, _NONE, 0.747), (0.726, _NONE, 0.781), (0.727, 0.693, 0.761), (0.565, 0.52, 0.606)
    ),
    *_figure_10(
        *("10c", 1, False, (0.790, 0.70, _NONE), (0.782, 0.72, 0.85), (0.509, 0.448, 0.566), (0.218, 0.176, 0.265)),
        extractor="impala",
    ),
    *_figure_10(
        *("10c", 1, True, (0.833, _NONE, 0.93), (0.998, 0.93, 1.105), (0.842, 0.77, 0.917), (0.528, 0.46, 0.603)),
        extractor="impala",
    ),
    *(
        Published("10d", "drq", "return", "Atari", ratio, 1, redo, value, low, high, _ATARI_100K, n_steps=None)
        for ratio, redo, value, low, high in (
            (1, False, 0.609, 0.578, _NONE), (2, False, 0.530, 0.50, 0.56),
            (4, False, 0.424, 0.404, 0.445), (8, False, 0.347, 0.326, 0.369),
            (1, True, 0.634, _NONE, 0.676), (2, True, 0.615, 0.58, 0.65),
            (4, True, 0.558, 0.53, 0.586), (8, True, 0.514, 0.489, 0.54),
        )
    ),
    *(
        Published("12", "dqn", "return", "Atari", 1, width, redo, value, scale=_WIDTH)
        for redo, values in ((False, (0.374, 0.327)), (True, (0.695, 0.710)))
        for width, value in zip((2, 4), values, strict=True)
    ),
    Published("13", "dqn", "return", "Atari", 1, 1, False, 0.326, rival="reset"),
    Published("13", "dqn", "return", "Atari", 1, 1, False, 0.416, rival="weight_decay"),
    *(
        Published("7", "dqn", "dormant fraction at threshold 0", "DemonAttack", ratio, 1, False, value, scale=_DEMON)
        for ratio, value in ((0.25, 0.09), (0.5, 0.24), (1, 0.38), (2, 0.48))
    ),
    *(
        Published("12", "dqn", _AT_A_TENTH, "DemonAttack", 1, width, False, value, scale=_DEMON_WIDTH)
        for width, value in ((1, 0.47), (2, 0.52), (4, 0.55))
    ),
    *(
        Published("12", "dqn", _AT_A_TENTH, "DemonAttack", 1, width, True, 0.12, 0.11, 0.13, scale=_DEMON_WIDTH)
        for width in (1, 2, 4)
    ),
    *(
        Published("14", "sac", "return", game, 1, 1, redo, value, low, high, _MUJOCO, n_steps=None, extractor=None)
        for game, redo, value, low, high in (
            ("Ant", False, 5150, 4900, 5400), ("Ant", True, 5100, 4900, 5300),
            ("HalfCheetah", False, 11500, _NONE, _NONE), ("HalfCheetah", True, 11200, _NONE, _NONE),
        )
    ),
)  # fmt: skip


def beside_published(
    conditions: pd.DataFrame,
    algorithm: str,
    dormancy: pd.DataFrame,
    n_steps: int = 1,
    extractor: str = "nature",
) -> pd.DataFrame:
    """Ours beside the published numbers of the same algorithm, replay ratio and width, with and without ReDo.

    The scales differ, and both are in the table: compare directions and ratios before sizes.

    :param conditions: from :func:`~sb3_redo.reports.outcomes.condition_outcomes`; a column ``rival``, if there is one,
        says of each which of the paper's rivals of ReDo it trains with, if it does with any
    :param algorithm: the sweep's
    :param dormancy: last dormant fractions at thresholds: columns ``environment``, ``condition``, ``threshold``,
        ``value``
    :param n_steps: of the return that our DQN learned from
    :param extractor: of the images' features
    :return: columns ``quantity``, ``replay_ratio``, ``width``, ``redo``, ``rival``, ``ours``, ``ours_low``,
        ``ours_high``, ``our_scale``, ``paper``, ``paper_low``, ``paper_high``, ``paper_scale``, ``figure``; no rows
        where nothing was published that fits
    """
    rows = []
    for number in PUBLISHED:
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
    """Our conditions with the settings of a published number; without an axis for one, it is the algorithm's own."""
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
    return mine[mine["environment"].map(lambda name: _game(name) == number.game)]


def _game(environment: str) -> str:
    return atari_game(environment) or environment.split("-")[0]


def _row(number: Published, ours: pd.Series, dormancy: pd.DataFrame) -> dict[str, Any] | None:
    value, low, high = ours["value"], ours["low"], ours["high"]
    if number.quantity.startswith("dormant"):
        fits = (dormancy["environment"] == ours["environment"]) & (dormancy["condition"] == ours["condition"])
        fits &= np.isclose(dormancy["threshold"], float(number.quantity.rsplit(" ", 1)[1]))
        if not fits.any():
            return None
        value, low, high = dormancy.loc[fits, "value"].mean(), np.nan, np.nan
    return {
        "quantity": number.quantity,
        "replay_ratio": number.replay_ratio,
        "width": number.width,
        "redo": number.redo,
        "rival": number.rival,
        "condition": ours["condition"],
        "ours": value,
        "ours_low": low,
        "ours_high": high,
        "our_scale": _our_scale(ours, number),
        "paper": number.value,
        "paper_low": number.low,
        "paper_high": number.high,
        "paper_scale": number.scale,
        "figure": number.figure,
    }


def _our_scale(ours: pd.Series, number: Published) -> str:
    count = int(ours["environments"])
    where = ours["environment"] if ours["environment"] != ALL else f"{count} environment{'s' * (count > 1)}"
    amount = f"{ours['frames']:,.0f} frames" if ours["frames"] > ours["num_timesteps"] else ""
    amount = amount or f"{ours['num_timesteps']:,.0f} environment steps"
    measured = f", {ours['measure'].split(' (')[0]}" if number.quantity == "return" else ""
    return f"{where}, {ours['runs']} runs, {amount}{measured}"
