"""Draws the figures of a report into files."""

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_redo.reports import figures
from sb3_redo.reports.drawn import Tables, slices
from sb3_redo.validation import needs

with needs("report", "a figure"):
    import matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Without a salt, the names inside an SVG file are drawn at random.
_SETTINGS: dict[Any, Any] = {"svg.hashsalt": "sb3-redo", "svg.fonttype": "none"}


def draw(tables: Tables, folder: Path) -> tuple[str, ...]:
    """Draw every figure for which there is something, as PNG and SVG.

    :param folder: where to; made where it is not there
    :return: the names of the figures, without their endings
    """
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(save(figure, folder, name) for name, figure in _figures(tables))


def save(figure: "Figure", folder: Path, name: str) -> str:
    """Save a figure as PNG and SVG.

    :return: the name, without what file systems do not take
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.=-]+", "-", name)
    with matplotlib.rc_context(_SETTINGS):
        # Laid out once: finding the layout takes longer than drawing, and every savefig would do it again.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(folder / f"{name}.png", dpi=100)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return name


def _figures(tables: Tables) -> "list[tuple[str, Figure]]":
    drawn: list[tuple[str, Figure]] = []
    if len(tables.returns):
        drawn.append(("return", figures.panels(tables.returns, figures.plot_return)))
    if len(tables.ratios):
        drawn.append(("return_by_replay_ratio", figures.panels(tables.ratios, figures.plot_replay_ratio)))
    for kind, table in tables.curves.items():
        plot = partial(figures.plot_curves, label=kind.label, scale="share" if kind.percent else "count")
        for part in slices(table):
            drawn.append((kind.name + part.name, figures.panels(part.table, plot, title=part.title)))
    for environment, table in tables.layers_pooled.groupby("environment", sort=False, observed=True):
        figure = figures.panels(table, figures.plot_layers_over_time, by="condition", title=str(environment), across=2)
        drawn.append((f"layers_{environment}", figure))
    if len(tables.outcomes):
        drawn.append(("steps_per_second", figures.panels(tables.outcomes.assign(all=""), figures.plot_speed, by="all")))
    return drawn
