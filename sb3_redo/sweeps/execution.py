"""Runs the trainings of a sweep through Ray, on this machine or on a cluster."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sb3_redo.sweeps.files import SWEEP, BusyError, is_finished, write_json
from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.run_process import train_run
from sb3_redo.sweeps.sweep_file import Sweep
from sb3_redo.validation import needs

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BEFORE_TRYING_AGAIN = 5.0


@dataclass(frozen=True)
class Resources:
    """Limits the resources of trainings.

    :param workers: trainings at a time on this machine; by default one per core
    :param address: of a Ray cluster to use instead of this machine
    :param cpus_per_run: share of the cluster's CPUs that a training holds
    :param gpus_per_run: share of its GPUs
    :param threads: PyTorch threads in a training
    """

    workers: int | None = None
    address: str | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0
    threads: int = 1


@dataclass
class Standing:
    """Counts a sweep's progress.

    :param open: waiting runs, the longest first
    :param running: names of running runs to their start times
    :param finished: names, with runs that were finished before
    :param failed: names to error messages
    :param busy: names of runs that another sweep trains
    :param training_seconds: total time of all training processes that have ended here
    """

    open: list[Run]
    running: dict[str, float] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)
    training_seconds: float = 0.0


def execute(sweep: Sweep, out: Path, resources: Resources, watch: Callable[[Standing], Any]) -> Standing:
    """Train all unfinished runs of a sweep. Stopped runs continue.

    :param out: the sweep's folder, on a file system that all nodes see
    :param watch: called about every second with the progress
    :return: the final progress
    :raises UsageError: when Ray is not installed, or a run has started with other settings
    """
    ray = _import_ray()
    standing = Standing([])
    for run in sweep.runs:
        run.check_same(out)
        if is_finished(out / run.name):
            standing.finished.append(run.name)
        else:
            standing.open.append(run)
    write_json(out / SWEEP, sweep.plan())
    standing.open.sort(key=lambda run: -run.effort)  # so that no long run is left for the end
    if not standing.open:
        watch(standing)
        return standing
    _connect(ray, resources)
    try:
        _Executor(ray, out, resources, standing, watch).run()
    finally:
        ray.shutdown()
    return standing


def _import_ray() -> Any:
    # Otherwise Ray reports usage statistics over the network, and prints hints on its own tuning.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's default is 15: every other process would come first.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with needs("sweep", "a sweep"):
        import ray
    return ray


def _connect(ray: Any, resources: Resources) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error"}
    if resources.address is not None:
        ray.init(address=resources.address, **quiet)
        return
    cpus = os.cpu_count() or 1
    if resources.workers is not None:
        cpus = max(1, math.ceil(resources.workers * resources.cpus_per_run))
    # Otherwise an environment variable or an earlier command could select another cluster.
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)


class _Executor:
    def __init__(self, ray: Any, out: Path, resources: Resources, standing: Standing, watch: Callable[[Standing], Any]):
        self.ray = ray
        self.out = out
        self.resources = resources
        self.standing = standing
        self.watch = watch
        self.tasks: dict[Any, Run] = {}
        self.not_before: dict[str, float] = {}
        # If a worker or node is lost, its task starts again elsewhere, from the run's checkpoint.
        shares = {"num_cpus": resources.cpus_per_run, "num_gpus": resources.gpus_per_run}
        self.remote = ray.remote(**shares, max_retries=-1)(_train)

    def run(self) -> None:
        while self.standing.open or self.tasks:
            self._start()
            done, _ = self.ray.wait(list(self.tasks), timeout=_SECONDS_BETWEEN_LOOKS) if self.tasks else ([], [])
            for task in done:
                self._end(task)
            if not self.tasks:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            self.watch(self.standing)

    def _room(self) -> int:
        """Return how many trainings fit into the cluster at its current size."""
        available = self.ray.cluster_resources()
        room = available.get("CPU", 0.0) / self.resources.cpus_per_run
        if self.resources.workers is not None:
            room = min(room, self.resources.workers)
        if self.resources.gpus_per_run:
            room = min(room, available.get("GPU", 0.0) / self.resources.gpus_per_run)
        if room < 1 and not self.tasks:
            raise RuntimeError(
                f"no room for a single run: it takes {self.resources.cpus_per_run:g} CPUs and "
                f"{self.resources.gpus_per_run:g} GPUs, and Ray has {available.get('CPU', 0):g} and "
                f"{available.get('GPU', 0):g}"
            )
        return int(room)

    def _start(self) -> None:
        now = time.monotonic()
        for run in list(self.standing.open):
            if len(self.tasks) >= self._room():
                break
            if self.not_before.get(run.name, 0.0) > now:
                continue
            self.standing.open.remove(run)
            try:
                if not is_finished(self.out / run.name):
                    run.describe(self.out, self.resources.threads)
            except OSError as error:  # for instance a full disk: the other runs continue
                self.standing.failed[run.name] = f"{error.strerror}: {self.out / run.name}"
                continue
            command = run.command(self.out, self.resources.threads)
            task = self.remote.remote(str(self.out / run.name), command, self.resources.threads, os.getcwd())
            self.tasks[task] = run
            self.standing.running[run.name] = now
            self.standing.busy.discard(run.name)

    def _end(self, task: Any) -> None:
        run = self.tasks.pop(task)
        del self.standing.running[run.name]
        try:
            self.standing.training_seconds += self.ray.get(task)
            self.standing.finished.append(run.name)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, BusyError):
                self.standing.busy.add(run.name)
                self.not_before[run.name] = time.monotonic() + _SECONDS_BEFORE_TRYING_AGAIN
                self.standing.open.append(run)
            else:
                self.standing.failed[run.name] = str(error.cause)
        except self.ray.exceptions.RayError as error:
            self.standing.failed[run.name] = str(error)


def _train(folder: str, command: Sequence[str], threads: int, directory: str) -> float:
    # The command's paths are relative to the folder where the sweep was started.
    os.chdir(directory)
    return train_run(Path(folder), command, threads)
