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
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor

import sb3_redo.networks
from sb3_redo import ReDoCallback
from sb3_redo.agents import gradient_steps_of
from sb3_redo.algorithms import CategoricalDQN, DoubleDQN, DrQ
from sb3_redo.contribution import Feed
from sb3_redo.frozen import neuron_axis
from sb3_redo.interventions import (
    ContinualBackpropCallback,
    GradientReDoCallback,
    NormProjectionCallback,
    ParsevalCallback,
    PruningCallback,
    RegenerativeCallback,
    ResetCallback,
    ScheduledReDoCallback,
    ShrinkAndPerturbCallback,
    WeightClippingCallback,
)
from sb3_redo.interventions.regularisers import RegulariserCallback
from sb3_redo.stepping import GradientStepCallback

from benchmarks.overhead import NETWORKS, TASKS
from benchmarks.passes import Line, tell


class ReadingGradients(GradientReDoCallback):
    """Reads the gradients for every recycling that is asked of it, of whatever step was made last."""

    def _prepare(self) -> None:
        self._readers: list[Callable[[], None]] = []
        super()._prepare()

    def _reading(self, weights: Mapping[str, Tensor]) -> Callable[[], None]:
        self._readers.append(super()._reading(weights))
        return self._readers[-1]

    def _is_due_soon(self) -> bool:
        return True

    def _after(self, before: int, gradient_step: int) -> None:
        for read in self._readers:
            read()
        super()._after(before, gradient_step)


class HalfPruned(PruningCallback):
    """What it costs to keep half of every layer pruned, at each gradient step."""

    def _prepare(self) -> None:
        super()._prepare()
        for layer in self._meter.wiring:
            if layer.recyclable:
                self._pruned[layer.name] = torch.arange(layer.neurons) % 2 == 0
        self._hold()


ALWAYS: tuple[Callable[[], GradientStepCallback], ...] = (
    RegenerativeCallback,
    ParsevalCallback,
    WeightClippingCallback,
    NormProjectionCallback,
    ContinualBackpropCallback,
    partial(ContinualBackpropCallback, period=10),
    HalfPruned,
)
SOMETIMES: tuple[Callable[[], GradientStepCallback], ...] = (
    ReDoCallback,
    ScheduledReDoCallback,
    ReadingGradients,
    ResetCallback,
    ShrinkAndPerturbCallback,
    PruningCallback,
)


