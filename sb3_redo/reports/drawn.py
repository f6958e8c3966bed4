"""Decides which figures and which parts of the page a sweep gives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from sb3_redo.reports.curves import ACCURACY, LAYERS, layers_over_seeds, over_seeds, pooled, return_curves
from sb3_redo.reports.outcomes import by_replay_ratio
from sb3_redo.reports.sweep_folder import CALLBACK, REPLAY_RATIO, WIDTH, SweepRecord, text

# Heat maps of more environments than this are pooled in the figure; the page has each of them.
_HEAT_MAPS = 3


class CurveKind(NamedTuple):
    """Describes curves over seeds, which a report shows where they were logged.

    :param name: of their figures
    :param heading: on the page
    :param key: under which they were logged
    :param words: what their values are, on the page
    :param label: the same in the figures
    :param percent: whether their values are shares, else they are counts
    """

    name: str
    heading: str
    key: str
    words: str
    label: str
    percent: bool = True


_BEFORE = "overlap with the measurement before"
_LABEL_BEFORE = "overlap with the dormant neurons\nof the measurement before [%]"
_SO_FAR = "neurons recycled so far"
CURVE_KINDS = (
    CurveKind("dormant_fraction", "Dormant neurons", "dormancy/fraction", "dormant neurons", "dormant neurons [%]"),
    CurveKind("overlap", "Overlap", "dormancy/overlap", _BEFORE, _LABEL_BEFORE),
    CurveKind("recycled", "Recycled neurons", "redo/recycled_total", _SO_FAR, _SO_FAR, percent=False),
    CurveKind("accuracy", "Accuracy", ACCURACY, "accuracy", "accuracy [%]"),
)


@dataclass(frozen=True)
class Tables:
    """Holds what is drawn, one table a kind of figure. A table without rows is not drawn."""

    returns: pd.DataFrame
    curves: Mapping[CurveKind, pd.DataFrame]
    layers: pd.DataFrame
    layers_pooled: pd.DataFrame
    ratios: pd.DataFrame
    outcomes: pd.DataFrame
    by: str


@dataclass(frozen=True)
class Slice:
    """Holds the curves that differ in one axis (and the callback) alone.

    :param name: for file names
    """

    name: str
    title: str
    table: pd.DataFrame


def tables_of(
    sweep: SweepRecord, curves: pd.DataFrame, outcomes: pd.DataFrame, conditions: pd.DataFrame, seed: int
) -> Tables:
    """Compute everything that is drawn.

    Dormancy is against gradient steps where they were logged, else against environment steps.

    :param curves: from :func:`~sb3_redo.reports.tables.read_curves`
    """
    has_clock = curves.loc[curves["key"] == "dormancy/fraction", "gradient_step"].notna().any()
    by = "gradient_step" if has_clock else "step"
    are_many = curves["environment"].nunique() > _HEAT_MAPS
    layers = layers_over_seeds(curves, by)
    return Tables(
        return_curves(curves, sweep.n_timesteps, seed),
        {kind: over_seeds(curves, kind.key, by) for kind in CURVE_KINDS},
        layers,
        layers_over_seeds(pooled(curves[curves["key"].str.startswith(LAYERS)]), by) if are_many else layers,
        by_replay_ratio(conditions),
        outcomes[outcomes["steps_per_second"].notna()] if len(outcomes) else outcomes,
        by,
    )


def slices(table: pd.DataFrame) -> Iterator[Slice]:
    """Split curves so that those of one figure differ in the replay ratio or the width, and the callback, alone.

    Yields nothing of a table without rows.
    """
    if table.empty:
        return
    axes = [name for name in table if name not in _DESCRIBING and name != CALLBACK]
    swept = [axis for axis in axes if table[axis].nunique() > 1]
    shown = [axis for axis in swept if axis in (REPLAY_RATIO, WIDTH)]
    if len(swept) < 2 or not shown:
        yield Slice("", "", table)
        return
    for axis in shown:
        others = [other for other in swept if other != axis]
        for values, part in table.groupby(others, sort=False, observed=True):
            fixed = [f"{other}={text(value)}" for other, value in zip(others, values, strict=True)]
            title = f"by {axis}, {', '.join(fixed)}".replace("_", " ")
            yield Slice(f"_by_{axis}_{'_'.join(fixed)}", title, part)


_DESCRIBING = frozenset(
    ("environment", "condition", "setting", "redo", "key", "by", "at", "value", "low", "high", "runs", "layer")
)
