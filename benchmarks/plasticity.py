"""What the instruments of plasticity cost, in gradient steps of the same training, in one process on one thread: a
table, and as JSON.

- ``gradient steps``: CPU time of one measurement over that of one bare gradient step, with each callback's default
  settings. The probe task is timed on 200 steps of one target and multiplied up.
- ``share at its period``: the same over the gradient steps of its default period. Of the cheap instruments together
  it should be no more than 0.05.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from benchmarks.bench import Bench
from benchmarks.overhead import NETWORKS
from benchmarks.passes import Line, tell
from sb3_redo.plasticity import CurvatureCallback, GradientCovarianceCallback, PlasticityCallback, ProbeTaskCallback
from sb3_redo.plasticity.callbacks import INSTRUMENTS
from sb3_redo.plasticity.measuring import ExaminingCallback
from sb3_redo.plasticity.probing import BUDGETS
from sb3_redo.sb3.model import gradient_steps_of

TIMED_STEPS = 200
"""Of a probe."""


class Clocked:
    """A model, and how long its gradient steps take."""

    def __init__(self, name: str):
        self.name = name
        self.bench = Bench(name)
        for _ in range(3):
            self.bench.step()  # the first meet cold caches

    def seconds(self, callback: ExaminingCallback, times: int, follows: bool = False) -> list[float]:
        """CPU time of a measurement, several times.

        :param follows: whether the optimizers' next steps are part of it; they are timed with and without
        """
        self.bench.begin(callback)
        found = []
        for number in range(1, 1 + times):
            step = gradient_steps_of(self.bench.model) + number
            begin = time.thread_time()
            callback._examine_and_log(step)
            found.append(time.thread_time() - begin)
            if follows:
                with_it = self.bench.step()
                found[-1] += max(0.0, with_it - self.bench.step())
        callback.on_training_end()
        return found

    def lines(self, subject: str, callback: ExaminingCallback, times: int, factor: float = 1.0) -> Iterator[Line]:
        """Both quantities of one callback.

        :param factor: how many times what is timed a measurement is
        """
        follows = isinstance(callback, PlasticityCallback) and "updates" in callback.instruments
        before = [self.bench.step() / self.bench.steps_at_once for _ in range(4)]
        seconds = [factor * value for value in self.seconds(callback, times, follows)]
        # Bare steps on either side, since other programs come and go.
        each = median([*before, *(self.bench.step() / self.bench.steps_at_once for _ in range(4))])
        steps = [value / each for value in seconds]
        subject, note = (
            f"{self.name}, {subject}",
            f"{1e3 * median(seconds):.1f} ms, a gradient step {1e3 * each:.2f} ms",
        )
        yield Line(subject, "gradient steps", median(steps), min(steps), max(steps), None, note)
        period = callback.measuring_period
        bar = 0.05 if subject.endswith("all cheap instruments") else None
        shares = [value / period for value in steps]
        note = f"every {period:,} gradient steps"
        yield Line(subject, "share at its period", median(shares), min(shares), max(shares), bar, note)


def cases() -> Iterator[tuple[str, Callable[[], ExaminingCallback], int, float]]:
    """Name, callback, how often it is timed, and how many times what is timed a measurement is."""
    yield "all cheap instruments", PlasticityCallback, 7, 1.0
    for instrument in INSTRUMENTS:
        yield instrument, lambda instrument=instrument: PlasticityCallback(instruments=[instrument]), 5, 1.0  # type: ignore[misc]
    yield "gradient covariance", GradientCovarianceCallback, 3, 1.0
    yield "curvature", CurvatureCallback, 2, 1.0
    for budget, (steps, targets) in BUDGETS.items():
        factor = steps * targets / TIMED_STEPS
        name = f"probe task, {budget}"
        yield name, lambda budget=budget: ProbeTaskCallback(budget=budget, steps=TIMED_STEPS, targets=1), 1, factor  # type: ignore[misc]


def lines(networks: list[str]) -> Iterator[Line]:
    for network in networks:
        clocked = Clocked(network)
        for subject, make, times, factor in cases():
            yield from clocked.lines(subject, make(), times, factor)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["Nature CNN", "SAC 256x256"])
    parser.add_argument("--json", type=Path, help="file for the JSON; without it, it follows the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Line] = []
    for line in lines(options.networks):
        print(line.subject, line.quantity, f"{line.value:.4f}", file=sys.stderr)
        found.append(line)
    tell(found, options.json)


if __name__ == "__main__":
    main()
