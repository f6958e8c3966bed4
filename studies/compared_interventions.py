"""Analyses the study of interventions, whose plan is docs/studies/interventions.md.

    python -m studies.compared_interventions gather runs/replay_ratio_interventions
    python -m studies.compared_interventions write                    # table and figure, into docs/

``gather`` keeps one row per finished run in docs/results/. ``write`` reads this file and that of the study of replay
ratios, whose runs without and with recycling are compared with. Both may be given while runs are missing.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from sb3_redo.reports.statistics import holm, mean_interval
from studies.intervals import cell, p_cell
from studies.replay_ratio import DOCS, RESULTS, Study, gather, keep, results, written

PAGE = DOCS / "studies" / "interventions.md"
FIGURE = DOCS / "images" / "compared_interventions.png"
FILE = RESULTS / "replay_ratio_interventions.csv"
METHODS = ("clear", "reset", "perturbation", "fire", "optimizer_reset", "adaptive_ratio")
RATIO = 4


def compared() -> pd.DataFrame:
    """Return the runs of this study, and those of the study of replay ratios with which they are compared."""
    narrow = pd.read_csv(results("narrow"))
    return pd.concat(
        [narrow[(narrow["replay_ratio"] == RATIO) & narrow["callback"].isin(["none", "clear"])], pd.read_csv(FILE)]
    )


def differences(study: Study) -> dict[str, "pd.Series[float]"]:
    """Return each method's differences from no method, by seed."""
    return {way: study.cells[way, RATIO] - study.cells["none", RATIO] for way in METHODS}


def section(runs: pd.DataFrame) -> str:
    """Write the table."""
    study, dormant = Study.of(runs), Study.of(runs, "dormant")
    if study.seeds < 2 or not set(METHODS) <= set(runs["callback"]):
        return "No table yet: not all conditions have finished for two seeds."
    found = differences(study)
    p_values = [mean_interval(each.to_numpy()).p_value for each in found.values()]
    beside = {"none": "| | | |"} | {
        way: f"| {cell(each, '+.3g')} | {p_cell(p)} | {p_cell(adjusted)} |"
        for (way, each), p, adjusted in zip(found.items(), p_values, holm(p_values), strict=True)
    }
    lines = ["| condition | return | dormant [%] | difference from `none` | p | p, Holm |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{way}` | {study.mean(way, RATIO)} | {dormant.mean(way, RATIO)} {rest}" for way, rest in beside.items()
    ]
    seeds = f"Seeds: {study.seeds}, {study.cells.index.min()} to {study.cells.index.max()}."
    return f"{seeds}\n\n" + "\n".join(lines)


def draw(runs: pd.DataFrame, file: Path) -> None:
    """Draw each method's difference from no method with its 95 % t interval, single seeds behind it."""
    study = Study.of(runs)
    figure, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for place, (_, each) in enumerate(differences(study).items()):
        found = mean_interval(each.to_numpy())
        ax.plot(each, [place] * len(each), "o", color="#999999", markersize=3, zorder=1)
        ax.errorbar(found.value, place, xerr=found.high - found.value, fmt="s", color="#0072B2", capsize=3, zorder=2)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(METHODS)), METHODS)
    ax.invert_yaxis()
    ax.set_xlabel("difference in mean return from none, paired by seed")
    ax.set_title(f"CartPole, two layers of 16, replay ratio 4, {study.seeds} seeds", fontsize=10)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Gather or write."""
    parser = argparse.ArgumentParser(description="Compare interventions at a high replay ratio.")
    parser.add_argument("command", choices=("gather", "write"))
    parser.add_argument("folder", type=Path, nargs="?", help="of the sweep, to gather")
    options = parser.parse_args()
    if options.command == "gather":
        keep(gather(options.folder), FILE)
    else:
        runs = compared()
        PAGE.write_text(written(PAGE.read_text(), {"interventions": section(runs)}))
        draw(runs, FIGURE)


if __name__ == "__main__":
    main()
