"""Reads and writes the logged points of one run, with environment step and gradient step."""

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sb3_redo.reports.events import Scalars, read_event_folder

POINTS_FILE = "points.parquet"
GRADIENT_STEP = "dormancy/gradient_step"
NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema([("step", pa.int64()), ("gradient_step", pa.int64()), ("key", NAME), ("value", pa.float64())])


@dataclass(frozen=True)
class RunPoints:
    """Holds the points of a run as an Arrow table, and ``broken``: unreadable files with reasons."""

    table: pa.Table
    broken: tuple[str, ...]


def write_points(folder: Path) -> None:
    """Write the points of a run's event files into ``points.parquet``, which reads a hundred times faster.

    The file is written atomically. It also lists unreadable event files.

    :param folder: the run's folder
    """
    points = _from_events(Path(folder))
    table = points.table.replace_schema_metadata({"broken": json.dumps(points.broken)})
    unfinished = Path(folder) / f".{POINTS_FILE}.{os.getpid()}"
    try:
        pq.write_table(table, unfinished, compression="zstd", write_page_checksum=True)
        os.replace(unfinished, Path(folder) / POINTS_FILE)
    finally:
        unfinished.unlink(missing_ok=True)


def read_points(folder: Path) -> pd.DataFrame:
    """Read the points of a run from ``points.parquet``, or else its event files. Warns of unreadable files.

    :param folder: the run's folder
    :return: columns ``step`` (environment steps), ``gradient_step`` (missing where unknown), ``key``, ``value``, in the
        order of logging. The gradient step of a measurement was logged as ``dormancy/gradient_step``. For other points
        it is interpolated between measurements; after the last measurement its value is used. Before the first
        measurement, and in a run without any, it is missing.
    """
    points = read_run(Path(folder))
    for message in points.broken:
        warnings.warn(f"{folder}: skipped {message}", stacklevel=2)
    frame: pd.DataFrame = points.table.to_pandas()
    return frame.astype({"gradient_step": "Int64"})


def read_run(folder: Path) -> RunPoints:
    """Read the points as :func:`read_points` does, as an Arrow table. Returns unreadable files without a warning."""
    file = folder / POINTS_FILE
    if not file.exists():
        return _from_events(folder)
    try:
        table = pq.read_table(file, partitioning=None, read_dictionary=["key"], page_checksum_verification=True)
        table.validate(full=True)  # a damaged file may have keys that do not exist, and using them ends the process
        metadata = table.schema.metadata or {}
        broken = tuple(json.loads(metadata.get(b"broken", b"[]")))
        return RunPoints(table.select(SCHEMA.names).cast(SCHEMA), broken)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        points = _from_events(folder)
        return RunPoints(points.table, (f"{POINTS_FILE}: {error}", *points.broken))


def _from_events(folder: Path) -> RunPoints:
    found = read_event_folder(folder)
    scalars = found.scalars
    gradient_step = gradient_step_of_each(scalars)
    columns = [
        pa.array(scalars.steps, pa.int64()),
        pa.array(np.nan_to_num(gradient_step).round().astype(np.int64), pa.int64(), mask=np.isnan(gradient_step)),
        pa.array(scalars.keys, pa.string()).dictionary_encode(),
        pa.array(scalars.values, pa.float64()),
    ]
    return RunPoints(pa.Table.from_arrays(columns, schema=SCHEMA), found.broken)


def gradient_step_of_each(scalars: Scalars) -> np.ndarray:
    """Return the gradient step of each scalar, NaN where unknown; see :func:`read_points`.

    One ``train()`` call may measure several times at the same environment step: the n-th value of a key there
    belongs to the n-th gradient step logged there.
    """
    frame = pd.DataFrame({"step": scalars.steps, "key": scalars.keys, "value": scalars.values})
    together = frame.groupby(["step", "key"])
    frame["turn"], frame["turns"] = together.cumcount(), together["value"].transform("size")
    clock = frame[frame["key"] == GRADIENT_STEP]
    if clock.empty:
        return np.full(len(frame), np.nan)
    last = clock.groupby("step")["value"].last()
    between = np.interp(frame["step"], last.index, last, left=np.nan)
    paired = frame.merge(clock.drop(columns="key"), how="left", on=["step", "turn", "turns"])["value_y"].to_numpy()
    beside = frame["key"].str.match(r"(dormancy|redo)\w*/").to_numpy(dtype=bool)
    return np.asarray(np.where(beside & ~np.isnan(paired), paired, between))
