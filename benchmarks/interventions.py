"""What the interventions cost, as ratios in one process on one thread: a table, and as JSON.

- ``gradient step with / without``: of those that act at every gradient step, CPU time of ``train()`` calls with the
  callback over that of the same calls without it, in turns.
- ``over its floor``: the time in which such a callback acts in a gradient step, over that of a pass in its place that
  reads and writes the tensors that it must, once; of Parseval regularisation, over that of its two products too, and of
  weight projection, over that of two passes: no weight can be scaled before the norm of all of them is known.
- ``share at its period``: of those that act once in a while, the time of one intervention over that of the gradient
  steps in its default period.
- ``gradient step over the plain model's``: of those that are chosen in ``policy_kwargs``, as a policy or as an
  algorithm, in turns with a model of the plain policy and algorithm.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.choices import TASKS_OF, chosen
from benchmarks.floors import Acts, acts_of, floors
from benchmarks.overhead import NETWORKS
from benchmarks.passes import Line, tell
from sb3_redo import ReDoCallback
from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.callbacks.schedule import Schedule
from sb3_redo.forward.nested import map_tensors
from sb3_redo.interventions import (
    AdaptiveReplayRatioCallback,
    ContinualBackpropCallback,
    FireCallback,
    GradientReDoCallback,
    NormProjectionCallback,
    OptimizerResetCallback,
    ParsevalCallback,
    PruningCallback,
    RegenerativeCallback,
    ResetCallback,
    ScheduledReDoCallback,
    ShrinkAndPerturbCallback,
    WeightClippingCallback,
)
from sb3_redo.sb3.model import gradient_steps_of


class ReadingGradients(GradientReDoCallback):
    """Reads the gradients for every recycling that is asked of it, of whatever step was made last."""

    def prepare(self) -> None:
        self._readers: list[Callable[[], None]] = []
        super().prepare()

    def reading(self, weights: Mapping[str, Tensor]) -> Callable[[], None]:
        self._readers.append(super().reading(weights))
        return self._readers[-1]

    def is_due_soon(self) -> bool:
        return True

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        for read in self._readers:
            read()
        super().after_gradient_steps(before, gradient_step)


class MeasuringBeyondTheBuffer(AdaptiveReplayRatioCallback):
    """Measures on as many observations as by default, on each eight times: the buffer here holds fewer."""

    def __init__(self) -> None:
        super().__init__(batch_size=512)
        self.schedule = Schedule("measuring_period", self.measuring_period)

    def prepare(self) -> None:
        super().prepare()
        draw = self.measurer.sampler.draw

        def eight_times(gradient_step: int) -> Any:
            return map_tensors(lambda tensor: torch.cat([tensor] * 8), draw(gradient_step))

        vars(self.measurer.sampler)["draw"] = eight_times


class HalfPruned(PruningCallback):
    """What it costs to keep half of every layer pruned, at each gradient step."""

    def prepare(self) -> None:
        super().prepare()
        for layer in self.measurer.meter.wiring:
            if layer.recyclable:
                self.pruned[layer.name] = torch.arange(layer.neurons) % 2 == 0
        self.hold()


class ResettingOptimizers(OptimizerResetCallback):
    """Resets at the period that a target of SB3's DQN has by default: 10,000 steps in the environment."""

    schedule = Schedule("when", 2500)

    def __init__(self) -> None:
        super().__init__(2500, "moments")  # unlike "both" it leaves as much to reset the next time


ALWAYS: tuple[Callable[[], GradientStepCallback], ...] = (
    RegenerativeCallback,
    ParsevalCallback,
    WeightClippingCallback,
    NormProjectionCallback,
    ContinualBackpropCallback,
    partial(ContinualBackpropCallback, period=10),
    HalfPruned,
)
ALWAYS_OF: dict[str, tuple[Callable[[], GradientStepCallback], ...]] = {"Nature CNN": (OptimizerResetCallback,)}
"""Of those whose targets are copied."""
SOMETIMES: tuple[Callable[[], GradientStepCallback], ...] = (
    ReDoCallback,
    ScheduledReDoCallback,
    ReadingGradients,
    ResetCallback,
    ResettingOptimizers,
    ShrinkAndPerturbCallback,
    partial(ShrinkAndPerturbCallback, factor="dormancy"),
    partial(ShrinkAndPerturbCallback, factor="dormancy", dormancy="linear_outputs", period=50_000),
    FireCallback,
    PruningCallback,
    MeasuringBeyondTheBuffer,
)


