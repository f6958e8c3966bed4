"""Writes the report of a sweep: tables, figures, a page."""

import os
import shutil
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from sb3_redo.reports import page
from sb3_redo.reports.curves import ALL, is_normalised
from sb3_redo.reports.drawn import Drawing, drawings_of
from sb3_redo.reports.outcomes import condition_outcomes, run_outcomes
from sb3_redo.reports.paper import papers_beside
from sb3_redo.reports.pictures import inline_svg, marks_of, save
from sb3_redo.reports.provenance import provenance_of, sources_of
from sb3_redo.reports.scores import reference_of
from sb3_redo.reports.spreadsheet import neutralised
from sb3_redo.reports.styles import Style, styles_of
from sb3_redo.reports.summary import caveats, findings, shown_first, summary_table, text_table
from sb3_redo.reports.sweep_folder import SweepRecord, read_sweep_folder
from sb3_redo.reports.tables import Gathered, gather, write_csv

_MOST_ROWS = 40


@dataclass(frozen=True)
class Report:
    """Summarises a report and its sources; ``print`` shows it in words.

    :param folder: the report's folder
    :param planned: number of runs in the sweep
    :param states: numbers of runs that are ``finished``, ``unfinished``, ``failed``, ``not begun``
    :param missing: missing and incomplete runs, with reasons
    :param broken: skipped files, with reasons
    :param notes: other remarks on the numbers
    :param table: the first rows of :func:`~sb3_redo.reports.summary.summary_table`
    :param said: conclusions from the table, one sentence each
    """

    folder: Path
    planned: int
    states: Mapping[str, int]
    missing: tuple[str, ...]
    broken: tuple[str, ...]
    notes: tuple[str, ...]
    table: pd.DataFrame = field(repr=False)
    said: tuple[str, ...] = ()

    @property
    def counts(self) -> str:
        """Return the number of runs in each state."""
        counts = ", ".join(f"{count} {state}" for state, count in self.states.items() if count)
        return f"{self.planned} runs planned: {counts or 'none'}"

    @property
    def of_runs(self) -> str:
        """Return the report's sources, one fact per line."""
        lines = [self.counts, *self.notes]
        lines += _listed("missing", self.missing) + _listed("skipped, because it could not be read", self.broken)
        return "\n".join(lines)

    def __str__(self) -> str:
        shown = self.table.head(_MOST_ROWS)
        more = [f"and {len(self.table) - _MOST_ROWS} more rows in summary.md"] if len(self.table) > _MOST_ROWS else []
        width = shutil.get_terminal_size().columns
        said = "\n".join(textwrap.fill(sentence, width) for sentence in self.said)
        table = "\n".join([text_table(shown, width), *more])
        parts = [self.of_runs, table, said, f"report: {self.folder / 'index.html'}"]
        return "\n\n".join(part for part in parts if part)


def write_report(
    folder: Path, out: Path | None = None, seed: int = 0, only: Collection[str] | None = None, with_holm: bool = False
) -> Report:
    """Write the report of a sweep's runs so far. Reads only files, and writes only into ``out``.

    :param folder: the sweep's folder
    :param out: folder for the report; by default ``report`` in the sweep's folder. It gets ``index.html``,
        ``points.parquet`` (every point), ``points.csv`` (up to a million), ``runs.csv``, ``summary.csv``,
        ``summary.md``, ``paper.csv`` if there are matching published numbers, and ``figures``
    :param seed: of the bootstrap intervals
    :param only: names of the runs to report, as if the sweep had no others; by default all
    :param with_holm: whether to adjust p-values for the number of comparisons
    :raises FileNotFoundError: when the folder holds neither ``sweep.json`` nor a run
    """
    sweep = read_sweep_folder(Path(folder), only)
    out = Path(folder) / "report" if out is None else Path(out)
    gathered, is_whole = _points(sweep, out)
    outcomes = run_outcomes(sweep, gathered.curves)
    conditions = condition_outcomes(outcomes, seed, with_holm)
    paper = papers_beside(sweep, gathered.curves, conditions)
    first = shown_first(conditions)
    report = Report(
        out,
        len(sweep.planned),
        _states(sweep),
        _missing(sweep),
        (*sweep.broken, *gathered.broken),
        _notes(sweep, gathered.points, is_whole, conditions),
        summary_table(first, sweep.axes),
        (*findings(first, outcomes), *caveats(first)),
    )
    drawings = drawings_of(gathered.curves, outcomes, conditions, seed)
    pictures = [_picture(drawing, out / "figures", styles_of(outcomes)) for drawing in drawings]
    for name, frame in (("runs", outcomes), ("summary", conditions), ("paper", paper)):
        neutralised(frame).to_csv(out / f"{name}.csv", index=False)
    if paper.empty:
        (out / "paper.csv").unlink()
    (out / "summary.md").write_text(_markdown(sweep, report, conditions, paper), encoding="utf-8")
    (out / "index.html").write_text(_page(sweep, report, pictures, outcomes, conditions, paper), encoding="utf-8")
    return report


def _points(sweep: SweepRecord, out: Path) -> tuple[Gathered, bool]:
    """Write all points. Returns the points read, and whether the CSV file has all of them."""
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / f".points.parquet.{os.getpid()}"
    try:
        gathered = gather(sweep, unfinished)
        os.replace(unfinished, out / "points.parquet")
    finally:
        unfinished.unlink(missing_ok=True)
    return gathered, write_csv(gathered, out / "points.parquet", out / "points.csv")


def _picture(drawing: Drawing, folder: Path, styles: Mapping[str, Style]) -> tuple[str, str]:
    """Save a figure. Returns the heading and content (HTML) of its section of the page."""
    name = save(drawing.figure, folder, drawing.name)
    svg = inline_svg((folder / f"{name}.svg").read_text(encoding="utf-8"))
    return drawing.heading, page.picture(svg, marks_of(drawing, styles)) + page.note(drawing.note)


