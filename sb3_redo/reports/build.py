"""Writes the report of a sweep: tables, figures, a page."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sb3_redo.reports import page
from sb3_redo.reports.curves import ALL, is_normalised, measure_of
from sb3_redo.reports.drawn import Tables, slices, tables_of
from sb3_redo.reports.figures import AXIS_LABELS
from sb3_redo.reports.outcomes import condition_outcomes, run_outcomes
from sb3_redo.reports.paper import beside_published
from sb3_redo.reports.pictures import draw
from sb3_redo.reports.scores import reference_of
from sb3_redo.reports.sweep_folder import SweepRecord, read_sweep_folder
from sb3_redo.reports.tables import gather, write_csv

_THRESHOLDS = "dormancy_thresholds/"


@dataclass(frozen=True)
class Report:
    """Says what a report was made from; ``print`` shows it in words.

    :param folder: where the report is
    :param planned: how many runs the sweep has
    :param states: how many of them are ``finished``, ``unfinished``, ``failed``, ``not begun``
    :param missing: what is not there in full, and why
    :param broken: files that were skipped, and why
    :param notes: what else a reader of the numbers should know
    """

    folder: Path
    planned: int
    states: Mapping[str, int]
    missing: tuple[str, ...]
    broken: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.states.items() if count)
        lines = [f"{self.planned} runs planned: {counts or 'none'}", *self.notes]
        lines += _listed("missing", self.missing) + _listed("skipped, because it could not be read", self.broken)
        return "\n".join([*lines, f"report: {self.folder / 'index.html'}"])


def write_report(folder: Path, out: Path | None = None, seed: int = 0, only: Collection[str] | None = None) -> Report:
    """Report what the runs of a sweep say so far. Only files are read, and only ``out`` is written.

    :param folder: the sweep's folder
    :param out: where the report goes; without it, ``report`` in the sweep's folder. It gets ``index.html``,
        ``points.parquet`` (every point), ``points.csv`` (up to a million), ``runs.csv``, ``summary.csv``,
        ``summary.md``, ``paper.csv`` where published numbers fit, and ``figures``
    :param seed: of the bootstrap intervals
    :param only: names of the runs to report, as if the sweep had no others; all if not given
    :raises FileNotFoundError: when the folder holds neither ``sweep.json`` nor a run
    """
    sweep = read_sweep_folder(Path(folder), only)
    out = Path(folder) / "report" if out is None else Path(out)
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / f".points.parquet.{os.getpid()}"
    try:
        gathered = gather(sweep, unfinished)
        os.replace(unfinished, out / "points.parquet")
    finally:
        unfinished.unlink(missing_ok=True)
    is_whole = write_csv(gathered, out / "points.parquet", out / "points.csv")
    outcomes = run_outcomes(sweep, gathered.curves)
    conditions = condition_outcomes(outcomes, seed)
    rivals = _rivals(sweep)
    comparable = conditions[conditions["condition"].isin(rivals)] if len(conditions) else conditions
    if len(comparable):
        comparable = comparable.assign(rival=comparable["condition"].map(rivals))
    fractions = _last_fractions(gathered.curves)
    paper = beside_published(comparable, sweep.algorithm, fractions, _n_steps(sweep), _extractor(sweep))
    notes = _notes(sweep, gathered.points, is_whole, conditions)
    report = _report(sweep, out, gathered.broken, notes)
    tables = tables_of(sweep, gathered.curves, outcomes, conditions, seed)
    draw(tables, out / "figures")
    for name, frame in (("runs", outcomes), ("summary", conditions), ("paper", paper)):
        frame.to_csv(out / f"{name}.csv", index=False) if len(frame) else (out / f"{name}.csv").unlink(missing_ok=True)
    (out / "summary.md").write_text(_markdown(sweep, report, conditions, paper))
    (out / "index.html").write_text(_page(sweep, report, tables, conditions, paper))
    return report


def _report(sweep: SweepRecord, out: Path, broken: tuple[str, ...], notes: tuple[str, ...]) -> Report:
    states = {state: len(sweep.in_state(state)) for state in ("finished", "unfinished", "failed")}
    missing = [f"{run.name}: unfinished" for run in sweep.in_state("unfinished")]
    for run in sweep.in_state("failed"):
        code = (run.failure or {}).get("exit_code")
        last = str((run.failure or {}).get("log_tail", "")).strip().splitlines()[-1:]
        missing.append(": ".join([run.name, f"failed with exit code {code}", *last]))
    missing += [f"{name}: not begun" for name in sweep.missing]
    states["not begun"] = len(sweep.missing)
    return Report(out, len(sweep.planned), states, tuple(missing), (*sweep.broken, *broken), notes)


def _notes(sweep: SweepRecord, points: int, is_whole: bool, conditions: pd.DataFrame) -> tuple[str, ...]:
    environments = list(dict.fromkeys(run.environment for run in sweep.runs))
    notes = [f"{points:,} points of {len(sweep.runs)} runs; final values are of finished runs only"]
    if not is_whole:
        notes.append("points.csv is thinned evenly; points.parquet has every point")
    has_return = not len(conditions) or conditions["value"].notna().any()
    if has_return:
        notes.append(f"return: {measure_of(environments)}; IQM with 95 % stratified bootstrap intervals")
    if has_return and not is_normalised(environments):
        unknown = [name for name in environments if reference_of(name) is None]
        notes.append(f"not aggregated over environments: no reference scores are known for {', '.join(unknown)}")
    for _, row in conditions[conditions["environment"] == ALL].iterrows():
        if row["environments"] < len(environments):
            of = f"{row['environments']} of {len(environments)} environments"
            notes.append(f"{row['condition']} was finished in {of}: its aggregate does not compare with the others")
    return tuple(notes)


def _n_steps(sweep: SweepRecord) -> int:
    return next((int(run.settings.get("n_steps") or 1) for run in sweep.runs), 1)


def _rivals(sweep: SweepRecord) -> dict[str, str]:
    """Return the conditions that train as one of the paper's, with the rival of ReDo that acts on them, or ``""``."""
    plain = {"RunFolder", "DormancyCallback", "ReDoCallback"}
    rivals = {}
    for run in sweep.runs:
        acting = {name.rpartition(".")[2] for name in _callbacks(run.settings.get("callback"))} - plain
        acting |= {"weight_decay"} if "weight_decay" in str(run.settings.get("policy_kwargs")) else set()
        kind = {"": "", "ResetCallback": "reset", "weight_decay": "weight_decay"}.get(",".join(sorted(acting)))
        if kind is not None:
            rivals[run.label] = kind
    return rivals


