"""Selects the figures of a sweep, for files and for the page."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from sb3_redo.reports import figures
from sb3_redo.reports.curves import ACCURACY, LAYERS, layers_over_seeds, over_seeds, pooled, return_curves
from sb3_redo.reports.outcomes import by_replay_ratio
from sb3_redo.reports.styles import Style, styles_of
from sb3_redo.reports.sweep_folder import CALLBACK, REPLAY_RATIO, WIDTH, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With more environments than this, one heat map pools them.
_HEAT_MAPS = 3


class CurveKind(NamedTuple):
    """Describes curves over seeds. A report shows them if they were logged.

    :param name: of the figure's files
    :param heading: on the page
    :param key: the logged key
    :param label: of the values' axis
    :param percent: whether values are shares (else counts)
    """

    name: str
    heading: str
    key: str
    label: str
    percent: bool = True


_LABEL_BEFORE = "overlap with the dormant neurons\nof the measurement before [%]"
CURVE_KINDS = (
    CurveKind("dormant_fraction", "Dormant neurons", "dormancy/fraction", "dormant neurons [%]"),
    CurveKind("overlap", "Overlap", "dormancy/overlap", _LABEL_BEFORE),
    CurveKind("recycled", "Recycled neurons", "redo/recycled_total", "neurons recycled so far", percent=False),
    CurveKind("accuracy", "Accuracy", ACCURACY, "accuracy [%]"),
)
_RANGE = "Mean over seeds; shaded from the lowest to the highest seed."


@dataclass(frozen=True)
class Drawing:
    """Holds one figure, and the values that the page shows for its marks.

    :param name: of its files
    :param heading: of its section of the page
    :param note: explains the marks
    :param table: the drawn values for each ``condition``: columns ``at``, ``value`` and optionally ``low``, ``high``,
        ``runs``, ``seeds``; ``None`` if the page shows no values
    :param by: the column with the labels of the axes
    :param percent: whether the values are shares
    """

    name: str
    heading: str
    figure: "Figure"
    note: str = ""
    table: pd.DataFrame | None = None
    by: str = "environment"
    percent: bool = False


def drawings_of(curves: pd.DataFrame, outcomes: pd.DataFrame, conditions: pd.DataFrame, seed: int) -> Iterator[Drawing]:
    """Draw every figure that has data. A condition has the same colour and line in all figures.

    Dormancy is drawn against gradient steps if they were logged, else against environment steps.

    :param curves: from :func:`~sb3_redo.reports.tables.read_curves`
    :param outcomes: from :func:`~sb3_redo.reports.outcomes.run_outcomes`
    :param conditions: from :func:`~sb3_redo.reports.outcomes.condition_outcomes`
    :param seed: of the bootstrap
    """
    if outcomes.empty:
        return
    styles = styles_of(outcomes)
    panels = partial(figures.panels, styles=styles)
    returns = return_curves(curves, seed)
    if len(returns):
        note = "Shaded: 95 % interval, as in the table. Dashed: without recycling."
        yield Drawing("return", "Return", panels(returns, figures.plot_return), note, returns)
    ratios = by_replay_ratio(conditions)
    if len(ratios):
        figure = panels(ratios, figures.plot_replay_ratio)
        shown = ratios.drop(columns="condition").rename(columns={"series": "condition", "replay_ratio": "at"})
        shown = shown.rename(columns={"return": "value", "return_low": "low", "return_high": "high"})
        yield Drawing("return_by_replay_ratio", "Final return and replay ratio", figure, "", shown)
    has_clock = curves.loc[curves["key"] == "dormancy/fraction", "gradient_step"].notna().any()
    by = "gradient_step" if has_clock else "step"
    for kind in CURVE_KINDS:
        plot = partial(figures.plot_curves, label=kind.label, scale="share" if kind.percent else "count")
        for part in slices(over_seeds(curves, kind.key, by)):
            figure = panels(part.table, plot, title=part.title)
            yield Drawing(kind.name + part.name, kind.heading, figure, _RANGE, part.table, percent=kind.percent)
    yield from _layers(curves, by, styles)
    timed = outcomes[outcomes["steps_per_second"].notna()]
    if len(timed):
        figure = panels(timed.assign(all=""), figures.plot_speed, by="all")
        note = "It depends on what else ran on the machine, and on how many runs at a time: compare it with care."
        yield Drawing("steps_per_second", "Speed", figure, note)


def _layers(curves: pd.DataFrame, by: str, styles: dict[str, Style]) -> Iterator[Drawing]:
    logged = curves[curves["key"].str.startswith(LAYERS)]
    are_many = curves["environment"].nunique() > _HEAT_MAPS
    table = layers_over_seeds(pooled(logged) if are_many else logged, by)
    for environment, mine in table.groupby("environment", sort=False, observed=True):
        title = str(environment)
        figure = figures.panels(mine, figures.plot_layers_over_time, "condition", title, across=2, styles=styles)
        name = f"layers_{environment}"
        yield Drawing(name, "Dormant neurons by layer", figure, "Mean over seeds.", mine, "condition", percent=True)


@dataclass(frozen=True)
class Slice:
    """Holds curves that differ only in one axis and the callback.

    :param name: for file names
    """

    name: str
    title: str
    table: pd.DataFrame


def slices(table: pd.DataFrame) -> Iterator[Slice]:
    """Split curves into figures whose curves differ only in replay ratio or width, and in the callback.

    Yields nothing for an empty table.
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
    (
        *("environment", "condition", "setting", "redo", "key", "by", "at", "value", "low", "high", "runs", "seeds"),
        "layer",
    )
)
