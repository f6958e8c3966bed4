"""Writes the tables and the figure of docs/studies/optimizer_state.md from its files of seeds."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from studies.recycled_figures import STYLES

STATES, CONTROLS = ("clear", "restart", "match", "count"), ("random_match", "random_count")
METHODS = ("none", *STATES, *CONTROLS)
PAGE, FIGURE = Path("docs/studies/optimizer_state.md"), Path("docs/images/optimizer_state.png")
BEGIN, END = "<!-- optimizer_state: start -->\n", "<!-- optimizer_state: end -->"
MARK = r" \*"
FAMILIES = {
    "States": list(combinations(STATES[::-1], 2)),
    "Use": [(state, "none") for state in STATES],
    "Selection": [("match", "random_match"), ("count", "random_count")],
}
LEVEL = 0.05


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p-values corrected by Holm's method: the k-th smallest of n times n - k + 1, never falling."""
    order = np.argsort(p_values)
    corrected = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1))
    return np.asarray(np.minimum(corrected, 1)[np.argsort(order)])


class Results:
    """Holds the outcomes of the reported trainings.

    :param runs: of docs/results/optimizer_state.csv
    """

    def __init__(self, runs: pd.DataFrame):
        self.runs = runs
        self.settings = list(runs[["data", "epsilon"]].drop_duplicates().itertuples(index=False, name=None))
        self.seeds = runs["seed"].nunique()

    def of(self, method: str, setting: tuple[str, float], quantity: str = "accuracy") -> "pd.Series[float]":
        """Return a quantity in percent, by seed."""
        runs = self.runs
        mine = runs[(runs["method"] == method) & (runs["data"] == setting[0]) & (runs["epsilon"] == setting[1])]
        return 100 * mine.set_index("seed")[quantity].sort_index()

    def difference(self, pair: tuple[str, str], setting: tuple[str, float]) -> "pd.Series[float]":
        """Return the first method's accuracy minus the second's, in points, by seed."""
        return (self.of(pair[0], setting) - self.of(pair[1], setting)).dropna()

    def family(self, name: str) -> pd.DataFrame:
        """Test all comparisons of a family.

        :return: columns ``pair``, ``setting``, ``difference``, ``low``, ``high`` and ``p``, corrected by Holm
        """
        rows = []
        for pair in FAMILIES[name]:
            for setting in self.settings:
                values = self.difference(pair, setting)
                if len(values) > 1:
                    test = ttest_1samp(values, 0)
                    ends = test.confidence_interval()
                    rows.append((pair, setting, values.mean(), ends.low, ends.high, test.pvalue))
        table = pd.DataFrame(rows, columns=["pair", "setting", "difference", "low", "high", "p"])
        return table.assign(p=holm(table["p"].tolist()))

    def above(self, table: pd.DataFrame, method: str, other: str) -> int:
        """Count the settings in which a method is significantly above another one.

        :param table: of :meth:`family`
        """
        signs = table["pair"].map({(method, other): 1, (other, method): -1}).fillna(0)
        return int(((signs * table["difference"] > 0) & (table["p"] < LEVEL)).sum())

    def best_in(self, table: pd.DataFrame, method: str) -> list[tuple[str, float]]:
        """Return the settings in which a state is significantly above each of the others."""
        beaten = dict.fromkeys(self.settings, 0)
        for row in table.itertuples():
            sign = {0: 1, 1: -1}[row.pair.index(method)] if method in row.pair else 0
            beaten[row.setting] += sign * row.difference > 0 and row.p < LEVEL
        return [setting for setting, count in beaten.items() if count == len(STATES) - 1]


def written(setting: tuple[str, float]) -> str:
    """Write a setting."""
    return f"{setting[0]}, {'1e-8' if setting[1] < 1e-6 else '1.5e-4'}"


def row(cells: Sequence[str]) -> str:
    """Write a row of a table."""
    return "| " + " | ".join(cells) + " |"


def table_of(results: Results, first: str, rows: dict[str, list[str]]) -> str:
    """Write a table with a column for each setting."""
    head = [first, *map(written, results.settings)]
    return "\n".join([row(head), row(["---"] * len(head)), *(row([name, *cells]) for name, cells in rows.items())])


def mean_cell(values: "pd.Series[float]", form: str = ".1f") -> str:
    """Write mean and 95 % t interval."""
    if len(values) < 2:
        return "-"
    ends = ttest_1samp(values, 0).confidence_interval()
    return f"{values.mean():{form}} [{ends.low:{form}}, {ends.high:{form}}]"


def differences(results: Results, name: str) -> str:
    """Write the table of a family."""
    rows: dict[str, list[str]] = {}
    for each in results.family(name).itertuples():
        mark = MARK if each.p < LEVEL else ""
        cell = f"{each.difference:+.1f} [{each.low:+.1f}, {each.high:+.1f}]{mark}"
        rows.setdefault(f"`{each.pair[0]}` - `{each.pair[1]}`", []).append(cell)
    return table_of(results, "points", rows)


def chosen(results: Results) -> str:
    """Write the settings that each method was run at: learning rate, threshold, period."""
    rows = {}
    for method in METHODS:
        cells = []
        for data, epsilon in results.settings:
            runs = results.runs
            mine = runs[(runs["method"] == method) & (runs["data"] == data) & (runs["epsilon"] == epsilon)]
            cells += [
                f"{each.learning_rate:g}" + (f", {each.threshold:g}, {each.period}" if each.period else "")
                for each in mine.head(1).itertuples()
            ] or ["-"]
        rows[f"`{method}`"] = cells
    return table_of(results, "learning rate, threshold, period", rows)


