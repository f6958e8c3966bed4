"""Analyses the study of replay ratios, whose plan is docs/studies/replay_ratio.md.

    python -m studies.replay_ratio gather runs/replay_ratio_narrow    # into docs/results/replay_ratio_narrow.csv
    python -m studies.replay_ratio write                              # tables and figure, into docs/

``gather`` keeps one row per finished run. ``write`` reads these files alone. Both may be given while runs are missing:
every table says of how many seeds it is, and a seed counts where all conditions of its study have finished.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from sb3_redo.reports import read_sweep_folder
from sb3_redo.reports.statistics import holm, mean_interval
from studies.intervals import cell, p_cell

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"
PAGE = DOCS / "studies" / "replay_ratio.md"
FIGURE = DOCS / "images" / "replay_ratio.png"
STUDIES = {
    "narrow": "CartPole, two layers of 16",
    "wide": "CartPole, two layers of 64",
    "acrobot": "Acrobot, two layers of 16",
    "breakout": "MinAtar Breakout, 16 neurons",
    "space_invaders": "MinAtar Space Invaders, 16 neurons",
}
CONDITIONS = ("none", "clear", "match", "random")
OUTCOMES = ("return", "return_by_step", "return_late", "dormant")
STYLES = {"none": ("#000000", "o"), "clear": ("#D55E00", "s"), "match": ("#0072B2", "^"), "random": ("#009E73", "D")}
"""Colours of Okabe and Ito, and markers."""
Contrast = tuple[tuple[str, float], tuple[str, float]]
"""Two cells, each a condition and a replay ratio; the second is subtracted from the first."""


def gather(folder: Path) -> pd.DataFrame:
    """Read every finished run of a sweep.

    :return: columns ``environment``, ``replay_ratio``, ``callback``, ``seed``, ``episodes``; ``return``, the mean over
        all training episodes; ``return_by_step``, the mean over environment steps of the return of their episode;
        ``return_late``, the mean over episodes that ended in the last 40 % of steps; ``dormant``, the dormant fraction
        at the last measurement, in %; ``recycled``, neurons in all
    """
    sweep = read_sweep_folder(folder)
    rows = []
    for run in sweep.in_state("finished"):
        assert run.result is not None
        files = sorted(run.folder.rglob("*.monitor.csv"))
        episodes = pd.concat([pd.read_csv(file, comment="#") for file in files], ignore_index=True)
        ends = episodes["l"].cumsum()
        late = episodes["r"][ends > 0.6 * run.result["num_timesteps"]]
        rows.append(
            {
                "environment": run.environment,
                "replay_ratio": run.condition["replay_ratio"],
                "callback": run.condition["callback"],
                "seed": run.seed,
                "episodes": len(episodes),
                "return": episodes["r"].mean(),
                "return_by_step": np.average(episodes["r"], weights=episodes["l"]),
                "return_late": late.mean() if len(late) else float("nan"),
                "dormant": 100 * run.result["final_dormant_fraction"],
                "recycled": run.result.get("recycled_total") or 0,
            }
        )
    order = ["environment", "replay_ratio", "seed", "callback"]
    return pd.DataFrame(rows).sort_values(order, ignore_index=True)


@dataclass(frozen=True)
class Study:
    """Holds one outcome of one study: seeds by cells, for the seeds of which every cell has finished."""

    cells: pd.DataFrame

    @classmethod
    def of(cls, runs: pd.DataFrame, outcome: str = "return") -> "Study":
        cells = runs.pivot(index="seed", columns=["callback", "replay_ratio"], values=outcome)
        return cls(cells.dropna())

    @property
    def ratios(self) -> list[float]:
        return sorted({ratio for _, ratio in self.cells.columns})

    @property
    def seeds(self) -> int:
        return len(self.cells)

    def mean(self, callback: str, ratio: float) -> str:
        """Write a cell's mean with its 95 % t interval."""
        return cell(self.cells[callback, ratio], ".3g")

    def difference(self, contrast: Contrast) -> tuple[str, float]:
        """Return the mean paired difference with its 95 % t interval, written, and the p-value of no difference."""
        (one, of_one), (other, of_other) = contrast
        differences = self.cells[one, of_one] - self.cells[other, of_other]
        return cell(differences, "+.3g"), mean_interval(differences.to_numpy()).p_value


def primary(ratios: list[float]) -> list[Contrast]:
    """Return the contrasts of the primary family, see the plan."""
    high = [ratio for ratio in ratios if ratio >= 1]
    fall: Contrast = (("none", 4), ("none", 1))
    return [fall, *(((way, ratio), ("none", ratio)) for ratio in high for way in ("clear", "match"))]


def secondary(ratios: list[float]) -> list[Contrast]:
    """Return the contrasts of the secondary family, see the plan."""
    against_chance: list[Contrast] = [
        ((way, ratio), ("random", ratio)) for ratio in ratios if ratio >= 1 for way in ("clear", "match")
    ]
    chance: list[Contrast] = [(("random", ratio), ("none", ratio)) for ratio in ratios]
    low: list[Contrast] = [
        ((way, ratio), ("none", ratio)) for ratio in ratios if ratio < 1 for way in ("clear", "match")
    ]
    return [*against_chance, *chance, *low]


