"""Reads the sweeps of an experiment, and writes the page with figures and numbers."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sb3_redo.experiments.catalogue import Experiment, Preset
from sb3_redo.experiments.numbers import (
    beside_paper,
    beside_table,
    conditions_of,
    paper_numbers,
    quantities,
    sources_table,
)
from sb3_redo.experiments.readers import READERS
from sb3_redo.reports.build import Report, write_report
from sb3_redo.reports.curves import over_seeds, side_by_side
from sb3_redo.reports.figures import panels, plot_curves
from sb3_redo.reports.heat_maps import heat_maps
from sb3_redo.reports.pictures import save
from sb3_redo.reports.spreadsheet import neutralised
from sb3_redo.reports.sweep_folder import read_sweep_folder
from sb3_redo.reports.tables import read_curves
from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.sweep_file import Sweep, read_sweep_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "experiment.md"
_ABOUT_OURS = (
    "Means over seeds with 95 % t intervals in brackets; from ten seeds on interquartile means with 95 % bootstrap "
    "intervals."
)
_ABOUT_NUMBERS = (
    f"{_ABOUT_OURS} The paper's numbers are of its own tasks and scales; what is in brackets there is its own interval "
    "where digitised, its standard deviation where printed, and otherwise the range within which it could be read."
)
NUMBERS = "numbers.csv"


def sweeps_of(preset: Preset, seeds: int | None = None) -> list[Sweep]:
    """Read the sweeps of a preset, without runs that do not belong to the experiment.

    :param seeds: number of seeds instead of the preset's
    :raises UsageError: when a file is missing or invalid
    """
    whole = [read_sweep_file(file, seeds or preset.seeds, READERS) for file in preset.files]
    return [replace(sweep, runs=[run for run in sweep.runs if _belongs(run, preset)]) for sweep in whole]


def _belongs(run: Run, preset: Preset) -> bool:
    about = {"environment": run.environment, **run.condition}
    return all(preset.has(axis, label) for axis, label in about.items())


@dataclass(frozen=True)
class SweepPart:
    """Holds the results of one sweep: its report, the names of figures, and its numbers."""

    report: Report
    figures: tuple[str, ...]
    numbers: pd.DataFrame


def write_page(
    experiment: Experiment, preset: str, sweeps: list[Sweep], folders: list[Path], out: Path, seed: int = 0
) -> Path:
    """Write the page of the runs so far. Reads only files, and writes only into ``out``.

    :param preset: name of the preset
    :param sweeps: the preset's sweeps
    :param folders: of the sweeps, in the same order
    :param out: gets ``experiment.md``, ``numbers.csv``, and for each sweep a folder with its whole report
    :param seed: of the bootstrap intervals
    :return: the page
    """
    parts = [
        _part(experiment, sweep, folder, out / sweep.name, seed) for sweep, folder in zip(sweeps, folders, strict=True)
    ]
    numbers = pd.concat([part.numbers for part in parts], ignore_index=True)
    neutralised(numbers).to_csv(out / NUMBERS, index=False)
    (out / PAGE).write_text(_page(experiment, preset, sweeps, parts))
    return out / PAGE


def _part(experiment: Experiment, sweep: Sweep, folder: Path, out: Path, seed: int) -> SweepPart:
    only = [run.name for run in sweep.runs]
    report = write_report(folder, out, seed, only)
    runs = read_sweep_folder(folder, only)
    curves = read_curves(runs)
    conditions = conditions_of(runs, curves, experiment.quantities, seed)
    figures: list[str] = []
    for figure in experiment.figures:
        if isinstance(figure, str):
            figures += [path.stem for path in sorted((out / "figures").glob(f"{figure}*.png"))]
        else:
            drawn = _drawn(figure, curves, conditions)
            figures += [] if drawn is None else [save(drawn, out / "figures", _name(figure))]
    numbers = beside_paper(conditions, paper_numbers(experiment), sweep.algorithm)
    return SweepPart(report, tuple(dict.fromkeys(figures)), numbers.assign(sweep=sweep.name))


def _name(figure: Mapping[str, str]) -> str:
    kind = next(iter(figure))
    return f"{kind}_{figure[kind]}"


def _drawn(figure: Mapping[str, Any], curves: pd.DataFrame, conditions: pd.DataFrame) -> "Figure | None":
    """Draw a figure that the report does not have. Returns ``None`` without data."""
    if "curve" in figure:
        return _drawn_curves(figure["curve"], figure.get("beside"), curves)
    name, x, y = (figure[key] for key in ("heat_map", "x", "y"))
    mine = conditions[conditions["quantity"] == name] if len(conditions) else conditions
    if not len(mine):
        return None
    return heat_maps(mine, x, y, mine["measure"].iloc[0].split(" (")[0], quantities()[name].percent)


def _drawn_curves(name: str, beside: Mapping[str, str] | None, curves: pd.DataFrame) -> "Figure | None":
    known = quantities()
    quantity = known[name]
    if beside is None:
        table = over_seeds(curves, str(quantity.key))
    else:
        table = side_by_side(curves, {word: str(known[each].key) for each, word in beside.items()})
    words = textwrap.fill(quantity.words.removesuffix(" at the end"), 30)
    label = quantity.label or ("dormant neurons [%]" if quantity.percent else words)
    scale = "log" if quantity.log else "share" if quantity.percent else "linear"
    return panels(table, partial(plot_curves, label=label, scale=scale)) if len(table) else None


def _has_papers(numbers: pd.DataFrame) -> bool:
    return "paper" in numbers and bool(numbers["paper"].notna().any())


def _page(experiment: Experiment, preset: str, sweeps: list[Sweep], parts: list[SweepPart]) -> str:
    seeds = max(len(sweep.seeds) for sweep in sweeps)
    settings = experiment.presets[preset].settings
    sections = [
        f"# {experiment.title}",
        _filled(f"`sb3-redo experiment {experiment.name} --preset {preset} --seeds {seeds}` shows {experiment.shows}."),
        _filled(f"Settings: {settings.strip().rstrip('.')}."),
        _filled(experiment.compares),
    ]
    for sweep, part in zip(sweeps, parts, strict=True):
        sections.append(f"## {sweep.name}")
        sections += [f"![{name}]({sweep.name}/figures/{name}.png)" for name in part.figures]
        if len(part.numbers):
            sections.append(_filled(_ABOUT_NUMBERS if _has_papers(part.numbers) else _ABOUT_OURS))
            sections += [text for text in (beside_table(part.numbers), sources_table(part.numbers)) if text]
        else:
            sections.append("No run has finished.")
        sections.append(f"```\n{part.report}\n```")
    differs = "What differs from the paper" if "paper" in experiment.presets else "What the runs cannot show"
    sections += [f"## {differs}", _filled(experiment.differs)]
    return "\n\n".join(sections) + "\n"


def _filled(paragraph: str) -> str:
    """Break a paragraph into lines of the docs' length."""
    return textwrap.fill(paragraph.strip(), 120, break_long_words=False, break_on_hyphens=False)