def _states(sweep: SweepRecord) -> dict[str, int]:
    states = {state: len(sweep.in_state(state)) for state in ("finished", "unfinished", "failed")}
    return states | {"not begun": len(sweep.missing)}


def _missing(sweep: SweepRecord) -> tuple[str, ...]:
    missing = [f"{run.name}: unfinished" for run in sweep.in_state("unfinished")]
    for run in sweep.in_state("failed"):
        code = (run.failure or {}).get("exit_code")
        last = str((run.failure or {}).get("log_tail", "")).strip().splitlines()[-1:]
        missing.append(": ".join([run.name, f"failed with exit code {code}", *last]))
    return (*missing, *(f"{name}: not begun" for name in sweep.missing))


def _notes(sweep: SweepRecord, points: int, is_whole: bool, conditions: pd.DataFrame) -> tuple[str, ...]:
    environments = list(dict.fromkeys(run.environment for run in sweep.runs))
    notes = [f"{points:,} points of {len(sweep.runs)} runs; final values are of finished runs only"]
    if not is_whole:
        notes.append("points.csv is thinned evenly; points.parquet has every point")
    has_return = "return" in conditions and conditions["return"].notna().any()
    if has_return and len(environments) > 1 and not is_normalised(environments):
        unknown = [name for name in environments if reference_of(name) is None]
        notes.append(f"not aggregated over environments: no reference scores are known for {', '.join(unknown)}")
    for _, row in conditions[conditions["environment"] == ALL].iterrows():
        if row["environments"] < len(environments):
            of = f"{row['environments']} of {len(environments)} environments"
            notes.append(f"{row['condition']} was finished in {of}: its aggregate does not compare with the others")
    return tuple(notes)


def _listed(title: str, items: tuple[str, ...], most: int = 20) -> list[str]:
    more = [f"  and {len(items) - most} more"] if len(items) > most else []
    return [f"{title}:", *(f"  {item}" for item in items[:most]), *more] if items else []


_PAPER = (
    "Published: Sokar et al. 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning; most numbers were "
    "digitised from its figures. The scales differ as the table says: compare directions and ratios before sizes."
)


def _markdown(sweep: SweepRecord, report: Report, conditions: pd.DataFrame, paper: pd.DataFrame) -> str:
    first = shown_first(conditions)
    about = "\n".join(f"- {heading}: {words}" for heading, words in provenance_of(sweep).items())
    parts = [f"# {sweep.name}", about, markdown_table(report.table), "\n".join(report.said)]
    others = conditions.drop(index=first.index)
    if len(others):
        parts += ["## By environment", markdown_table(summary_table(others, sweep.axes)), *caveats(others)]
    if len(paper):
        parts += ["## Beside published numbers", _PAPER, markdown_table(paper)]
    return "\n\n".join([*parts, "## Runs", f"```\n{report.of_runs}\n```"]) + "\n"


def markdown_table(frame: pd.DataFrame) -> str:
    """Write a table in Markdown, numbers in four digits, missing ones empty."""
    rows = [[_markdown_cell(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(frame.columns), ["---"] * len(frame.columns), *rows])


def _markdown_cell(value: object) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value).replace("|", "\\|")


def _page(
    sweep: SweepRecord,
    report: Report,
    pictures: list[tuple[str, str]],
    outcomes: pd.DataFrame,
    conditions: pd.DataFrame,
    paper: pd.DataFrame,
) -> str:
    styles = styles_of(outcomes) if len(outcomes) else {}
    sections = [("", page.facts({**provenance_of(sweep), "runs": report.counts}))]
    sources = sources_of(sweep)
    sections += [("", "".join(page.folded(name, page.preformatted(words)) for name, words in sources.items()))]
    sections += [("Result", _result(sweep, shown_first(conditions), outcomes, styles))]
    others = conditions.drop(index=shown_first(conditions).index)
    if len(others):
        sections.append(("", page.folded("Each environment", _result(sweep, others, outcomes, styles))))
    sections.append(("", page.switches(styles.values())))
    heading = ""
    for title, picture in pictures:
        sections.append((title if title != heading else "", picture))
        heading = title
    if len(paper):
        sections.append(("Beside published numbers", page.note(_PAPER) + page.table(paper)))
    if len(outcomes):
        sections.append(
            ("Single runs", page.folded(f"{len(outcomes)} runs", page.table(_single_runs(sweep, outcomes))))
        )
    sections.append(("Files", page.preformatted(report.of_runs)))
    return page.page(f"Sweep {sweep.name}", sections)


def _result(sweep: SweepRecord, conditions: pd.DataFrame, outcomes: pd.DataFrame, styles: Mapping[str, Style]) -> str:
    """Return the table of conditions, with conclusions before it and the method after it."""
    said = page.paragraph(" ".join(findings(conditions, outcomes)))
    if conditions.empty:
        return said
    table = page.table(summary_table(conditions, sweep.axes), [styles[name] for name in conditions["condition"]])
    return said + table + page.note(" ".join(caveats(conditions)))


def _single_runs(sweep: SweepRecord, outcomes: pd.DataFrame) -> pd.DataFrame:
    names = ("environment", *sweep.axes, "seed", "state", "final_return", "final_accuracy", "final_loss")
    names += ("dormant_fraction", "recycled_total", "num_timesteps", "gradient_steps")
    told = [name for name in names if name in outcomes and outcomes[name].notna().any()]
    varying = [name for name in told if name == "seed" or len(outcomes) < 2 or outcomes[name].nunique(dropna=False) > 1]
    return outcomes[varying]
