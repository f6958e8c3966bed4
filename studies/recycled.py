"""Shows what becomes of recycled neurons in tables and figures, from folders of sweeps and tables of trainings.

    python -m studies.recycled survival runs/recycling_survival --environment CartPole-v1 --figure FILE
    python -m studies.recycled runs runs/recycling_runs --figure docs/images/recycling_runs.png
    python -m studies.recycled ends runs/small_interventions
    python -m studies.recycled settings runs/recycling_settings
    python -m studies.recycled labels runs/shuffled_labels.csv --figure docs/images/recycling_labels.png

Prints Markdown. docs/recycling.md has the command of every figure. Files that --table writes are read as folders are.
Intervals are 95 % percentile intervals of a bootstrap over seeds; differences are paired by seed.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from studies.intervals import cell
from studies.recycled_ages import by_age, survival
from studies.recycled_figures import LABELS, draw_labels, draw_runs
from studies.recycled_settings import by_settings, settings
from studies.sweep_outcomes import outcomes


def gather(paths: list[Path], read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    """Gather one table of all folders, which ``read`` reads, and of all files that ``--table`` wrote."""
    return pd.concat(
        [pd.read_csv(path, dtype={"epsilon": str}) if path.suffix == ".csv" else read(path) for path in paths]
    )


def whole_runs(folder: Path) -> pd.DataFrame:
    """Read :func:`outcomes` with the return's mean, and ``epsilon``."""
    return with_epsilon(outcomes(folder, "mean").astype({"environment": str, "callback": str}))


def runs(table: pd.DataFrame, figure: Path | None) -> None:
    """Print and draw how whole runs went, of all sweeps in one figure."""
    _runs(table, "return, mean over the run", figure)


def with_epsilon(table: pd.DataFrame) -> pd.DataFrame:
    """Add ``epsilon``, which in sweeps of whole runs is part of the callback's label, such as clear_1.5e-4."""
    parts = table["callback"].str.extract(r"^(?P<callback>\D+?)(?:_(?P<epsilon>\d.*))?$")
    return table.assign(callback=parts["callback"], epsilon=parts["epsilon"].fillna("1e-8"))


def ends(folder: Path, figure: Path | None) -> None:
    """Print and draw the same with the return at the end."""
    table = outcomes(folder, "last").astype({"environment": str, "callback": str})
    _runs(with_epsilon(table), "return at the end", figure)


def _runs(table: pd.DataFrame, returns: str, figure: Path | None) -> None:
    for (environment, epsilon), mine in table.groupby(["environment", "epsilon"], sort=False):
        title = f"{environment}, Adam's epsilon {epsilon}"
        tell(title, f"dormant at the end [%] | against none | {returns}", mine)
    if figure is not None:
        draw_runs(table, returns, figure)


def tell(title: str, columns: str, mine: pd.DataFrame) -> None:
    """Print a table with a line for each way to recycle."""
    print(f"\n{title}, {mine['seed'].nunique()} seeds\n\n| | {columns} | against none |\n|---|---|---|---|---|")
    for label, cells in rows(mine):
        print(f"| {label} | {' | '.join(cells)} |")


def rows(mine: pd.DataFrame) -> Iterator[tuple[str, list[str]]]:
    """Yield a line of the table for each way to recycle."""
    without = mine[mine["callback"] == "none"].set_index("seed")
    for callback, label in LABELS.items():
        of = mine[mine["callback"] == callback].set_index("seed")
        cells = []
        for quantity in ("fraction", "return") if len(of) else ():
            decimals = 0 if mine[quantity].abs().max() >= 10 else 2
            cells.append(cell(of[quantity], f".{decimals}f"))
            gain = (of[quantity] - without[quantity]).dropna()
            cells.append(cell(gain, f"+.{decimals}f") if len(gain) and callback != "none" else "")
        if cells:
            yield label, cells


def labels(file: Path, figure: Path | None) -> None:
    """Print and draw what :mod:`studies.shuffled_labels` wrote; accuracies are means over the last five tasks."""
    table = pd.read_csv(file, dtype={"epsilon": str})
    table["fraction"], table["return"] = 100 * table["dormant"], 100 * table["accuracy"]
    table["callback"] = table["mode"]
    for epsilon, mine in table.groupby("epsilon", sort=False):
        last = (
            mine[mine["task"] >= mine["task"].max() - 4]
            .groupby(["callback", "seed"], as_index=False)
            .mean(numeric_only=True)
        )
        tell(f"Adam's epsilon {epsilon}, last five tasks", "dormant [%] | against none | accuracy [%]", last)
    if figure is not None:
        draw_labels(table, figure)


def main() -> None:
    """Print the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("survival", "runs", "ends", "settings", "labels"))
    parser.add_argument(
        "paths", type=Path, nargs="+", help="folder of the sweep, table; of survival, runs and settings several"
    )
    parser.add_argument("--figure", type=Path, help="file for the figure")
    parser.add_argument("--table", type=Path, help="file for what is shown, of every seed; not of ends and labels")
    parser.add_argument("--environment", help="show it alone; not of ends and labels")
    options = parser.parse_args()
    of_several = {"survival": (by_age, survival), "runs": (whole_runs, runs), "settings": (by_settings, settings)}
    if options.what in of_several:
        read, show = of_several[options.what]
        table = gather(options.paths, read)
        if options.environment is not None:
            known = ", ".join(table["environment"].unique())
            table = table[table["environment"] == options.environment]
            if table.empty:
                parser.error(f"nothing is of {options.environment}, but of {known}")
        if options.table is not None:
            table.to_csv(options.table, index=False, float_format="%.6g")
        show(table, options.figure)
        return
    if len(options.paths) > 1 or options.table is not None or options.environment is not None:
        parser.error(f"{options.what} is of one folder or table, shown as a whole, and writes no table")
    of_one = {"ends": ends, "labels": labels}
    of_one[options.what](options.paths[0], options.figure)


if __name__ == "__main__":
    main()