def explored(choosing: pd.DataFrame, results: Results, by: str) -> str:
    """Write the highest mean accuracy of the trainings for choosing, at each value of one setting.

    :param choosing: of docs/results/optimizer_state_choosing.csv
    :param by: column of the setting
    """
    names = [field for field in ("learning_rate", "threshold", "period") if field != by]
    means = choosing.groupby(["data", "epsilon", "method", by, *names])["accuracy"].mean()
    highest = 100 * means.groupby(["data", "epsilon", "method", by]).max()
    rows = {
        f"`{state}`, {value:g}": [f"{highest[(*setting, state, value)]:.0f}" for setting in results.settings]
        for state in STATES
        for value in sorted(choosing.loc[choosing["method"] == state, by].unique())
    }
    return table_of(results, f"%, at a {by.replace('_', ' ')} of", rows)


def section(runs: pd.DataFrame, choosing: pd.DataFrame) -> str:
    """Return what stands between the page's markers."""
    results = Results(runs)
    states = results.family("States")
    parts = [
        f"n = {results.seeds} seeds in each cell, 95 % t intervals. Columns are data set and epsilon.",
        "Accuracy at the end of a task, mean over the last 10 tasks, in percent:",
        table_of(results, "%", {f"`{m}`": [mean_cell(results.of(m, s)) for s in results.settings] for m in METHODS}),
        "![Accuracy of every seed by method, a panel for each data set and epsilon](../images/optimizer_state.png)",
    ]
    for name, pairs in FAMILIES.items():
        count = len(pairs) * len(results.settings)
        parts += [
            f"Family *{name}*: difference in points, paired by seed. {MARK.strip()} marks p < 0.05 by Holm over "
            f"{count} tests.",
            differences(results, name),
        ]
    settings = len(results.settings)
    counts = {
        f"`{state}`": [
            f"{len(results.best_in(states, state))} of {settings}",
            *(f"{results.above(states, state, other)} of {settings}" if state != other else "" for other in STATES),
        ]
        for state in STATES
    }
    head = ["settings in which it is significantly above", "each of the others", *(f"`{each}`" for each in STATES)]
    parts += [
        "Significant gains of the first family, counted:",
        "\n".join([row(head), row(["---"] * len(head)), *(row([name, *cells]) for name, cells in counts.items())]),
        "Settings that were chosen for each method:",
        chosen(results),
        "Secondary, without tests. Dormant neurons at the ends of the last 10 tasks, in percent:",
        table_of(
            results,
            "%",
            {f"`{m}`": [mean_cell(results.of(m, s, "dormant")) for s in results.settings] for m in METHODS},
        ),
        "Accuracy at the end of a task, mean over all 20 tasks, in percent:",
        table_of(
            results,
            "%",
            {f"`{m}`": [mean_cell(results.of(m, s, "accuracy_all")) for s in results.settings] for m in METHODS},
        ),
        "Exploratory, of the trainings for choosing (2 seeds): the highest mean accuracy at each learning rate,",
        explored(choosing, results, "learning_rate"),
        "and at each threshold:",
        explored(choosing, results, "threshold"),
    ]
    return "\n" + "\n\n".join(parts) + "\n\n"


def page_with(page: str, runs: pd.DataFrame, choosing: pd.DataFrame) -> str:
    """Return the page with the tables between its markers."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + section(runs, choosing) + END + rest.split(END)[1]


def draw(runs: pd.DataFrame, file: Path) -> None:
    """Draw a panel for each setting: a dot for each seed, and the mean with its interval, by method."""
    results = Results(runs)
    columns = list(dict.fromkeys(data for data, _ in results.settings))
    figure, grid = plt.subplots(2, len(columns), figsize=(3.6 * len(columns), 6), sharey=True, layout="constrained")
    for number, setting in enumerate(results.settings):
        ax = grid[number % 2, columns.index(setting[0])]
        for place, method in enumerate(METHODS[::-1]):
            values = results.of(method, setting)
            if len(values) > 1:
                colour, _ = STYLES[method.removeprefix("random_").replace("count", "counted")]
                ax.plot(values, place + np.linspace(-0.2, 0.2, len(values)), "o", color=colour, alpha=0.35, ms=3)
                ends = ttest_1samp(values, 0).confidence_interval()
                ax.plot([ends.low, ends.high], [place, place], color="black", lw=2)
                ax.plot(values.mean(), place, "D", color=colour, mec="black", ms=6)
        ax.set_yticks(range(len(METHODS)), METHODS[::-1])
        ax.set_title(f"{setting[0]}, Adam's epsilon {written(setting).split(', ')[1]}", fontsize="medium")
        ax.set_xlabel("accuracy, last 10 tasks [%]")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def write(runs: pd.DataFrame, choosing: pd.DataFrame) -> None:
    """Write the page's tables and its figure.

    :param runs: of docs/results/optimizer_state.csv
    :param choosing: of docs/results/optimizer_state_choosing.csv
    """
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), runs, choosing), encoding="utf-8")
    draw(runs, FIGURE)
