"""Shows what becomes of recycled neurons in tables and figures, from folders of sweeps and tables of trainings.

    python -m studies.recycled survival runs/recycling_survival --environment Acrobot-v1 --table FILE
    python -m studies.recycled runs runs/recycling_runs --figure FILE
    python -m studies.recycled ends runs/small_interventions
    python -m studies.recycled settings runs/recycling_settings --table docs/results/recycling_settings.csv
    python -m studies.recycled labels docs/results/recycling_labels.csv --figure docs/images/recycling_labels.png

Prints Markdown. docs/results/recycling.md has the command of every table and figure. Files that --table writes are read
as folders are. :mod:`studies.tables` writes the tables of the docs.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from studies.recycled_ages import by_age, by_task
from studies.recycled_figures import draw_labels, draw_runs, draw_survival
from studies.recycled_settings import by_settings
from studies.recycled_tables import growth, late_tasks, pairs, thresholds, ways
from studies.sweep_outcomes import outcomes


class Kind(NamedTuple):
    """Something to show: how a folder is read, which tables there are of all that was read, and what draws it."""

    read: Callable[[Path], pd.DataFrame]
    tables: Callable[[pd.DataFrame], Iterator[str]]
    draw: Callable[[pd.DataFrame, Path], None] | None = None


def gather(paths: list[Path], read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    """Gather one table of all folders, which ``read`` reads, and of all files that ``--table`` wrote."""
    return pd.concat([read_file(path) if path.suffix == ".csv" else read(path) for path in paths])


def read_file(path: Path) -> pd.DataFrame:
    """Read a table that ``--table`` or :mod:`studies.shuffled_labels` wrote."""
    return by_task(path) if "mode" in pd.read_csv(path, nrows=0) else pd.read_csv(path, dtype={"epsilon": str})


def whole_runs(folder: Path, summary: str) -> pd.DataFrame:
    """Read :func:`outcomes`, with ``epsilon``, which there is part of the callback's label, such as clear_1.5e-4.

    :param summary: of the return: ``mean`` over the run, or ``last`` of it
    """
    return with_epsilon(outcomes(folder, summary).astype({"environment": str, "callback": str}))


def with_epsilon(table: pd.DataFrame) -> pd.DataFrame:
    """Split the epsilon off the callback's label."""
    parts = table["callback"].str.extract(r"^(?P<callback>\D+?)(?:_(?P<epsilon>\d.*))?$")
    return table.assign(callback=parts["callback"], epsilon=parts["epsilon"].fillna("1e-8"))


def tables_of(name: str, table: pd.DataFrame, write: Callable[[pd.DataFrame], str]) -> Iterator[str]:
    """Yield the table of each environment below its title."""
    for environment, mine in table.groupby("environment", sort=False):
        yield f"{environment}{name}\n\n{write(mine)}"


def of_ages(table: pd.DataFrame) -> Iterator[str]:
    """Yield the tables of neurons that were recycled once."""
    yield from tables_of("", table, growth)
    if "match" in set(table["callback"]):
        yield from tables_of(", contribution", table, pairs)


def of_runs(returns: str, table: pd.DataFrame) -> Iterator[str]:
    """Yield the tables of whole runs."""
    yield from tables_of("", table, partial(ways, returns=returns))


def of_labels(table: pd.DataFrame) -> Iterator[str]:
    """Yield the table of classifiers."""
    yield ways(late_tasks(table), "accuracy [%]")


def of_settings(table: pd.DataFrame) -> Iterator[str]:
    """Yield the table of thresholds and periods."""
    yield thresholds(table)


WHOLE, LAST = "return, mean over the run", "return at the end"
KINDS = {
    "survival": Kind(by_age, of_ages, draw_survival),
    "runs": Kind(partial(whole_runs, summary="mean"), partial(of_runs, WHOLE), partial(draw_runs, WHOLE)),
    "ends": Kind(partial(whole_runs, summary="last"), partial(of_runs, LAST), partial(draw_runs, LAST)),
    "settings": Kind(by_settings, of_settings),
    "labels": Kind(by_task, of_labels, draw_labels),
}


def main() -> None:
    """Print the tables, write what they are of, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=KINDS)
    parser.add_argument("paths", type=Path, nargs="+", help="folders of sweeps, and files that --table wrote")
    parser.add_argument("--figure", type=Path, help="file for the figure; settings have none")
    parser.add_argument("--table", type=Path, help="file for what is shown, of every seed")
    parser.add_argument("--environment", help="show it alone")
    options = parser.parse_args()
    kind = KINDS[options.what]
    if options.figure is not None and kind.draw is None:
        parser.error(f"{options.what} have no figure")
    table = gather(options.paths, kind.read)
    if options.environment is not None:
        known = ", ".join(table["environment"].unique())
        table = table[table["environment"] == options.environment]
        if table.empty:
            parser.error(f"nothing is of {options.environment}, but of {known}")
    if options.table is not None:
        table.to_csv(options.table, index=False, float_format="%.6g")
    print("\n\n".join(kind.tables(table)))
    if options.figure is not None and kind.draw is not None:
        kind.draw(table, options.figure)


if __name__ == "__main__":
    main()
