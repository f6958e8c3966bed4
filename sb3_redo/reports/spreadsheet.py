"""Prevents spreadsheets from executing text of a CSV file as formulas."""

from typing import Any

import pandas as pd


def neutralised(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table without formulas for a spreadsheet: such texts get an apostrophe in front.

    >>> neutralised(pd.DataFrame({"a": ["=1+1", "-2", "none"], "b": [-1, -2, -3]})).values.tolist()
    [["'=1+1", -1], ['-2', -2], ['none', -3]]
    """
    texts = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    safe = frame.assign(**{name: frame[name].map(neutral, na_action="ignore") for name in texts})
    return safe.rename(columns=neutral)


def neutral(cell: Any) -> Any:
    """Return a cell of a table as :func:`neutralised` writes it."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