def family(study: Study, contrasts: list[Contrast]) -> str:
    """Write a family's table."""
    differences, p_values = zip(*map(study.difference, contrasts), strict=True)
    lines = ["| difference | return | p | p, Holm |", "|---|---|---|---|"]
    for contrast, difference, p, adjusted in zip(contrasts, differences, p_values, holm(list(p_values)), strict=True):
        (one, of_one), (other, of_other) = contrast
        name = f"`{one}` at {of_one:g} - `{other}` at {of_other:g}"
        lines.append(f"| {name} | {difference} | {p_cell(p)} | {p_cell(adjusted)} |")
    return "\n".join(lines)


def means(runs: pd.DataFrame) -> str:
    """Write the means of all outcomes, one row per cell."""
    studies = [Study.of(runs, outcome) for outcome in OUTCOMES]
    lines = [
        "| replay ratio | condition | return | by step | last 40 % | dormant [%] |",
        "|---|---|---|---|---|---|",
    ]
    for ratio in studies[0].ratios:
        for callback in CONDITIONS:
            cells = " | ".join(study.mean(callback, ratio) for study in studies)
            lines.append(f"| {ratio:g} | `{callback}` | {cells} |")
    return "\n".join(lines)


def sections() -> dict[str, str]:
    """Return what stands between the page's markers, by study."""
    return {name: section(pd.read_csv(file)) for name in STUDIES if (file := results(name)).exists()}


def section(runs: pd.DataFrame) -> str:
    """Write all tables of one study."""
    study = Study.of(runs)
    if study.seeds < 2:
        return f"No table yet: {study.seeds} seeds have finished in all conditions."
    seeds = f"Seeds: {study.seeds}, {study.cells.index.min()} to {study.cells.index.max()}."
    primaries, others = (family(study, contrasts(study.ratios)) for contrasts in (primary, secondary))
    return f"{seeds}\n\n{means(runs)}\n\nPrimary family:\n\n{primaries}\n\nSecondary family:\n\n{others}"


def results(study: str) -> Path:
    """Return the file of a study's runs."""
    return RESULTS / f"replay_ratio_{study}.csv"


def written(page: str, sections: dict[str, str]) -> str:
    """Return the page with the sections between their markers."""
    for name, text in sections.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{text}\n\n{end}{rest.split(end, 1)[1]}"
    return page


def draw(file: Path) -> None:
    """Draw mean returns against replay ratios, a panel for each study, with 95 % t intervals."""
    studies = {
        name: study
        for name in STUDIES
        if (path := results(name)).exists()
        if (study := Study.of(pd.read_csv(path))).seeds > 1
    }
    figure, axes = plt.subplots(1, len(studies), figsize=(4.2 * len(studies), 3.4), squeeze=False, layout="constrained")
    for ax, (name, study) in zip(axes[0], studies.items(), strict=True):
        for shift, callback in zip((-0.06, -0.02, 0.02, 0.06), CONDITIONS, strict=True):
            cells = study.cells[callback][study.ratios]
            half = [found.high - found.value for found in map(mean_interval, cells.to_numpy().T)]
            colour, marker = STYLES[callback]
            places = np.arange(len(study.ratios)) + shift
            ax.errorbar(places, cells.mean(), half, color=colour, marker=marker, label=callback, capsize=2)
        ax.set_xticks(range(len(study.ratios)), [f"{ratio:g}" for ratio in study.ratios])
        ax.set_xlabel("replay ratio (gradient steps per environment step)")
        ax.set_title(f"{STUDIES[name]}, {study.seeds} seeds", fontsize=10)
    axes[0, 0].set_ylabel("mean return over the whole run")
    axes[0, 0].legend(title="recycling")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    gathering = commands.add_parser("gather", help="read finished runs into docs/results/")
    gathering.add_argument("folders", type=Path, nargs="+")
    commands.add_parser("write", help="write tables and figure into docs/")
    arguments = parser.parse_args()
    if arguments.command == "gather":
        for folder in arguments.folders:
            for environment, runs in gather(folder).groupby("environment"):
                games = {"MinAtarBreakout-v1": "breakout", "MinAtarSpaceInvaders-v1": "space_invaders"}
                name = games.get(str(environment), folder.name.removeprefix("replay_ratio_"))
                keep(runs, results(name))
    else:
        PAGE.write_text(written(PAGE.read_text(), sections()))
        draw(FIGURE)


def keep(runs: pd.DataFrame, file: Path) -> None:
    """Add runs to a file, in place of those that it has of the same cells and seeds."""
    keys = ["environment", "replay_ratio", "callback", "seed"]
    if file.exists():
        runs = pd.concat([pd.read_csv(file), runs]).drop_duplicates(keys, keep="last")
    runs.sort_values([keys[0], keys[1], keys[3], keys[2]]).to_csv(file, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
