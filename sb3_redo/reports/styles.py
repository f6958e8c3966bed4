"""Gives conditions the same colour and line everywhere, in figures and on the page."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle

import pandas as pd

from sb3_redo.reports.sweep_folder import CALLBACK, text

# Okabe and Ito's palette. Its colours can be told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_WITHOUT, _WITH, _FURTHER = "--", "-", ("-.", ":")


@dataclass(frozen=True)
class Style:
    """Holds a condition's colour and line; ``label`` is its name without the parts that all conditions share.

    :param key: of its marks in a figure, which the page uses to hide them
    """

    label: str
    colour: str
    line: str
    key: str = "c0"


def styles_of(table: pd.DataFrame) -> dict[str, Style]:
    """Return the style of every condition in a table.

    The colour shows the setting, and the line shows the callback: dashed without recycling, solid with it, then
    dash-dotted and dotted for further callbacks. If only callbacks differ, they also have different colours.
    """
    conditions = table.drop_duplicates("condition")
    settings = list(dict.fromkeys(conditions["setting"]))
    redo = conditions["redo"].astype(bool)
    callbacks = [text(value) for value in conditions[CALLBACK]] if CALLBACK in conditions else [""] * len(conditions)
    lines = _lines(zip(callbacks, redo, strict=True))
    labels = short_labels(list(conditions["condition"]))
    kinds = list(zip(conditions["setting"], callbacks, strict=True))
    coloured: list[object] = list(settings) if len(settings) > 1 else list(dict.fromkeys(kinds))
    styles: dict[str, Style] = {}
    for condition, setting, callback, recycles in zip(
        conditions["condition"], conditions["setting"], callbacks, redo, strict=True
    ):
        colour = _colour(coloured.index(setting if len(settings) > 1 else (setting, callback)))
        styles[condition] = Style(labels[condition], colour, lines[callback, recycles], f"c{len(styles)}")
    return styles


def _colour(number: int) -> str:
    # Each repetition starts one colour later, because a figure of a grid shows every second or fourth setting.
    return COLOURS[(number + number // len(COLOURS)) % len(COLOURS)]


def _lines(kinds: Iterable[tuple[str, bool]]) -> dict[tuple[str, bool], str]:
    """Choose the line of each callback, by whether it recycles."""
    lines: dict[tuple[str, bool], str] = {}
    further = cycle(_FURTHER)
    for callback, recycles in kinds:
        first = _WITH if recycles else _WITHOUT
        if (callback, recycles) not in lines:
            lines[callback, recycles] = next(further) if first in lines.values() else first
    return lines


def short_labels(conditions: list[str]) -> dict[str, str]:
    """Shorten conditions: remove common parts, and the prefix of a dotted axis.

    >>> short_labels(["replay_ratio=1,callback=none", "replay_ratio=1,callback=redo"])
    {'replay_ratio=1,callback=none': 'callback=none', 'replay_ratio=1,callback=redo': 'callback=redo'}
    >>> short_labels(["policy_kwargs.activation=relu"])
    {'policy_kwargs.activation=relu': 'activation=relu'}
    """
    parts = {condition: condition.split(",") for condition in conditions}
    shared = set.intersection(*(set(each) for each in parts.values())) if len(parts) > 1 else set()
    return {
        condition: ", ".join(_short(part) for part in each if part not in shared) for condition, each in parts.items()
    }


def _short(part: str) -> str:
    axis, is_axis, label = part.partition("=")
    return f"{axis.rpartition('.')[2]}={label}".replace("_", " ") if is_axis else part
