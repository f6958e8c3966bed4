"""Saves figures as files, and prepares them for the page."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sb3_redo.reports.drawn import Drawing
from sb3_redo.reports.figures import PLAIN_TEXT
from sb3_redo.reports.styles import Style
from sb3_redo.validation import needs

with needs("report", "a figure"):
    import matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Without a salt, names inside an SVG file are random.
_SETTINGS: dict[Any, Any] = {"svg.hashsalt": "sb3-redo", "svg.fonttype": "none", **PLAIN_TEXT}
_POINTS_PER_INCH = 72
_DIGITS = 4


def save(figure: "Figure", folder: Path, name: str) -> str:
    """Save a figure as PNG and SVG.

    :return: the name, without characters that file systems refuse
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.=-]+", "-", name)
    with matplotlib.rc_context(_SETTINGS):
        # Laid out once, because layout takes longer than drawing, and every savefig would repeat it.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(folder / f"{name}.png", dpi=100)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return name


def inline_svg(svg: str) -> str:
    """Return an SVG file of :func:`save` for the page: with the page's colours, and classes for its marks."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style type=.*?</style>", "", svg, flags=re.S)
    svg = re.sub(
        r'(<svg\b[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', r'\1 style="width: \2pt"', svg, count=1, flags=re.S
    )
    # Otherwise marks of a condition, and axes of several figures, would have the same id.
    svg = re.sub(r'<g id="(c\d+)-\d+-mark"', r'<g class="\1"', svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for fixed, of_page in (("#000000", "currentColor"), ("#ffffff", "none"), ("#e6e6e6", "var(--line)")):
        svg = svg.replace(fixed, of_page)
    return svg


def marks_of(drawing: Drawing, styles: Mapping[str, Style]) -> str:
    """Return as JSON the position of a figure's axes in its SVG, and their values in data units."""
    axes = [] if drawing.table is None else [ax for ax in drawing.figure.axes if ax.axison]
    panels = []
    for ax in axes:
        mine = drawing.table[drawing.table[drawing.by].astype(str) == ax.get_label()]  # type: ignore[index]
        if len(mine):
            about = {
                "box": _box(ax, drawing.figure),
                "x": ax.get_xlim(),
                "log": ax.get_xscale() == "log",
                "percent": drawing.percent,
            }
            shown = (
                {"cells": _cells(mine)} if "layer" in mine else {"y": ax.get_ylim(), "curves": _curves(mine, styles)}
            )
            panels.append(about | shown)
    # The text must not end the script element.
    return json.dumps(panels, separators=(",", ":")).replace("<", "\\u003c")


def _box(ax: "Axes", figure: "Figure") -> list[float]:
    """Return left, top, width and height of axes in the units of the SVG."""
    (width, height), place = figure.get_size_inches() * _POINTS_PER_INCH, ax.get_position()
    return _short([place.x0 * width, (1 - place.y1) * height, place.width * width, place.height * height])


def _curves(table: pd.DataFrame, styles: Mapping[str, Style]) -> list[dict[str, Any]]:
    curves = []
    for condition, mine in table.groupby("condition", sort=False, observed=True):
        style = styles.get(str(condition))
        curve = {"name": style.label or "all runs" if style else condition, "key": style.key if style else ""}
        curve["colour"] = style.colour if style else "currentColor"
        curve |= {name: _short(mine[name]) for name in ("at", "value", "low", "high", "runs") if name in mine}
        if "seeds" in mine:
            curve["seeds"] = [_short(run) for run in np.array(mine["seeds"].tolist()).T]
        curves.append(curve)
    return curves


def _cells(table: pd.DataFrame) -> list[dict[str, Any]]:
    parts = table.groupby("layer", sort=False, observed=True)
    return [{"name": str(layer), "at": _short(mine["at"]), "value": _short(mine["value"])} for layer, mine in parts]


def _short(values: Any) -> list[float]:
    """Return numbers in a few digits, ``None`` for missing ones."""
    values = np.asarray(values, dtype=float)
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in values]  # type: ignore[misc]
