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
"""The plan, in the sweep's folder."""
RUN = "run.json"
"""A run's settings, seed, versions and command line."""
PROGRESS = "progress.json"
"""A run's progress during training."""
OUTCOME = "outcome.json"
"""A run's outcome, written by the training."""
RESULT = "result.json"
"""The same outcome, written last, after the training has succeeded and all other files are complete."""
FAILED = "failed.json"
CHECKPOINT = "checkpoint.json"
"""The name of the valid folder ``checkpoint_*``."""
LOG = "log.txt"
LOCK = "lock"
"""Held by the training."""
SWEEP_LOCK = "sweep.lock"
"""Held by the worker of a sweep that starts the training and completes the folder."""

_LOG = logging.getLogger(__name__)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically: it is complete or absent."""
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
    """Return the content, or ``None`` if there is no such file.

    :raises ValueError: with the file's name, when it is not a JSON object
    """
    try:
        return dict(json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError, OSError) as error:
        # After a permission or disk error the file may still be intact.
        if isinstance(error, OSError) and error.errno not in (errno.EISDIR, errno.ELOOP):
            raise
        raise ValueError(f"{file} cannot be read: it holds no JSON object") from None


def is_finished(folder: Path) -> bool:
    """Return whether a run's folder has a result. Rename an unreadable one, with a warning."""
    file = folder / RESULT
    try:
        return read_json(file) is not None
    except ValueError as error:
        _LOG.warning("%s: it was renamed, and the run is not finished", error)
        set_aside(file)
        return False


def set_aside(path: Path) -> None:
    """Rename an unreadable file or folder, if it exists, so that nothing uses it."""
    target = path.with_name(f"damaged_{path.name}")
    if os.path.lexists(path):
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
        os.replace(path, target)


def forget_checkpoint(folder: Path) -> None:
    """Remove all checkpoints of a run's training."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
    for checkpoint in folder.glob("*checkpoint_*"):  # renamed ones, too
        shutil.rmtree(checkpoint, ignore_errors=True)


class BusyError(RuntimeError):
    """Says that another process works in the folder."""


@contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Lock the folder in this context. The operating system releases the lock when the process dies.

    :raises BusyError: when another process holds it
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Filelock's soft locks are files, which remain when a process is killed.
        lock = FileLock(folder / name, fallback_to_soft=False).acquire(blocking=False)
    except Timeout:
        raise BusyError(f"another process trains in {folder}") from None
    with lock:
        yield


def is_busy(folder: Path) -> bool:
    """Return whether a process works in the folder."""
    try:
        with locked(folder):
            return False
    except BusyError:
        return True
