"""Reads all points of a sweep: all into a Parquet file, thinned ones into memory for curves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from sb3_redo.reports.points import NAME, SCHEMA, read_run
from sb3_redo.reports.spreadsheet import neutral
from sb3_redo.reports.sweep_folder import RETURN, RunRecord, SweepRecord

POINTS_PER_CURVE = 300
CSV_ROWS = 1_000_000
_REPEATED = ["run", "condition", "key"]
WHOLE_SCHEMA = pa.schema([("run", NAME), ("condition", NAME), *SCHEMA])


@dataclass(frozen=True)
class Gathered:
    """Holds ``curves`` (see :func:`read_curves`), the number of all points, and unreadable files."""

    curves: pd.DataFrame
    points: int
    broken: tuple[str, ...]


def read_curves(sweep: SweepRecord, max_points: int = POINTS_PER_CURVE) -> pd.DataFrame:
    """Read the curves of all runs as one tidy table. Curves are thinned evenly, with first and last point.

    A finished run's return ends at the value in ``result.json``, because SB3 logs only every four episodes.

    :param sweep: from :func:`~sb3_redo.reports.sweep_folder.read_sweep_folder`
    :param max_points: per run and key
    :return: columns ``run``, ``environment``, ``condition``, ``seed``, the sweep's axes, ``setting`` (the condition
        without its callback), ``redo`` (whether any run of the condition logs recycled neurons), ``finished``,
        ``key``, ``step`` (environment steps), ``gradient_step`` (NaN where unknown), ``value``
    """
    return gather(sweep, None, max_points).curves


def gather(sweep: SweepRecord, whole: Path | None, max_points: int = POINTS_PER_CURVE) -> Gathered:
    """Read the runs one by one: thin their curves, and append all points to a Parquet file.

    :param whole: the Parquet file; its columns are ``run``, ``condition``, ``step``, ``gradient_step``, ``key``,
        ``value``
    """
    keys: dict[str, int] = {}
    parts, broken, points = [], [], 0
    writer = pq.ParquetWriter(whole, WHOLE_SCHEMA, use_dictionary=_REPEATED, compression="zstd") if whole else None
    try:
        for number, run in enumerate(sweep.runs):
            mine = read_run(run.folder)
            broken += [f"{run.name}/{message}" for message in mine.broken]
            points += mine.table.num_rows
            if writer is not None:
                writer.write_table(_named(mine.table, run))
            parts.append(_ended(_thinned(mine.table, number, keys, max_points), run, number, keys))
    finally:
        if writer is not None:
            writer.close()
    return Gathered(_curves(sweep, parts, list(keys)), points, tuple(broken))


def write_csv(gathered: Gathered, whole: Path, out: Path) -> bool:
    """Write the points as CSV: up to a million all of them, else evenly thinned.

    As text, all points of a paper's runs would take gigabytes.

    :param whole: the Parquet file with all of them
    :param out: the file to write
    :return: whether it holds all of them
    """
    names = WHOLE_SCHEMA.names
    if gathered.points <= CSV_ROWS:
        table = pq.read_table(whole)
    else:
        every = -(-len(gathered.curves) // CSV_ROWS)
        rows = gathered.curves.iloc[::every][names]
        table = pa.Table.from_pandas(rows.astype({"gradient_step": "Int64"}), preserve_index=False)
    table = _neutralised(table)
    types = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in WHOLE_SCHEMA.types]
    table = table.select(names).cast(pa.schema(list(zip(names, types, strict=True))))
    pyarrow.csv.write_csv(table, out, pyarrow.csv.WriteOptions(quoting_style="needed"))
    return gathered.points <= CSV_ROWS


def _neutralised(table: pa.Table) -> pa.Table:
    """Return points without formulas for spreadsheets. Each distinct text is checked once."""
    for number, name in enumerate(table.column_names):
        if name in _REPEATED:
            column = table[name].combine_chunks().dictionary_encode()
            column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            texts = pa.array([neutral(text) for text in column.dictionary.to_pylist()], pa.string())
            table = table.set_column(number, name, pa.DictionaryArray.from_arrays(column.indices, texts))
    return table


def _named(table: pa.Table, run: RunRecord) -> pa.Table:
    """Return the points of a run with its name and condition in front."""
    codes = pa.array(np.zeros(table.num_rows, dtype=np.int32))
    name, label = (pa.DictionaryArray.from_arrays(codes, pa.array([value])) for value in (run.name, run.label))
    return pa.table([name, label, *table.columns], schema=WHOLE_SCHEMA)


def _thinned(table: pa.Table, run: int, keys: dict[str, int], max_points: int) -> dict[str, np.ndarray]:
    """Return columns of one run's thinned points. Adds new keys to ``keys``, which numbers them."""
    column = table["key"].combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    known = [keys.setdefault(key, len(keys)) for key in column.dictionary.to_pylist()]
    codes = np.asarray(known, dtype=np.int32)[column.indices.to_numpy()] if len(column) else np.zeros(0, np.int32)
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    kept = [_evenly(each, max_points) for each in np.split(order, starts[1:])] if len(order) else [order]
    rows = np.concatenate(kept)
    return {
        "run": np.full(len(rows), run, dtype=np.int32),
        "key": codes[rows],
        "step": table["step"].to_numpy()[rows],
        "gradient_step": table["gradient_step"].cast(pa.float64()).to_numpy()[rows],
        "value": table["value"].to_numpy()[rows],
    }


