"""Every algorithm with every kind of policy that it has: tiny models, and what is known of their networks."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from rl_zoo3.utils import get_class_by_name
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.model import whole_batch
from sb3_redo.zoo.policy_names import scalable_policy
from tests.helpers.runs import Corridor, Tape

VECTORS, IMAGES, DICTIONARIES = "MlpPolicy", "CnnPolicy", "MultiInputPolicy"

# 44 pixels leave 2 x 2 places of the last convolution, so that each channel feeds four columns.
IMAGE = spaces.Box(0, 255, (1, 44, 44), "uint8")
OBSERVATIONS = {
    VECTORS: spaces.Box(-1.0, 1.0, (3,)),
    IMAGES: IMAGE,
    # In alphabetical order, as their features are concatenated: the camera's begin at column 2.
    DICTIONARIES: spaces.Dict({"beacon": spaces.Box(-1.0, 1.0, (2,)), "camera": IMAGE, "room": spaces.Discrete(4)}),
}
DISCRETE, CONTINUOUS = spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))

_OFF_POLICY = {"learning_starts": 20, "batch_size": 8, "buffer_size": 200, "train_freq": 4, "gradient_steps": 4}
# Exploration that does not depend on how long learn() is asked to train.
_STEADY = {"exploration_initial_eps": 0.1, "exploration_final_eps": 0.1}
PERIOD = 6
"""Between two measurements. Divides neither what a train() call makes nor what a rollout brings."""

_PPO = {"n_steps": 8, "batch_size": 8, "n_epochs": 2}
# Some train() calls of PPO end in the middle.
STOPS_EARLY = {"target_kl": 1e-3, "learning_rate": 0.01, "n_epochs": 4}


@dataclass(frozen=True)
class Algorithm:
    """What the tests must know of an algorithm.

    :param cls: its class
    :param clock: path of the optimizer whose steps are its gradient steps
    :param settings: of its constructor, for 4 gradient steps per 4 or 16 environment steps (A2C: 1 per 8)
    :param policy: settings of its policy
    """

    cls: type[BaseAlgorithm]
    clock: str
    settings: dict[str, Any]
    policy: dict[str, Any]

    @property
    def is_on_policy(self) -> bool:
        return issubclass(self.cls, OnPolicyAlgorithm)


ALGORITHMS = {
    "DQN": Algorithm(DQN, "policy.optimizer", {**_OFF_POLICY, **_STEADY}, {}),
    "QR-DQN": Algorithm(QRDQN, "policy.optimizer", {**_OFF_POLICY, **_STEADY}, {"n_quantiles": 5}),
    "DDPG": Algorithm(DDPG, "critic.optimizer", _OFF_POLICY, {}),
    "TD3": Algorithm(TD3, "critic.optimizer", _OFF_POLICY, {}),
    "SAC": Algorithm(SAC, "actor.optimizer", _OFF_POLICY, {}),
    "TQC": Algorithm(TQC, "actor.optimizer", {**_OFF_POLICY, "top_quantiles_to_drop_per_net": 1}, {"n_quantiles": 5}),
    "CrossQ": Algorithm(CrossQ, "critic.optimizer", _OFF_POLICY, {}),
    "PPO": Algorithm(PPO, "policy.optimizer", _PPO, {}),
    "A2C": Algorithm(A2C, "policy.optimizer", {"n_steps": 4}, {}),
    "TRPO": Algorithm(TRPO, "policy.optimizer", {"n_steps": 8, "batch_size": 8, "n_critic_updates": 2}, {}),
    "MaskablePPO": Algorithm(MaskablePPO, "policy.optimizer", _PPO, {}),
    "RecurrentPPO": Algorithm(RecurrentPPO, "policy.optimizer", _PPO, {"lstm_hidden_size": 8}),
}
CASES = [
    (name, kind)
    for name, algorithm in ALGORITHMS.items()
    for kind in OBSERVATIONS
    if kind in algorithm.cls.policy_aliases or kind.replace("Policy", "LstmPolicy") in algorithm.cls.policy_aliases
]
# Images and dictionaries are tried every time with one algorithm of each family.
ALWAYS = {("DQN", IMAGES), ("PPO", DICTIONARIES)}


def case(name: str, kind: str, always: Container[str] = ALGORITHMS) -> Any:
    """A parameter set of a test, marked slow where it is.

    :param always: algorithms that are tried with vectors every time
    """
    is_fast = name in always if kind == VECTORS else (name, kind) in ALWAYS
    return pytest.param(name, kind, marks=[] if is_fast else pytest.mark.slow)


EVERY = [pytest.param(name, marks=[] if name in {"DQN", "SAC", "PPO"} else pytest.mark.slow) for name in ALGORITHMS]
"""Every algorithm, one of each family at once and the others slow."""

Q_LEARNERS = {"DQN": "q_net", "QR-DQN": "quantile_net"}


def half(name: str) -> int:
    """Environment steps of half a short training."""
    return {"A2C": 64}.get(name, 32)


def learn(model: Any, callback: Any, steps: int | None = None, tape: Tape | None = None, name: str = "DQN") -> Any:
    """Train, both halves if not told how long, logging to a tape."""
    model.set_logger(Logger(None, [tape or Tape()]))
    return model.learn(steps or 2 * half(name), callback=callback, reset_num_timesteps=False)


def is_on_policy(name: str) -> bool:
    return ALGORITHMS[name].is_on_policy


def build(
    name: str,
    kind: str = VECTORS,
    env: Any = None,
    policy_kwargs: dict[str, Any] | None = None,
    actions: spaces.Space | None = None,
    policy: Any = None,
    **settings: Any,
) -> Any:
    """A tiny model, with SB3's policy if given none; on-policy algorithms collect from two environments."""
    algorithm = ALGORITHMS[name]
    if env is None:
        actions = actions or (DISCRETE if algorithm.is_on_policy or name in Q_LEARNERS else CONTINUOUS)
        corridors = [lambda: Corridor(7, OBSERVATIONS[kind], actions)] * (2 if algorithm.is_on_policy else 1)
        env = DummyVecEnv(corridors)
    architecture: dict[str, Any] = {"net_arch": [8, 8]}
    if kind == IMAGES:
        # On-policy networks of images are the features extractor alone, unless others are asked for.
        architecture = {"net_arch": [] if algorithm.is_on_policy else [8, 8]}
        architecture["features_extractor_kwargs"] = {"features_dim": 8}
    elif kind == DICTIONARIES:
        architecture["features_extractor_kwargs"] = {"cnn_output_dim": 8}
    policy = policy or (kind.replace("Policy", "LstmPolicy") if name == "RecurrentPPO" else kind)
    return algorithm.cls(
        policy,
        env,
        **{"seed": 0, "device": "cpu", **algorithm.settings, **settings},
        policy_kwargs={**architecture, **algorithm.policy, **(policy_kwargs or {})},
    )