CHOICES: dict[str, dict[str, Any]] = {
    "activation: crelu": {"policy_kwargs": {"activation": "crelu"}},
    "activation: crelu, width: 0.5": {"policy_kwargs": {"activation": "crelu", "width": 0.5}},
    "activation: fourier": {"policy_kwargs": {"activation": "fourier"}},
    "spectral_norm: penultimate": {"policy_kwargs": {"spectral_norm": "penultimate"}},
    "layer_norm: true": {"policy_kwargs": {"layer_norm": True}},
    "optimizer_class: sb3_redo.networks.Adam": {
        "policy_kwargs": {"optimizer_class": "sb3_redo.networks.Adam", "optimizer_kwargs": {"eps_root": 1e-3}}
    },
    "optimizer_class: torch.optim.AdamW": {"policy_kwargs": {"optimizer_class": "torch.optim.AdamW"}},
    "weight_decay: 1.0e-5": {"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 1e-5}}},
}
# Of DQN alone.
POLICIES = ("InjectableDQNCnnPolicy", "DuelingDQNCnnPolicy")
AGENTS: dict[type[DQN], str] = {
    DoubleDQN: "DQNCnnPolicy",
    DrQ: "DuelingDQNCnnPolicy",
    CategoricalDQN: "CategoricalDQNCnnPolicy",
}
_PERIODS = ("recycling_period", "pruning_period", "period")
TASKS_OF = {"Nature CNN": ("atari", "DQNCnnPolicy"), "SAC 256x256": ("sac", "SACMlpPolicy")}


@torch.no_grad()
def _pass_over(callback: RegulariserCallback, when: str, names: list[str]) -> None:
    """Read and write once, without changing it, all that a regulariser must, at the time at which it does."""
    at_gradients = isinstance(callback, (RegenerativeCallback, ParsevalCallback))
    if at_gradients is not (when == "_before_step"):
        return
    mine = getattr(callback, "_weights", None) or getattr(callback, "_bounds", None) or callback._parameters
    for name in names:
        if name not in mine:
            continue
        parameter = callback._parameters[name]
        if not at_gradients:
            parameter.mul_(1.0)
        elif parameter.grad is not None and isinstance(callback, RegenerativeCallback):
            parameter.grad.addcmul_(parameter, callback._initial[name], value=0.0)
        elif parameter.grad is not None:
            parameter.grad.add_(parameter, alpha=0.0)


@torch.no_grad()
def _multiply(callback: ParsevalCallback, when: str, names: list[str]) -> None:
    """The two products of Parseval regularisation alone, into gradients that they leave as they are."""
    for name in names if when == "_before_step" else ():
        weight = callback._weights.get(name)
        if weight is not None and weight.grad is not None:
            rows = weight.flatten(1)
            weight.grad.add_((rows @ rows.T @ rows).view_as(weight), alpha=0.0)


@torch.no_grad()
def _normalise(callback: NormProjectionCallback, when: str, names: list[str]) -> None:
    """Read the norm of each weight that is projected, and then write it as it is."""
    for name in names if when == "_after_step" else ():
        if name in callback._weights:
            callback._weights[name].norm()
            callback._weights[name].mul_(1.0)


def _read_input(feed: Feed, value: Tensor) -> None:
    """Read once what a consumer is called with, in place of :meth:`Feed.see`."""
    axis = neuron_axis(feed.consumer) % value.ndim
    feed.seen[0].add_(value.detach().sum([other for other in range(value.ndim) if other != axis]))
    feed.calls += 1


@torch.no_grad()
def _read_weights(callback: ContinualBackpropCallback, before: int, gradient_step: int) -> None:
    """Read outgoing weights once, and read and write utilities and mean inputs."""
    for contribution in callback._contributions:
        for feed in contribution.feeds.values():
            weight: Any = feed.consumer.weight
            weight.sum([axis for axis in range(weight.ndim) if axis != 1])
            feed.running.lerp_(feed.seen, 0.0)
            feed.seen.zero_()
            feed.calls = 0
        contribution.updated_at = gradient_step


Acts = dict[tuple[Any, str], Callable[..., None]]
"""Where a callback acts in a gradient step, as an object or a class and its method's name, and what to do there."""


def acts_of(callback: GradientStepCallback) -> Acts:
    """What a callback that acts at every gradient step does there."""
    if isinstance(callback, ContinualBackpropCallback):
        return {(Feed, "see"): Feed.see, (type(callback), "_after"): type(callback)._after}
    return {(callback, name): getattr(callback, name) for name in ("_before_step", "_after_step")}


def floors(callback: GradientStepCallback) -> Iterator[tuple[str, Acts, float | None]]:
    """Quantity, the least that such a callback must do, and the limit of its time over that of it."""
    if isinstance(callback, ContinualBackpropCallback) and callback.period == 1:
        least: Acts = {(Feed, "see"): _read_input, (type(callback), "_after"): _read_weights}
        yield "over its floor", least, 2.0
    elif isinstance(callback, RegulariserCallback):
        places = acts_of(callback)
        one_pass: Acts = {(owner, name): partial(_pass_over, callback, name) for owner, name in places}
        needs_more = isinstance(callback, (ParsevalCallback, NormProjectionCallback))
        yield "over its floor", one_pass, None if needs_more else 2.0
        if isinstance(callback, ParsevalCallback):
            products: Acts = {(owner, name): partial(_multiply, callback, name) for owner, name in places}
            yield "over its two products", products, 2.0
        if isinstance(callback, NormProjectionCallback):
            two_passes: Acts = {(owner, name): partial(_normalise, callback, name) for owner, name in places}
            yield "over its two passes", two_passes, 2.0


class Bench:
    """A model whose buffer is filled, and its gradient steps."""

    def __init__(self, name: str, steps_at_once: int = 5, model: Any = None):
        self.name = name
        self.model: Any = model or NETWORKS[name]()[0]
        self.model.set_logger(Logger(None, []))  # that of the training is closed
        self.model.__dict__["start_time"] = time.time_ns()
        self.steps_at_once = steps_at_once

    def begin(self, callback: BaseCallback) -> None:
        """As ``learn()`` does it."""
        # What this model began with was not kept; what it is now will do for the time that it takes.
        policy = self.model.policy
        self.model.__dict__["initial_parameters"] = {name: p.detach().clone() for name, p in policy.named_parameters()}
        self.model.__dict__["initial_norms"] = {name: float(p.detach().norm()) for name, p in policy.named_parameters()}
        callback.init_callback(self.model)
        callback.on_training_start({"callback": callback}, {})

    def step(self) -> float:
        """CPU time of a few gradient steps."""
        begin = time.thread_time()
        self.model.train(gradient_steps=self.steps_at_once, batch_size=self.model.batch_size)
        return time.thread_time() - begin

    def always(self, make: Callable[[], GradientStepCallback], seconds: float) -> Iterator[Line]:
        """With and without in turns."""
        ours: list[float] = []
        bare: list[float] = []
        callback = make()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(bare) < 20:
            for is_ours in sorted((True, False), reverse=len(bare) % 2 == 0):
                if is_ours:
                    self.begin(callback)
                self.step()  # the first after a change meets cold caches
                (ours if is_ours else bare).append(self.step())
                callback.on_training_end()
        low, _, high = quantiles([one / other for one, other in zip(ours, bare, strict=True)])
        each = median(bare) / self.steps_at_once
        note = f"a gradient step takes {1e3 * each:.2f} ms, {len(bare)} times"
        subject = f"{self.name}, {type(callback).__name__}"
        subject += f", period {period}" if (period := getattr(callback, "period", 1)) > 1 else ""
        value = median(ours) / median(bare)
        yield Line(subject, "gradient step with / without", value, low, high, None, note)
        for quantity, floor, limit in floors(callback):
            acting, least = self.in_steps(callback, acts_of(callback)), self.in_steps(callback, floor)
            note = f"{1e3 * acting:.3f} / {1e3 * least:.3f} ms"
            yield Line(subject, quantity, acting / least, acting / least, acting / least, limit, note)

    def in_steps(self, callback: GradientStepCallback, acts: Acts) -> float:
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
            self.begin(callback)
            for _ in range(60):
                spent[0] = 0.0
                self.step()
                times.append(spent[0] / self.steps_at_once)
            callback.on_training_end()
        return median(times)

    def sometimes(self, make: Callable[[], GradientStepCallback]) -> Line:
        """One intervention beside the gradient steps of a period."""
        callback = make()
        self.begin(callback)
        period = next(getattr(callback, name) for name in _PERIODS if hasattr(callback, name))
        times = []
        for number in range(1, 8):
            step = (gradient_steps_of(self.model) // period + number) * period
            begin = time.thread_time()
            callback._after(step - 1, step)
            times.append(time.thread_time() - begin)
        callback.on_training_end()
        each = median(self.step() for _ in range(20)) / self.steps_at_once
        shares = [seconds / (period * each) for seconds in times]
        note = f"{1e3 * median(times):.1f} ms every {period:,} gradient steps of {1e3 * each:.2f} ms"
        subject = f"{self.name}, {type(callback).__name__}"
        return Line(subject, "share at its period", median(shares), min(shares), max(shares), 0.02, note)


def chosen(name: str, seconds: float) -> Iterator[Line]:
    """Models of other policies and algorithms beside one of the plain policy, which has the same layers."""
    task = TASKS[TASKS_OF[name][0]]
    policy = TASKS_OF[name][1]

    def bench(of: str, algorithm: Any = task.algorithm, **settings: Any) -> Bench:
        model: Any
        model, _ = replace(task, algorithm=algorithm).train(20, policy=getattr(sb3_redo.networks, of), **settings)
        if of.startswith("Injectable"):
            model.policy.inject_plasticity()
        return Bench(name, model=model)

    plain = bench(policy)
    others = {choice: partial(bench, policy, **settings) for choice, settings in CHOICES.items()}
    if task.algorithm is DQN:
        others |= {of: partial(bench, of) for of in POLICIES}
        others |= {f"{agent.__name__}, {of}": partial(bench, of, agent) for agent, of in AGENTS.items()}
    for choice, make in others.items():
        other = make()
        ratios: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(ratios) < 20:
            order = sorted((True, False), reverse=len(ratios) % 2 == 0)
            took = {is_other: (other if is_other else plain).step() for is_other in order}
            ratios.append(took[True] / took[False])
        low, middle, high = quantiles(ratios)
        quantity = "gradient step over the plain model's"
        yield Line(f"{name}, {choice}", quantity, middle, low, high, None, f"{len(ratios)} times")


def lines(seconds: float, networks: list[str]) -> Iterator[Line]:
    for name in networks:
        if name in TASKS_OF:
            yield from chosen(name, seconds)
        bench = Bench(name)
        for periodic in SOMETIMES:
            yield bench.sometimes(periodic)
        for regulariser in ALWAYS:
            yield from bench.always(regulariser, seconds)


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
