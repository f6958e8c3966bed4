"""Forks trainings from a process that has loaded what they need, so that they start in no time.

Importing PyTorch and the zoo takes seconds, which a sweep of short runs would spend once for each of them.
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

# Nothing here computes or draws a random number when it is imported.
_PRELOADED = (
    "torch._dynamo",  # which the first optimizer loads
    "rl_zoo3.import_envs",
    "rl_zoo3.exp_manager",
    "torch.utils.tensorboard",
    "sb3_redo.networks",
    "sb3_redo.sweeps.run_folder",
)

# Loaded here, since little may be done between a fork and what it starts.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Starter:
    """Runs ``python -m`` commands, each in a process of its own that has been forked from one that is warm.

    The processes die with the thread that made this.

    :param environment: variables of the warm process; those that are read when a library is loaded count
    """

    # Elsewhere a process must not go on after a fork as if nothing had happened.
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
        """Whether it can run more."""
        return self._process.poll() is None

    def run(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """Run a module here as ``python -m`` would.

        :param arguments: the module's name and its arguments
        :param log: file to which all it says is appended
        :param environment: all its variables
        :return: its exit code, negative for the signal that killed it
        """
        order = {"arguments": [*arguments], "log": str(log), "environment": {**environment}, "directory": os.getcwd()}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        # Without one somebody killed it, and its training with it.
        return int(answer) if answer else -signal.SIGKILL

    def kill(self) -> None:
        """End the process, and what it runs."""
        self._process.kill()
        self._process.communicate()


def die_with_parent() -> None:
    """Let this process be killed as soon as its parent has ended, on Linux."""
    # A training whose worker was killed would hold its folder, and the one that is to go on could not.
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


IN_CHILD = die_with_parent if sys.platform == "linux" else None
"""What a child process does first. Windows knows nothing of the kind."""


def _next_training(answers: int) -> dict[str, Any] | None:
    """Fork a process for every order. Returns the order in that process, and ``None`` when there are no more.

    :param answers: descriptor of the file that exit codes are written to
    """
    orders = sys.stdin.buffer
    myself = os.getpid()
    while line := orders.readline():
        child = os.fork()
        if child == 0:
            os.close(answers)
            die_with_parent()
            if os.getppid() != myself:  # it ended before this process asked to be told
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
    np.random.seed()  # as that of a process that starts
    module, *_ = sys.argv = order["arguments"]
    sys.path[0] = order["directory"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _main() -> None:
    # What is imported may print: that is not to be taken for an answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    for name in _PRELOADED:
        # The training that needs it says what is wrong, in its own log.
        with suppress(Exception):
            importlib.import_module(name)
    order = _next_training(answers)
    if order is not None:
        _become(order)


if __name__ == "__main__":
    _main()
