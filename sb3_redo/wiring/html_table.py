"""Writes tables for notebooks."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table of plain text. The first cell of each row is its header."""
    left = ' style="text-align: left"'  # notebooks right-align cells, which suits only numbers
    head = "".join(f'<th scope="col"{left}>{escape(cell)}</th>' for cell in header)
    body = ""
    for name, *cells in rows:
        data = "".join(f"<td{left}>{escape(cell)}</td>" for cell in cells)
        body += f'<tr><th scope="row"{left}>{escape(name)}</th>{data}</tr>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
