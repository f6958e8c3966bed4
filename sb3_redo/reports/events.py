"""Reads the scalars of TensorBoard files, in the order of logging."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.util import tensor_util

EVENT_FILES = "events.out.tfevents.*"

# A record is its length (8 bytes), the length's checksum (4), its contents and their checksum (4).
_HEADER, _FRAME = 12, 16


@dataclass(frozen=True)
class Scalars:
    """Holds scalars in the order of writing, each with its environment step, key and value."""

    steps: Sequence[int]
    keys: Sequence[str]
    values: Sequence[float]
    began: float = 0.0
    purge_step: int | None = None


@dataclass(frozen=True)
class EventFolder:
    """Holds the scalars of a run folder's event files, and ``broken``: unreadable files with reasons."""

    scalars: Scalars
    broken: tuple[str, ...]


def read_event_folder(folder: Path) -> EventFolder:
    """Read every event file directly in a run folder. Files of a resumed run are joined.

    If a later file begins with TensorBoard's own start mark, it replaces earlier points from the mark's step on, and
    points of the same key and step. Without a mark, it replaces all earlier points from its first step on. If a killed
    run left a file that ends within a record, the file is read up to this record. A file with other damage is left out.

    :param folder: the run's folder
    """
    files, broken = [], []
    for path in sorted(folder.glob(EVENT_FILES)):
        try:
            files.append(read_event_file(path))
        except (ValueError, TypeError, OSError) as error:
            broken.append(f"{path.name}: {error}")
    return EventFolder(_joined(sorted(files, key=lambda file: file.began)), tuple(broken))


def read_event_file(path: Path) -> Scalars:
    """Read the scalars of one event file.

    :param path: the file
    :raises ValueError: on anything but complete records, with at most one incomplete record at the end
    """
    steps: list[int] = []
    keys: list[str] = []
    values: list[float] = []
    began, purge_step = None, None
    for event in _events(path):
        began = event.wall_time if began is None else began
        if event.session_log.status == SessionLog.START:
            purge_step = event.step
        for value in event.summary.value:
            number = _number(value)
            if number is not None:
                steps.append(event.step)
                keys.append(value.tag)
                values.append(number)
    return Scalars(steps, keys, values, began or 0.0, purge_step)


def _events(path: Path) -> Iterator[Event]:
    position = 0
    with path.open("rb"):  # otherwise TensorBoard raises its own error for an unreadable file
        pass
    for record in RawEventFileLoader(str(path)).Load():
        position += _FRAME + len(record)
        try:
            yield Event.FromString(record)
        except DecodeError as error:
            raise ValueError(f"the record before byte {position:,} is no TensorBoard event") from error
    # TensorBoard's reader stops silently at an incomplete record and at a damaged one.
    with path.open("rb") as file:
        file.seek(position)
        rest = file.read()
    if rest and not _is_cut_off(rest, is_first=position == 0):
        raise ValueError(f"not a TensorBoard record at byte {position:,}")


def _is_cut_off(rest: bytes, is_first: bool) -> bool:
    """Return whether the bytes are the beginning of an incomplete record."""
    if len(rest) < _HEADER:
        return not is_first
    length, checksum = struct.unpack("<QI", rest[:_HEADER])
    return bool(masked_crc32c(rest[:8]) == checksum and len(rest) < length + _FRAME)


def _number(value: Summary.Value) -> float | None:
    """Return the number in a summary, or ``None`` for a histogram, a text or a layout."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if value.HasField("tensor") and value.metadata.plugin_data.plugin_name in ("", "scalars"):
        array = tensor_util.make_ndarray(value.tensor)
        if array.size == 1 and np.issubdtype(array.dtype, np.number):
            return float(array.item())
    return None


def _joined(files: Sequence[Scalars]) -> Scalars:
    steps = np.zeros(0, dtype=np.int64)
    keys = np.zeros(0, dtype=object)
    values = np.zeros(0)
    for file in files:
        if file.purge_step is None:
            kept = steps < min(file.steps, default=np.inf)
        else:
            # A run that was killed while it ended logs its outcome again, at the same step. Its measurements there
            # stay.
            again = set(zip(file.steps, file.keys, strict=True))
            is_new = [point not in again for point in zip(steps.tolist(), keys.tolist(), strict=True)]
            kept = (steps < file.purge_step) & np.array(is_new, dtype=bool)
        steps = np.concatenate([steps[kept], np.asarray(file.steps, dtype=np.int64)])
        keys = np.concatenate([keys[kept], np.asarray(file.keys, dtype=object)])
        values = np.concatenate([values[kept], np.asarray(file.values, dtype=np.float64)])
    return Scalars(steps.tolist(), keys.tolist(), values.tolist())
