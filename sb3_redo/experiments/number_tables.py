"""The numbers of an experiment beside the paper's, as they are read on a page."""

import pandas as pd

from sb3_redo.experiments.numbers import QUANTITIES
from sb3_redo.reports.build import markdown_table

_SHARES = frozenset(quantity.words for quantity in QUANTITIES.values() if quantity.percent)


def beside_table(numbers: pd.DataFrame) -> str:
    """A row for each condition and, for each quantity, a column of ours and one of the paper's where it has any.

    :param numbers: from :func:`~sb3_redo.experiments.numbers.beside_paper`
    :return: Markdown
    """
    rows = []
    for (environment, condition), mine in numbers.groupby(["environment", "condition"], sort=False):
        row = {"environment": environment, "condition": condition, "runs": mine["runs"].iloc[0]}
        for quantity, found in mine.groupby("quantity", sort=False):
            row[quantity] = _number(found.iloc[0], "ours", quantity)
            if _published(numbers[numbers["quantity"] == quantity]).size:
                row[f"{str(quantity).partition(': ')[0]}: the paper"] = ", ".join(
                    _of_game(number, quantity) for _, number in _published(found).iterrows()
                )
        rows.append(row)
    return markdown_table(pd.DataFrame(rows).dropna(axis="columns", how="all"))


def sources_table(numbers: pd.DataFrame) -> str:
    """What the paper's numbers are of and how they were read; nothing where there are none."""
    published = _published(numbers)
    if not len(published):
        return ""
    shown = published[["quantity", "figure", "paper_scale", "source"]].drop_duplicates(ignore_index=True)
    return markdown_table(shown.rename(columns={"paper_scale": "of", "source": "how we know it"}))


def _published(numbers: pd.DataFrame) -> pd.DataFrame:
    return numbers[numbers["paper"].notna()] if "paper" in numbers else numbers.iloc[:0]


def _of_game(number: "pd.Series[object]", quantity: str) -> str:
    game, parted, _ = str(number["paper_scale"]).partition(": ")
    told = _number(number, "paper", quantity, "paper_")
    return f"{told} ({game})" if parted else told


def _number(row: "pd.Series[object]", name: str, quantity: str, prefix: str = "") -> str:
    """A value with its interval where there is one; shares in percent."""
    scale, unit, form = (100, " %", ".1f") if quantity in _SHARES else (1, "", ".3g")
    value, low, high = (float(row[key]) * scale for key in (name, f"{prefix}low", f"{prefix}high"))
    if quantity not in _SHARES and abs(value) >= 100:
        form = ".0f"
    told = f"{value:{form}}{unit}"
    return told if low != low else f"{told} [{low:{form}}, {high:{form}}]"
