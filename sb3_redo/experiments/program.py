"""Trainings that are no zoo's, into run folders as those of agents have it. A training that was stopped begins anew."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import configure

from sb3_redo.experiments.point import Point
from sb3_redo.sweeps.files import OUTCOME, PROGRESS, RESULT, RUN, locked, read_json, write_json
from sb3_redo.sweeps.run import describe_run
from sb3_redo.tensorboard import write_point

_SECONDS_BETWEEN_PROGRESS = 2.0


def write_program_run(
    folder: Path, about: dict[str, Any], points: Iterable[Point], steps: int, last_of: dict[str, str]
) -> None:
    """Train into a folder; nothing is computed again in one that holds a finished run.

    :param about: environment, algorithm, condition and seed of a run that no sweep has described
    :param points: of the training, which goes on as they are asked for
    :param steps: gradient steps of the whole training
    :param last_of: name in the outcome to the key whose last point it is, besides the dormant fraction
    :raises RuntimeError: where the run was finished before, or another one was begun
    """
    with locked(folder):
        if (folder / RESULT).exists():
            raise RuntimeError(f"{folder} holds a finished run: remove it to train again")
        described = read_json(folder / RUN)
        if described is None:
            describe_run(folder, **about)
        elif any(described.get(name) != value for name, value in about.items()):
            raise RuntimeError(f"{folder} holds another run, which was begun before: choose another folder")
        for file in (folder / OUTCOME, *folder.glob("events.out.tfevents.*")):
            file.unlink(missing_ok=True)
        started = time.monotonic()
        last = _write_points(folder, points, steps, started)
        seconds = time.monotonic() - started
        outcome = {
            "num_timesteps": steps,
            "gradient_steps": steps,
            "seconds": seconds,
            "steps_per_second": steps / seconds,
            "final_return": None,
            "final_dormant_fraction": last["dormancy/fraction"],
        }
        write_json(folder / OUTCOME, outcome | {name: last.get(key) for name, key in last_of.items()})


def _write_points(folder: Path, points: Iterable[Point], steps: int, started: float) -> dict[str, Any]:
    """:return: the last value of every key"""
    logger = configure(str(folder), ["tensorboard"])
    last: dict[str, Any] = {}
    told = -_SECONDS_BETWEEN_PROGRESS
    try:
        for point in points:
            write_point(logger, point.values, point.step)
            last |= point.values
            seconds = time.monotonic() - started
            if seconds - told >= _SECONDS_BETWEEN_PROGRESS or point.step == steps:
                write_json(folder / PROGRESS, {"num_timesteps": point.step, "of": steps, "seconds": seconds})
                told = seconds
    finally:
        logger.close()
    return last
