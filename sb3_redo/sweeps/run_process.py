"""Trains one run in a process of its own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sb3_redo.reports.points import write_points
from sb3_redo.sweeps.files import (
    FAILED,
    LOG,
    OUTCOME,
    RESULT,
    SWEEP_LOCK,
    BusyError,
    forget_checkpoint,
    is_busy,
    is_finished,
    locked,
    write_json,
)
from sb3_redo.sweeps.warm_process import IN_CHILD, Starter

_TAIL = 4000
_LITTLE_SPACE = 100_000  # bytes

# These differ between runs, and no library reads them while it is loaded.
_HARMLESS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "RAY_JOB_ID", "RAY_TASK_ID")

_STARTERS: dict[frozenset[tuple[str, str]], Starter] = {}


def train_run(folder: Path, command: Sequence[str], threads: int) -> float:
    """Run a training command, and complete its folder after success.

    :param folder: the run's folder

    :param command: the zoo's train command with a :class:`~sb3_redo.sweeps.RunFolder`
    :param threads: of all parallel libraries
    :return: the seconds that the process ran; 0 if the training was already complete
    :raises BusyError: when another process trains there
    :raises RuntimeError: when the command failed, with the log's path and last line
    """
    with locked(folder, SWEEP_LOCK):
        if is_finished(folder):
            return 0.0
        if is_busy(folder):  # started by hand
            raise BusyError(f"another process trains in {folder}")
        # Run also after a complete training, because the zoo may not have saved the agent.
        for old in (FAILED, OUTCOME):
            (folder / old).unlink(missing_ok=True)
        started = time.monotonic()
        code = _run(folder, command, threads)
        seconds = time.monotonic() - started
        if code != 0 or not (folder / OUTCOME).exists():
            tail = (folder / LOG).read_text(errors="replace")[-_TAIL:]
            if shutil.disk_usage(folder).free < _LITTLE_SPACE:
                tail += f"\nno space is left on the disk of {folder}: free some and run the same command again"
            with suppress(OSError):
                write_json(folder / FAILED, {"exit_code": code, "log_tail": tail})
            last = (tail.strip().splitlines() or ["no output"])[-1]
            raise RuntimeError(f"exit code {code}: {last} ({folder / LOG})")
        write_points(folder)
        forget_checkpoint(folder)
        # Written last: it marks the folder as complete.
        os.replace(folder / OUTCOME, folder / RESULT)
        return seconds


def _run(folder: Path, command: Sequence[str], threads: int) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    # Results may depend on this, so the printed command gets it too.
    environment = {**os.environ, **thread_variables(threads)}
    _, option, *arguments = command
    if option == "-m" and Starter.AVAILABLE:
        starter = _starter(environment)
        try:
            return starter.run(arguments, folder / LOG, environment)
        except BaseException:
            starter.kill()
            while is_busy(folder):  # the training soon ends and releases its folder
                time.sleep(0.01)
            raise
    with open(folder / LOG, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=IN_CHILD,
        )
        try:
            return process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise


def _starter(environment: Mapping[str, str]) -> Starter:
    # Libraries read some variables when they are loaded, such as the number of threads.
    key = frozenset((name, value) for name, value in environment.items() if name not in _HARMLESS)
    starter = _STARTERS.get(key)
    if starter is None or not starter.alive:
        for other in _STARTERS.values():
            other.kill()
        _STARTERS.clear()
        starter = _STARTERS[key] = Starter(environment)
    return starter


def thread_variables(threads: int) -> dict[str, str]:
    """Return environment variables that limit a process to a number of threads."""
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
