"""Forks trainings from a process that has loaded all libraries, so that they start fast.

Importing PyTorch and the zoo takes seconds. A sweep of short runs would spend them on every run.
"""

import ctypes
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

# None of these computes or draws a random number when imported.
_PRELOADED = (
    "torch._dynamo",  # the first optimizer imports it
    "rl_zoo3.import_envs",
    "rl_zoo3.exp_manager",
    "torch.utils.tensorboard",
    "sb3_redo.networks",
    "sb3_redo.sweeps.run_folder",
)

# Loaded here, because little is safe between a fork and the started program.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Starter:
    """Runs ``python -m`` commands, each in a process forked from one with loaded libraries.

    The processes die with the thread that created this object.

    :param environment: variables of the loading process; libraries read some of them while they load
    """

    # On other systems a forked process cannot safely continue.
    AVAILABLE = sys.platform == "linux"

    def __init__(self, environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            preexec_fn=IN_CHILD,
        )

    @property
    def alive(self) -> bool:
        """Return whether it can run more commands."""
        return self._process.poll() is None

    def run(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """Run a module as ``python -m`` does.

        :param arguments: the module's name and its arguments
        :param log: file to append all output to
        :param environment: all its variables
        :return: its exit code; the negative signal number if a signal killed it
        """
        order = {"arguments": [*arguments], "log": str(log), "environment": {**environment}, "directory": os.getcwd()}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        # No answer means that the process was killed, with its training.
        return int(answer) if answer else -signal.SIGKILL

    def kill(self) -> None:
        """End the process and its running command."""
        self._process.kill()
        self._process.communicate()


def die_with_parent() -> None:
    """On Linux, let the system kill this process when its parent ends."""
    # Otherwise a training would keep its folder locked after its worker was killed, and could not be resumed.
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


IN_CHILD = die_with_parent if sys.platform == "linux" else None
"""Called first in a child process. Not available on Windows."""


def _next_training(answers: int) -> dict[str, Any] | None:
    """Fork a process for each command. Returns the command in the child, ``None`` at the end in the parent.

    :param answers: file descriptor for exit codes
    """
    orders = sys.stdin.buffer
    myself = os.getpid()
    while line := orders.readline():
        child = os.fork()
        if child == 0:
            os.close(answers)
            die_with_parent()
            if os.getppid() != myself:  # the parent ended before the signal was set
                os._exit(1)
            return dict(json.loads(line))
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    return None


def _become(order: dict[str, Any]) -> None:
    os.chdir(order["directory"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(order["environment"])
    np.random.seed()  # as in a newly started process
    module, *_ = sys.argv = order["arguments"]
    sys.path[0] = order["directory"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _main() -> None:
    # Imports may print; this must not mix with the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    for name in _PRELOADED:
        # The training that needs the module reports the error, in its own log.
        with suppress(Exception):
            importlib.import_module(name)
    order = _next_training(answers)
    if order is not None:
        _become(order)


if __name__ == "__main__":
    _main()