def always(bench: Bench, make: Callable[[], GradientStepCallback], seconds: float) -> Iterator[Line]:
    """Gradient steps with and without a callback that acts at each of them, in turns, and it beside its floors."""
    ours: list[float] = []
    bare: list[float] = []
    callback = make()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(bare) < 20:
        for is_ours in sorted((True, False), reverse=len(bare) % 2 == 0):
            if is_ours:
                bench.begin(callback)
            bench.step()  # the first after a change meets cold caches
            (ours if is_ours else bare).append(bench.step())
            callback.on_training_end()
    low, _, high = quantiles([one / other for one, other in zip(ours, bare, strict=True)])
    each = median(bare) / bench.steps_at_once
    note = f"a gradient step takes {1e3 * each:.2f} ms, {len(bare)} times"
    subject = f"{bench.name}, {type(callback).__name__}"
    subject += f", period {period}" if (period := getattr(callback, "period", 1)) > 1 else ""
    value = median(ours) / median(bare)
    yield Line(subject, "gradient step with / without", value, low, high, None, note)
    for quantity, floor, limit in floors(callback):
        acting, least = in_steps(bench, callback, acts_of(callback)), in_steps(bench, callback, floor)
        note = f"{1e3 * acting:.3f} / {1e3 * least:.3f} ms"
        yield Line(subject, quantity, acting / least, acting / least, acting / least, limit, note)


def in_steps(bench: Bench, callback: GradientStepCallback, acts: Acts) -> float:
    """Seconds of a gradient step that pass in some functions, which take the place of others meanwhile."""
    spent = [0.0]

    def timed(act: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            begin = time.thread_time()
            act(*arguments)
            spent[0] += time.thread_time() - begin

        return run

    times = []
    with ExitStack() as replacing:
        for (owner, name), act in acts.items():
            replacing.enter_context(patch.object(owner, name, timed(act)))
        bench.begin(callback)
        for _ in range(60):
            spent[0] = 0.0
            bench.step()
            times.append(spent[0] / bench.steps_at_once)
        callback.on_training_end()
    return median(times)


def sometimes(bench: Bench, make: Callable[[], GradientStepCallback]) -> Line:
    """One intervention beside the gradient steps of a period."""
    callback = make()
    bench.begin(callback)
    schedule: Schedule = getattr(callback, "schedule")  # noqa: B009
    period = schedule.period
    times = []
    for number in range(1, 8):
        step = (gradient_steps_of(bench.model) // period + number) * period
        begin = time.thread_time()
        callback.after_gradient_steps(step - 1, step)
        times.append(time.thread_time() - begin)
    callback.on_training_end()
    each = median(bench.step() for _ in range(20)) / bench.steps_at_once
    shares = [seconds / (period * each) for seconds in times]
    note = f"{1e3 * median(times):.1f} ms every {period:,} gradient steps of {1e3 * each:.2f} ms"
    settings = [f", {name} {value}" for name, value in getattr(make, "keywords", {}).items()]
    subject = f"{bench.name}, {type(callback).__name__}{''.join(settings)}"
    return Line(subject, "share at its period", median(shares), min(shares), max(shares), 0.02, note)


def lines(seconds: float, networks: list[str]) -> Iterator[Line]:
    for name in networks:
        if name in TASKS_OF:
            yield from chosen(name, seconds)
        bench = Bench(name)
        for periodic in SOMETIMES:
            yield sometimes(bench, periodic)
        for acting in (*ALWAYS, *ALWAYS_OF.get(name, ())):
            yield from always(bench, acting, seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="per comparison (default: %(default)g)")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["Nature CNN", "SAC 256x256"])
    parser.add_argument("--json", type=Path, help="file for the JSON; without it, it follows the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Any] = []
    for line in lines(options.seconds, options.networks):
        print(
            f"{line.subject}, {line.quantity}: {line.value:.4f} ({line.low:.4f} to {line.high:.4f}), {line.note}",
            file=sys.stderr,
        )
        found.append(line)
    tell(found, options.json)


if __name__ == "__main__":
    main()
