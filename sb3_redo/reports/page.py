"""Writes one HTML page with interactive curves. Its script is inside, and its policy forbids it to fetch anything."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd

from sb3_redo.reports.styles import COLOURS, styles_of
from sb3_redo.validation import needs

with needs("report", "the page of a report"):
    from plotly import io
    from plotly.offline import get_plotlyjs

# As Plotly's own JSON has them.
_Trace = dict[str, Any]
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
_CONFIG = {"displaylogo": False, "responsive": True}


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return the page's HTML.

    :param sections: heading and contents (HTML), in order
    """
    body = "\n".join(f"<h2>{escape(heading)}</h2>\n{contents}" for heading, contents in sections)
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), script=get_plotlyjs(), body=body)


def note(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>'


def preformatted(words: str) -> str:
    return f"<pre>{escape(words)}</pre>"


def table(frame: pd.DataFrame) -> str:
    """Return a table, numbers in four digits, missing ones empty.

    Words stand on the left, which ``DataFrame.to_html`` cannot do.
    """
    words = {name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])}
    head = "".join(_cell("th", escape(str(name)).replace("_", " "), name in words) for name in frame)
    rows = (
        "".join(_cell("td", _shown(value), name in words) for name, value in zip(frame, row, strict=True))
        for row in frame.itertuples(index=False)
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cell(tag: str, contents: str, is_word: bool) -> str:
    return f'<{tag} class="word">{contents}</{tag}>' if is_word else f"<{tag}>{contents}</{tag}>"


def _shown(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return escape(str(value))


def curves(frame: pd.DataFrame, x: str, y: str, percent: bool = False) -> str:
    """Draw the curves of every environment, one at a time, chosen from a menu; shading is as in the figures.

    :param frame: columns ``environment``, ``condition``, ``at``, ``value``, ``low``, ``high``
    :param x: the axis's label
    :param y: the axis's label
    """
    styles = styles_of(frame)
    traces: list[_Trace] = []
    owners = []
    for (environment, condition), mine in frame.groupby(["environment", "condition"], sort=False, observed=True):
        style = styles[condition]
        line = {"color": style.colour, "dash": _DASHES[style.line]}
        shared = {"type": "scatter", "mode": "lines", "legendgroup": condition, "name": style.label or "all runs"}
        traces.append(_xy(mine["at"], mine["value"]) | shared | {
            "line": line, "customdata": mine["runs"].to_numpy(), "hovertemplate": "%{y:.4g} (%{customdata} runs)",
        })  # fmt: skip
        band = mine[mine["low"].notna()]
        outline = _xy([*band["at"], *band["at"][::-1]], [*band["high"], *band["low"][::-1]])
        traces.append(outline | shared | {
            "fill": "toself", "fillcolor": style.colour, "opacity": 0.15, "line": {"width": 0}, "hoverinfo": "skip",
            "showlegend": False,
        })  # fmt: skip
        owners += [environment, environment]
    axis = {"tickformat": ".0%", "rangemode": "tozero"} if percent else {}
    return _html(traces, owners, {"title": {"text": x}}, {"title": {"text": y}} | axis)


def replay_ratios(frame: pd.DataFrame) -> str:
    """Draw the final return against the replay ratio, as the figure of the same name."""
    traces: list[_Trace] = []
    owners = []
    names = list(dict.fromkeys(frame["series"]))
    for (environment, series), mine in frame.groupby(["environment", "series"], sort=False):
        mine = mine.sort_values("replay_ratio").astype({"replay_ratio": float})
        up, down = mine["high"] - mine["value"], mine["value"] - mine["low"]
        dash = "solid" if bool(mine["redo"].iloc[0]) else "dash"
        traces.append(_xy(mine["replay_ratio"], mine["value"]) | {
            "type": "scatter", "mode": "lines+markers", "name": series,
            "line": {"color": COLOURS[names.index(series) % len(COLOURS)], "dash": dash},
            "error_y": {"array": up.to_numpy(), "arrayminus": down.to_numpy(), "symmetric": False},
        })  # fmt: skip
        owners.append(environment)
    ratios = sorted({float(ratio) for ratio in frame["replay_ratio"]})
    ticks = {"type": "log", "tickvals": ratios, "ticktext": [f"{ratio:g}" for ratio in ratios]}
    x = {"title": {"text": "replay ratio (gradient steps per environment step)"}} | ticks
    return _html(traces, owners, x, {"title": {"text": f"IQM of final {frame['measure'].iloc[0]}"}})


def layers(frame: pd.DataFrame, x: str) -> str:
    """Draw heat maps of every environment and condition, one at a time, chosen from a menu."""
    styles = styles_of(frame)
    traces: list[_Trace] = []
    owners = []
    for (environment, condition), mine in frame.groupby(["environment", "condition"], sort=False, observed=True):
        grid = mine.pivot(index="layer", columns="at", values="value").loc[list(dict.fromkeys(mine["layer"]))]
        traces.append(_xy(grid.columns, list(grid.index)) | {
            "type": "heatmap", "z": grid.to_numpy(), "zmin": 0, "zmax": 1, "colorscale": "Cividis", "name": "",
            "hovertemplate": "%{y}: %{z:.1%}", "colorbar": {"tickformat": ".0%", "title": {"text": "dormant"}},
        })  # fmt: skip
        owners.append(f"{environment}: {styles[condition].label}".rstrip(": "))
    return _html(traces, owners, {"title": {"text": x}}, {"autorange": "reversed", "automargin": True})


def speeds(outcomes: pd.DataFrame) -> str:
    """Draw the environment steps per second of every run, by condition."""
    traces: list[_Trace] = []
    for condition, style in styles_of(outcomes).items():
        mine = outcomes[outcomes["condition"] == condition]
        traces.append({
            "type": "box", "x": mine["steps_per_second"].to_numpy(), "name": style.label or "all runs",
            "boxpoints": "all", "text": list(mine["run"]), "marker": {"color": style.colour}, "showlegend": False,
        })  # fmt: skip
    x = {"title": {"text": "environment steps per second"}, "rangemode": "tozero"}
    return _html(traces, [""] * len(traces), x, {"autorange": "reversed", "automargin": True}, hovermode="closest")


def _xy(x: Any, y: Any) -> _Trace:
    return {"x": np.asarray(x), "y": np.asarray(y)}


def _menu(owners: Sequence[str]) -> list[_Trace]:
    """Return a menu that shows what belongs to one owner; none for a single owner.

    :param owners: of the figure's traces, in their order
    """
    names = list(dict.fromkeys(owners))
    if len(names) < 2:
        return []
    buttons = [
        {"label": name, "method": "update", "args": [{"visible": [owner == name for owner in owners]}]}
        for name in names
    ]
    return [{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "showactive": True}]


def _html(traces: list[_Trace], owners: Sequence[str], x: _Trace, y: _Trace, hovermode: str = "x") -> str:
    for trace, owner in zip(traces, owners, strict=True):
        trace["visible"] = owner == owners[0]
    layout = {"xaxis": x, "yaxis": y, "updatemenus": _menu(owners), "hovermode": hovermode, "height": 480}
    layout |= {"margin": {"t": 60, "l": 70, "r": 20}, "template": io.templates["plotly_white"].to_plotly_json()}
    # Not validated: what is put together here is known, and Plotly's classes take seconds for a hundred curves.
    figure = {"data": traces, "layout": layout}
    text: str = io.to_html(figure, full_html=False, include_plotlyjs=False, config=_CONFIG, validate=False)
    return text
