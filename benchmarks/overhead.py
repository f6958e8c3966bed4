"""What measuring and recycling dormant neurons costs, in one process on one thread, as a table and as JSON.

``python -m benchmarks.overhead`` takes about a quarter of an hour, with ``--all`` for more algorithms three of them,
``--quick`` a tenth. Its lines:

- ``share in hooks``: of ``learn()``'s wall time, spent in the hooks of ``ReDoCallback()`` that SB3 calls and in the
  ticks of its gradient-step clock. What happens once, when training starts, weighs less as runs get longer.
- ``... after the start``: the same without the start of training, which is what a long run tends to.
- ``learn() with / without``: over pairs of runs, one after the other. Covers also what no hook of ours sees, such as
  TensorBoard's writer thread, and what recycling changes in training itself.
- ``measure``, ``measure and recycle``: CPU time over that of a forward pass of the same networks on the same batch.
- ``peak memory``: what a measurement needs beyond that pass, in sizes of its largest layer's output.
"""

import argparse
import ctypes
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # OpenMP reads it once, when torch is loaded

import ale_py
import gymnasium as gym
import torch
import yaml
from sb3_contrib import QRDQN, TQC
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from benchmarks.passes import Line, Rig, tell
from sb3_redo import ReDoCallback
from sb3_redo.callbacks.clock import GradientClock

START_HOOKS = ("init_callback", "on_training_start")
HOOKS = (*START_HOOKS, "on_rollout_start", "update_locals", "on_step", "on_rollout_end", "on_training_end")
Trained = tuple[BaseAlgorithm, float]
"""A model and the seconds that its ``learn()`` took."""


@dataclass(frozen=True)
class Task:
    """A training whose cost is measured, over so many gradient steps, and the highest share it may take."""

    name: str
    algorithm: type[BaseAlgorithm]
    make_env: Callable[[], VecEnv]
    settings: dict[str, Any]
    gradient_steps: int
    bar: float

    def train(self, gradient_steps: int, callback: ReDoCallback | None = None, **changed: Any) -> Trained:
        """Let a new model learn, logging to TensorBoard."""
        settings = {"device": "cpu", "seed": 0, **self.settings, **changed}
        if "n_epochs" in settings:
            replay_ratio = settings["n_epochs"] / settings["batch_size"]
        else:
            replay_ratio = settings.get("gradient_steps", 1) / settings.get("train_freq", 1)
        steps = settings.get("learning_starts", 0) + round(gradient_steps / replay_ratio)
        with tempfile.TemporaryDirectory() as folder:
            model = self.algorithm(env=self.make_env(), tensorboard_log=folder, **settings)
            gc.collect()  # the models before, whose buffers would otherwise be freed while this one is timed
            begin = time.perf_counter()
            model.learn(steps, callback=callback)
            seconds = time.perf_counter() - begin
            model.logger.close()  # or its writer thread would outlive the folder
        return model, seconds


def demon_attack(n_envs: int = 1) -> VecEnv:
    gym.register_envs(ale_py)
    return VecFrameStack(make_atari_env("DemonAttackNoFrameskip-v4", n_envs, seed=0), n_stack=4)


ATARI = {"policy": "CnnPolicy", "buffer_size": 5000, "learning_starts": 500, "train_freq": 4}
MUJOCO = {"policy": "MlpPolicy", "buffer_size": 100_000, "learning_starts": 500}
ZOO = yaml.safe_load((Path(__file__).parents[1] / "zoo_configs" / "dqn.yml").read_text())
CARTPOLE = {key: value for key, value in ZOO["CartPole-v1"].items() if key not in ("n_timesteps", "callback")}
TASKS = {
    "atari": Task("DQN on DemonAttack", DQN, demon_attack, ATARI, 2000, 0.01),
    "sac": Task("SAC on HalfCheetah", SAC, partial(make_vec_env, "HalfCheetah-v5"), MUJOCO, 3000, 0.01),
    "cartpole": Task("DQN on CartPole", DQN, partial(make_vec_env, "CartPole-v1"), CARTPOLE, 10_000, 0.03),
}
half_cheetah = partial(make_vec_env, "HalfCheetah-v5")
ROLLOUTS = {"policy": "CnnPolicy", "n_steps": 128, "n_epochs": 4, "batch_size": 256}
FURTHER_TASKS = {
    "td3": Task("TD3 on HalfCheetah", TD3, half_cheetah, MUJOCO, 3000, 0.01),
    "tqc": Task("TQC on HalfCheetah", TQC, half_cheetah, MUJOCO, 3000, 0.01),
    "qrdqn": Task("QR-DQN on DemonAttack", QRDQN, demon_attack, ATARI, 2000, 0.01),
    "ppo": Task("PPO on DemonAttack", PPO, partial(demon_attack, 8), ROLLOUTS, 500, 0.01),
    "ppo-mlp": Task(
        "PPO on HalfCheetah",
        PPO,
        half_cheetah,
        {"policy": "MlpPolicy", "n_steps": 2048, "n_epochs": 10, "batch_size": 64},
        10_000,
        0.03,
    ),
}
NETWORKS = {
    "Nature CNN": partial(TASKS["atari"].train, 100),
    "SAC 256x256": partial(TASKS["sac"].train, 100),
    "DQN 256x256": partial(TASKS["cartpole"].train, 256),
    "DQN 64x64": partial(TASKS["cartpole"].train, 256, policy_kwargs={"net_arch": [64, 64]}),
}