def scalable(name: str, kind: str) -> Any:
    """Our policy for an algorithm."""
    return get_class_by_name(scalable_policy(name.lower().replace("-", ""), kind))


def batch_of(model: Any, rows: int = 6) -> Batch:
    """Observations that an environment might give, and the policy's actions in them."""
    return whole_batch(model, np.stack([model.observation_space.sample() for _ in range(rows)]))


def steps_of(name: str) -> int:
    """Environment steps of a short run: 24 gradient steps off-policy, 16 on-policy, 8 of A2C."""
    return 64 if is_on_policy(name) else 44


# When to measure


class NotesRolloutEnds(BaseCallback):
    """Beside what else is on a tape."""

    def __init__(self, tape: Tape):
        super().__init__()
        self.tape = tape

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.tape.events.append(("rollout end", None))


def due(name: str, events: list[tuple[str, Any]], clock: str) -> list[int]:
    """After how many gradient steps to measure, from the optimizer's steps and the ends of rollouts on a tape."""
    made, looked_at, expected = 0, None, []
    for event, _ in events:
        made += event == f"{clock} step"
        if event == "rollout end" and is_on_policy(name):
            if looked_at is None or made // PERIOD > looked_at // PERIOD:
                expected.append(made)
            looked_at = made
    return expected if is_on_policy(name) else list(range(0, made + 1, PERIOD))


# What is known of the networks


@dataclass(frozen=True)
class Known:
    """A hidden layer.

    :param network: the network it is counted with
    :param feeds: consumer to the first column that it feeds and to the columns per neuron; empty if not recyclable
    :param norm: the normalisation between the layer and its consumer, if there is one
    """

    network: str
    feeds: dict[str, tuple[int, int]]
    norm: str | None = None


