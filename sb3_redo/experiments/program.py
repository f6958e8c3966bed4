"""Runs trainings that are not the zoo's, into run folders of the same layout.

A stopped training starts again from the beginning.
"""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import configure
from torch import Tensor

from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.experiments.settings import Settings
from sb3_redo.sweeps.files import OUTCOME, PROGRESS, RUN, is_finished, locked, read_json, write_json
from sb3_redo.sweeps.run import describe_run, machine
from sb3_redo.tensorboard import dormancy_values, persistence_values, write_point

_SECONDS_BETWEEN_PROGRESS = 2.0
_THRESHOLDS = (0.0, 0.025, 0.1)


@dataclass(frozen=True)
class Point:
    """Holds the values logged at a gradient step."""

    step: int
    values: dict[str, Any] = field(default_factory=dict)


class DormancyLog:
    """Converts reports of one network to values to log, and remembers earlier dormant neurons."""

    def __init__(self) -> None:
        self._before: list[Tensor] | None = None
        self._at_first: list[Tensor] = []

    def values(self, report: DormancyReport, gradient_step: int) -> dict[str, Any]:
        """Return a report's values, with overlaps with the dormant neurons of the previous and first report."""
        values = dormancy_values(report, _THRESHOLDS, log_layers=True, log_histograms=False)
        dormant = [layer.dormant for layer in report.layers]
        if self._before is not None:
            values |= persistence_values(report.layers, self._before, self._at_first, log_layers=True)
        else:
            self._at_first = dormant
        self._before = dormant
        return values | {"dormancy/gradient_step": gradient_step}


def program_parser(description: str | None, settings: type[Settings]) -> argparse.ArgumentParser:
    """Return a parser with the common options of these programs."""

    def settings_in(text: str) -> Settings:
        try:
            return settings.of(json.loads(text))
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of this run alone; created if needed")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)d)")
    parser.add_argument("--settings", type=settings_in, default="{}", help=f"as JSON; see {settings.__name__}")
    parser.add_argument("--condition", type=json.loads, default={}, help="differences from other runs, as JSON")
    parser.add_argument("--num-threads", type=int, default=1, help="PyTorch threads (default: %(default)d)")
    return parser


def write_program_run(
    folder: Path, about: dict[str, Any], points: Iterable[Point], steps: int, last_of: dict[str, str]
) -> None:
    """Train into a folder. A folder with a finished run is an error.

    :param about: environment, algorithm, condition and seed of a run outside a sweep
    :param points: of the training, which runs while they are consumed
    :param steps: gradient steps of the whole training
    :param last_of: names in the outcome to keys, whose last points are used; the dormant fraction is included
    :raises RuntimeError: when the folder has a finished run, or another run
    """
    with locked(folder):
        if is_finished(folder):
            raise RuntimeError(f"{folder} holds a finished run: remove it to train again")
        described = read_json(folder / RUN)
        if described is None:
            describe_run(folder, **about)
        elif any(described.get(name) != value for name, value in about.items()):
            raise RuntimeError(f"{folder} holds another run: choose another folder")
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
            "machine": machine(),
        }
        write_json(folder / OUTCOME, outcome | {name: last.get(key) for name, key in last_of.items()})


def _write_points(folder: Path, points: Iterable[Point], steps: int, started: float) -> dict[str, Any]:
    """Write points during the training. Returns the last value of every key."""
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
