"""What policies, their settings and algorithms cost, beside a model of the plain policy and algorithm."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import quantiles
from typing import Any

from stable_baselines3 import DQN

import sb3_redo.networks
from benchmarks.bench import Bench
from benchmarks.overhead import TASKS
from benchmarks.passes import Line
from sb3_redo.algorithms import CategoricalDQN, DoubleDQN, DrQ

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
TASKS_OF = {"Nature CNN": ("atari", "DQNCnnPolicy"), "SAC 256x256": ("sac", "SACMlpPolicy")}


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