FURTHER_NETWORKS = {
    "TD3 400x300": partial(FURTHER_TASKS["td3"].train, 100),
    "TQC 256x256": partial(FURTHER_TASKS["tqc"].train, 100),
    "QR-DQN Nature CNN": partial(FURTHER_TASKS["qrdqn"].train, 100),
    "PPO Nature CNN": partial(FURTHER_TASKS["ppo"].train, 16),
    "PPO 64x64": partial(FURTHER_TASKS["ppo-mlp"].train, 320),
}


@contextmanager
def stopwatch(callback: ReDoCallback) -> Iterator[dict[bool, float]]:
    """Seconds spent in a callback and its clock, nested calls counted once: at the start (True) and later (False)."""
    seconds = {True: 0.0, False: 0.0}
    running: list[str] = []

    def timed(function: Any, name: str) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            running.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                running.pop()
                if not running:
                    seconds[name in START_HOOKS] += time.perf_counter() - begin

        return wrapper

    for hook in HOOKS:
        setattr(callback, hook, timed(getattr(callback, hook), hook))
    with mock.patch.object(GradientClock, "_tick", timed(GradientClock._tick, "tick")):
        yield seconds


def training(task: Task, gradient_steps: int, pairs: int) -> Iterator[Line]:
    """Runs with and without the callback in turns, every second pair the other way round."""
    task.train(1)  # the first run of a process also imports TensorBoard
    starts, laters = [], []
    ours: list[float] = []
    bare: list[float] = []
    for pair in range(pairs):
        callback = ReDoCallback()
        with stopwatch(callback) as seconds:
            for is_ours in (pair % 2 == 1, pair % 2 == 0):
                _, duration = task.train(gradient_steps, callback if is_ours else None)
                (ours if is_ours else bare).append(duration)
        starts.append(seconds[True])
        laters.append(seconds[False])
    size = f"{gradient_steps} gradient steps in {median(ours):.1f} s, {gradient_steps // 1000} recycling periods"
    shares = [(start + later) / total for start, later, total in zip(starts, laters, ours, strict=True)]
    later_shares = [later / (total - start) for start, later, total in zip(starts, laters, ours, strict=True)]
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    for quantity, values, bar, note in (
        ("share in hooks", shares, task.bar, size),
        ("... after the start", later_shares, task.bar, f"the start takes {median(starts):.3f} s"),
        ("learn() with / without", ratios, 1 + task.bar, f"pairs: {pairs}"),
    ):
        yield Line(task.name, quantity, median(values), min(values), max(values), bar, note)


def lines(options: argparse.Namespace) -> Iterator[Line]:
    tasks, networks = dict(TASKS), dict(NETWORKS)
    if options.all:
        tasks, networks = tasks | FURTHER_TASKS, networks | FURTHER_NETWORKS
    for name, task in tasks.items():
        if name in options.only:
            steps = options.gradient_steps or task.gradient_steps // (10 if options.quick else 1)
            yield from training(task, steps, options.pairs)
    for name, train in networks.items():
        if "passes" in options.only:
            yield from network(name, train, options.seconds)


def network(name: str, train: Callable[..., Trained], seconds: float) -> Iterator[Line]:
    model, _ = train()
    for batch_size in (64, 256):
        rig = Rig(model, batch_size)
        yield rig.compare(f"{name}, batch {batch_size}", rig.measure, seconds, 1.1)
    yield rig.memory(f"{name}, batch {batch_size}")
    if torch.cuda.is_available():
        model, _ = train(device="cuda")
        yield Rig(model, batch_size).memory(f"{name}, batch {batch_size}")
    if "Nature CNN" in name:
        for threshold in (0.1, 0.0):
            rig = Rig(model, batch_size, threshold)
            yield rig.compare(f"{name}, batch {batch_size}", rig.measure_and_recycle, seconds, 1.15)


def keep_freed_memory() -> None:
    """Have glibc keep memory that was freed, where it is used at all.

    By default it returns it to the system until larger blocks have been freed. The batches that we measure on are
    larger than those of training, so training ran up to 10 % faster after a measurement than without one.
    """
    with suppress(AttributeError, TypeError):
        malloc_option = ctypes.CDLL(None).mallopt
        malloc_option(-1, 2**30)  # M_TRIM_THRESHOLD
        malloc_option(-3, 2**25)  # M_MMAP_THRESHOLD, the highest there is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = (*TASKS, *FURTHER_TASKS, "passes")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="what to measure, default all")
    parser.add_argument("--all", action="store_true", help="QR-DQN, TD3, TQC and PPO too")
    parser.add_argument("--quick", action="store_true", help="one short pair of runs each, to see that it works")
    parser.add_argument("--gradient-steps", type=int, help="per training run, default depends on the task")
    parser.add_argument("--pairs", type=int, help="of training runs, default 3")
    parser.add_argument("--seconds", type=float, help="per comparison of passes, default 15")
    parser.add_argument("--json", type=Path, help="file for the JSON; without it, it follows the table")
    options = parser.parse_args()
    options.all |= not set(options.only).isdisjoint(FURTHER_TASKS) and options.only != parts
    options.pairs = options.pairs or (1 if options.quick else 3)
    options.seconds = options.seconds or (2.0 if options.quick else 15.0)
    torch.set_num_threads(1)
    keep_freed_memory()
    found = []
    for line in lines(options):
        print(line.subject, line.quantity, file=sys.stderr)  # progress, since the table comes at the end
        found.append(line)
    tell(found, options.json)


if __name__ == "__main__":
    main()