def known_layers(name: str, kind: str, **policy_kwargs: Any) -> dict[str, Known]:
    """The hidden layers of a model that :func:`build` returns, by name."""
    known: dict[str, Known] = {}
    describe: Callable[..., None] = _off_policy_layers
    if is_on_policy(name):
        describe = _on_policy_layers
    elif name in Q_LEARNERS:
        describe = _q_layers
    describe(known, name, kind, **policy_kwargs)
    return known


def _q_layers(known: dict[str, Known], name: str, kind: str) -> None:
    network = Q_LEARNERS[name]
    _add_pixels(known, kind, network, f"{network}.features_extractor", [f"{network}.{network}.0"])
    _add_chain(known, network, f"{network}.{network}.{{}}", (0, 2), [f"{network}.{network}.4"])


def _off_policy_layers(known: dict[str, Known], name: str, kind: str, share_features_extractor: bool = False) -> None:
    body = "actor.mu.{}" if name in ("DDPG", "TD3") else "actor.latent_pi.{}"
    outputs = ["actor.mu.4"] if name in ("DDPG", "TD3") else ["actor.mu", "actor.log_std"]
    numbers, output, norms = ((1, 4), 7, (3, 6)) if name == "CrossQ" else ((0, 2), 4, None)
    critics = ["critic.qf0"] if name == "DDPG" else ["critic.qf0", "critic.qf1"]
    firsts = [f"{critic}.{numbers[0]}" for critic in critics]
    begins = [body.format(numbers[0])]
    trained_for = "shared" if share_features_extractor else "actor"
    _add_pixels(known, kind, trained_for, "actor.features_extractor", begins + firsts * share_features_extractor)
    if not share_features_extractor:
        _add_pixels(known, kind, "critic", "critic.features_extractor", firsts)
    _add_chain(known, "actor", body, numbers, outputs, norms)
    for critic in critics:
        _add_chain(known, "critic", f"{critic}.{{}}", numbers, [f"{critic}.{output}"], norms)


def _on_policy_layers(known: dict[str, Known], name: str, kind: str, share_features_extractor: bool = True) -> None:
    mlp = "mlp_extractor.{}_net"
    consumers = {"policy": mlp.format("policy") + ".0", "value": mlp.format("value") + ".0"}
    if kind == IMAGES:
        consumers = {"policy": "action_net", "value": "value_net"}
    else:
        _add_chain(known, "policy", mlp.format("policy") + ".{}", (0, 2), ["action_net"])
        _add_chain(known, "value", mlp.format("value") + ".{}", (0, 2), ["value_net"])
    if share_features_extractor:
        # An LSTM behind the features mixes them.
        behind = [] if name == "RecurrentPPO" else list(consumers.values())
        _add_pixels(known, kind, "shared", "features_extractor", behind)
    else:
        _add_pixels(known, kind, "policy", "features_extractor", [consumers["policy"]])
        _add_pixels(known, kind, "value", "vf_features_extractor", [consumers["value"]])


def _add_chain(
    known: dict[str, Known],
    network: str,
    path: str,
    numbers: Sequence[int],
    outputs: Sequence[str],
    norms: Sequence[int] | None = None,
) -> None:
    """Layers in a row, each feeding the next column by column, and the last one the outputs."""
    names = [path.format(number) for number in numbers]
    behind = [path.format(number) for number in norms] if norms else [None] * len(names)
    consumers = [*([following] for following in names[1:]), list(outputs)]
    for layer, fed, norm in zip(names, consumers, behind, strict=True):
        known[layer] = Known(network, dict.fromkeys(fed, (0, 1)), norm)


def _add_pixels(known: dict[str, Known], kind: str, network: str, extractor: str, consumers: Sequence[str]) -> None:
    """NatureCNN, alone or as a part of a dictionary's extractor."""
    if kind == VECTORS:
        return
    cnn = extractor if kind == IMAGES else f"{extractor}.extractors.camera"
    _add_chain(known, network, f"{cnn}.cnn.{{}}", (0, 2), [f"{cnn}.cnn.4"])
    known[f"{cnn}.cnn.4"] = Known(network, {f"{cnn}.linear.0": (0, 4)})
    first_column = 2 if kind == DICTIONARIES else 0
    known[f"{cnn}.linear.0"] = Known(network, dict.fromkeys(consumers, (first_column, 1)))