def _ended(part: dict[str, np.ndarray], run: RunRecord, number: int, keys: dict[str, int]) -> dict[str, np.ndarray]:
    """Append a run's final return to its logged returns."""
    result = run.result or {}
    step, value = result.get("num_timesteps"), result.get("final_return")
    key = keys.get(RETURN)
    if step is None or value is None or key is None:
        return part
    kept = (part["key"] != key) | (part["step"] < step)
    steps = part["gradient_step"][np.isfinite(part["gradient_step"])]
    gradient_step = steps.max() if len(steps) else np.nan
    last = {"run": number, "key": key, "step": step, "gradient_step": gradient_step, "value": value}
    return {name: np.append(column[kept], np.asarray(last[name], column.dtype)) for name, column in part.items()}


def _evenly(rows: np.ndarray, most: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _curves(sweep: SweepRecord, parts: Sequence[dict[str, np.ndarray]], keys: list[str]) -> pd.DataFrame:
    names = ("run", "key", "step", "gradient_step", "value")
    columns = {name: np.concatenate([part[name] for part in parts]) if parts else np.zeros(0) for name in names}
    of, runs = columns["run"].astype(np.int64), sweep.runs
    recycle = {number for number, key in enumerate(keys) if key.startswith("redo/")}
    recyclers = {runs[number].label for number in np.unique(of[np.isin(columns["key"], list(recycle))])}

    def described(value: Callable[[RunRecord], Any]) -> pd.Categorical:
        codes, values = pd.factorize(np.array([*map(value, runs), None], dtype=object)[:-1])
        return pd.Categorical.from_codes(codes[of], categories=list(values))

    frame = {
        "run": described(lambda run: run.name),
        "environment": described(lambda run: run.environment),
        "condition": described(lambda run: run.label),
        "seed": np.array([run.seed for run in runs], dtype=np.int64)[of],
        **{axis: described(partial(_value_of, axis)) for axis in sweep.axes},
        "setting": described(lambda run: run.setting),
        "redo": np.array([run.label in recyclers for run in runs], dtype=bool)[of],
        "finished": np.array([run.state == "finished" for run in runs], dtype=bool)[of],
        "key": pd.Categorical.from_codes(columns["key"].astype(np.int32), categories=keys),
    }
    return pd.DataFrame(frame | {name: columns[name] for name in names[2:]})


def _value_of(axis: str, run: RunRecord) -> Any:
    return run.condition.get(axis)
