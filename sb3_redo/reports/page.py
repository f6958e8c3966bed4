"""Writes one HTML page with all figures. The script is inside, and the page's policy blocks all requests."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from sb3_redo.reports.styles import Style

_DASHES = {"-": "none", "--": "6 4", "-.": "8 3 2 3", ":": "2 3"}


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return the page's HTML.

    :param sections: heading and contents (HTML), in order; an empty heading continues the section before
    """
    body = "\n".join((f"<h2>{escape(heading)}</h2>\n" if heading else "") + contents for heading, contents in sections)
    folder = Path(__file__).parent
    template = Template((folder / "page.html").read_text(encoding="utf-8"))
    script = (folder / "page.js").read_text(encoding="utf-8")
    return template.substitute(title=escape(title), script=script, body=body)


def note(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>' if words else ""


def paragraph(words: str) -> str:
    return f"<p>{escape(words).replace(' %', '&nbsp;%')}</p>"


def preformatted(words: str) -> str:
    return f"<pre>{escape(words)}</pre>"


def folded(heading: str, contents: str) -> str:
    """Return contents (HTML) that are shown by a click on their heading."""
    return f"<details><summary>{escape(heading)}</summary>\n{contents}</details>"


def facts(words: Mapping[str, str]) -> str:
    """Return a list of headings with texts."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(told)}</dd>" for name, told in words.items()) + "</dl>"


def table(frame: pd.DataFrame, styles: Iterable[Style] | None = None) -> str:
    """Return a table. Numbers have four digits; missing ones are empty.

    Text is aligned left, which ``DataFrame.to_html`` cannot do.

    :param styles: of the rows' conditions; each row begins with a sample of its line
    """
    words = {name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])}
    samples = [_cell("td", _sample(style), True) for style in styles or ()]
    head = "<th></th>" * bool(samples)
    head += "".join(_cell("th", escape(str(name)).replace("_", " "), name in words) for name in frame)
    rows = (
        "".join(_cell("td", _shown(value), name in words) for name, value in zip(frame, row, strict=True))
        for row in frame.itertuples(index=False)
    )
    rows = (sample + row for sample, row in zip(samples, rows, strict=True)) if samples else rows
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


def _sample(style: Style) -> str:
    line = f'stroke="{style.colour}" stroke-width="2.5" stroke-dasharray="{_DASHES[style.line]}"'
    return f'<svg class="sample" viewBox="0 0 30 8"><line x1="1" x2="29" y1="4" y2="4" {line}/></svg>'


def switches(styles: Iterable[Style]) -> str:
    """Return a bar of boxes that hide conditions in all figures, or show single seeds."""
    shown = "".join(
        f'<label><input type="checkbox" checked data-of="{style.key}">{_sample(style)} '
        f"{escape(style.label or 'all runs')}</label>"
        for style in styles
    )
    return f'<div id="switches">{shown}<label><input type="checkbox" id="seeds"> single seeds</label></div>'


def picture(svg: str, marks: str) -> str:
    """Return a figure that shows values under the mouse.

    :param svg: from :func:`~sb3_redo.reports.pictures.inline_svg`
    :param marks: from :func:`~sb3_redo.reports.pictures.marks_of`
    """
    return f'<figure>{svg}<script type="application/json">{marks}</script></figure>'