def _callbacks(listed: object) -> list[str]:
    """Return the paths of callbacks as the zoo lists them."""
    listed = [listed] if isinstance(listed, (str, dict)) else listed
    return [name for each in listed or () for name in ([each] if isinstance(each, str) else each)]  # type: ignore[attr-defined]


def _extractor(sweep: SweepRecord) -> str:
    """Return the name of the features extractor: SB3's, unless the policy is told of another."""
    told = (run.settings.get("policy_kwargs") for run in sweep.runs)
    return next((str(kwargs.get("extractor", "nature")) for kwargs in told if isinstance(kwargs, dict)), "nature")


def _last_fractions(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the last dormant fractions at each threshold, means over seeds."""
    mine = curves[curves["key"].str.startswith(_THRESHOLDS)]
    last = mine.groupby(["environment", "condition", "run", "key"], observed=True)["value"].last()
    means = last.groupby(level=["environment", "condition", "key"], observed=True).mean().reset_index()
    return means.assign(threshold=means["key"].str.removeprefix(_THRESHOLDS).astype(float))


def _listed(title: str, items: tuple[str, ...], most: int = 20) -> list[str]:
    more = [f"  and {len(items) - most} more"] if len(items) > most else []
    return [f"{title}:", *(f"  {item}" for item in items[:most]), *more] if items else []


_PAPER = (
    "Published: Sokar et al. 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning; most numbers were "
    "digitised from its figures. The scales differ as the table says: compare directions and ratios before sizes."
)


def _markdown(sweep: SweepRecord, report: Report, conditions: pd.DataFrame, paper: pd.DataFrame) -> str:
    parts = [f"# {sweep.name}", f"```\n{report}\n```", "## Conditions", markdown_table(conditions)]
    if len(paper):
        parts += ["## Beside published numbers", _PAPER, markdown_table(paper)]
    return "\n\n".join(parts) + "\n"


def markdown_table(frame: pd.DataFrame) -> str:
    """Write a table in Markdown, numbers in four digits, missing ones empty."""
    rows = [[_markdown_cell(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(frame.columns), ["---"] * len(frame.columns), *rows])


def _markdown_cell(value: object) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value).replace("|", "\\|")


def _page(sweep: SweepRecord, report: Report, tables: Tables, conditions: pd.DataFrame, paper: pd.DataFrame) -> str:
    sections = [("What there is", page.preformatted(str(report)))]
    steps = AXIS_LABELS[tables.by]
    if len(tables.returns):
        about, measure = tables.returns["unit"].iloc[0], tables.returns["measure"].iloc[0]
        shading = page.note("Shaded: 95 % stratified bootstrap interval. Dashed: without ReDo.")
        sections.append(("Return", page.curves(tables.returns, about, f"IQM of {measure}") + shading))
    if len(tables.ratios):
        sections.append(("Final return and replay ratio", page.replay_ratios(tables.ratios)))
    for kind, table in tables.curves.items():
        parts = [
            (f"<h3>{part.title}</h3>" if part.title else "") + page.curves(part.table, steps, kind.words, kind.percent)
            for part in slices(table)
        ]
        if parts:
            shading = page.note("Mean over seeds; shaded from the lowest to the highest seed.")
            sections.append((kind.heading, "".join(parts) + shading))
    if len(tables.layers):
        sections.append(("Dormant neurons by layer", page.layers(tables.layers, steps)))
    if len(tables.outcomes):
        sections.append(("Speed", page.speeds(tables.outcomes)))
    if len(conditions):
        sections.append(("Conditions", page.table(conditions)))
    if len(paper):
        sections.append(("Beside published numbers", page.note(_PAPER) + page.table(paper)))
    return page.page(f"Sweep {sweep.name}", sections)
