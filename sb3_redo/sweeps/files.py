"""Names, writes and locks the files in the folder of a sweep and of each of its runs."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

SWEEP = "sweep.json"
"""In the sweep's folder: what was planned."""
RUN = "run.json"
"""What a run is: its settings, seed, versions and command line."""
PROGRESS = "progress.json"
"""How far a run is, while it trains."""
OUTCOME = "outcome.json"
"""What came out, written by the training."""
RESULT = "result.json"
"""The same once the training has ended well and everything else is in its place: written last."""
FAILED = "failed.json"
CHECKPOINT = "checkpoint.json"
"""Which of the folders ``checkpoint_*`` counts."""
LOG = "log.txt"
LOCK = "lock"
"""Held by the training."""
SWEEP_LOCK = "sweep.lock"
"""Held by the worker of a sweep that starts the training and completes the folder."""

_LOG = logging.getLogger(__name__)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        with open(temporary, "w") as stream:
            json.dump(content, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any] | None:
    """Return the content, or ``None`` where there is no such file.

    :raises ValueError: when it holds something else, naming the file
    """
    try:
        return dict(json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError, OSError) as error:
        # What the disk or its owner forbids to read may be sound.
        if isinstance(error, OSError) and error.errno not in (errno.EISDIR, errno.ELOOP):
            raise
        raise ValueError(f"{file} cannot be read: it holds no JSON object") from None


def is_finished(folder: Path) -> bool:
    """Say whether the folder of a run has a result. One that cannot be read is set aside, and a warning names it."""
    file = folder / RESULT
    try:
        return read_json(file) is not None
    except ValueError as error:
        _LOG.warning("%s: it was set aside, and the run is not finished", error)
        set_aside(file)
        return False


def set_aside(path: Path) -> None:
    """Rename a file or folder that cannot be read, so that nothing takes it for sound. Nothing happens without it."""
    target = path.with_name(f"damaged_{path.name}")
    if os.path.lexists(path):
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
        os.replace(path, target)


def forget_checkpoint(folder: Path) -> None:
    """Remove what was saved of a run's training."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
    for checkpoint in folder.glob("*checkpoint_*"):  # those that were set aside, too
        shutil.rmtree(checkpoint, ignore_errors=True)


class BusyError(RuntimeError):
    """Another process works in the folder."""


@contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Hold a lock of the folder meanwhile. The operating system releases it when the process dies.

    :raises BusyError: when somebody else holds it
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # The soft locks of filelock are files, which stay behind when a process is killed.
        lock = FileLock(folder / name, fallback_to_soft=False).acquire(blocking=False)
    except Timeout:
        raise BusyError(f"another process trains in {folder}") from None
    with lock:
        yield


def is_busy(folder: Path) -> bool:
    """Say whether a process works in the folder."""
    try:
        with locked(folder):
            return False
    except BusyError:
        return True
