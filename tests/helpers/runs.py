"""Tiny training runs, a tape of what happens in them, and what they leave behind."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

TINY = {"seed": 0, "learning_starts": 20, "batch_size": 8, "buffer_size": 2000, "device": "cpu"}


def dqn(env: Any = "CartPole-v1", policy: str = "MlpPolicy", **settings: Any) -> DQN:
    return DQN(policy, env, **{**TINY, "train_freq": 4, "gradient_steps": 4, **_eight_neurons(settings)})


def sac(env: Any = "Pendulum-v1", policy: str = "MlpPolicy", **settings: Any) -> SAC:
    return SAC(policy, env, **{**TINY, "train_freq": 1, "gradient_steps": 1, **_eight_neurons(settings)})


def _eight_neurons(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "policy_kwargs": {"net_arch": [8, 8], **settings.get("policy_kwargs", {})}}


class Corridor(gym.Env):
    """Random observations, in episodes of a chosen length. The first action of each choice is always allowed."""

    def __init__(
        self,
        length: int = 10,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
    ):
        self.length = length
        # Copied, because a space holds the random stream that it is sampled from.
        self.observation_space = copy.deepcopy(observation_space) or spaces.Box(-1.0, 1.0, (3,))
        self.action_space = copy.deepcopy(action_space) or spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.steps >= self.length, False, {}

    def action_masks(self) -> np.ndarray:
        """What MaskablePPO asks for: every other one of the later actions is forbidden, in turn."""
        space = self.action_space
        sizes = [2] * space.n if isinstance(space, spaces.MultiBinary) else getattr(space, "nvec", None)
        sizes = [space.n] if sizes is None else sizes
        return np.concatenate([(np.arange(size) == 0) | (np.arange(size) % 2 == self.steps % 2) for size in sizes])


class BatchNormAndDropout(BaseFeaturesExtractor):
    """Draws random numbers and keeps statistics where it is run in training mode."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, features_dim=8)
        self.layers = nn.Sequential(
            nn.Linear(observation_space.shape[0], 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8)
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.layers(observations)


NOISY = {"features_extractor_class": BatchNormAndDropout}


INTERVENTIONS = (
    "injection",
    "optimizer_reset",
    "reset",
    "perturb",
    "fire",
    "replay_ratio",
    "regenerative",
    "parseval",
    "clipping",
    "projection",
    "gradients",
    "cbp",
    "plasticity",
    "pruning",
    "plasticity_2",
)


class Tape(KVWriter):
    """Notes optimizer steps and every point that the callbacks write, in order.

    It is a log format like TensorBoard's, so what is on it is what a user gets.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.points: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        if "dormancy/gradient_step" in key_values:
            self.events.append(("measured", key_values["dormancy/gradient_step"]))
        elif "dormancy_2/gradient_step" in key_values:
            self.events.append(("measured by a second callback", key_values["dormancy_2/gradient_step"]))
        elif "redo/recycled" in key_values:
            self.events.append(("recycled", key_values["redo/recycled"]))
        elif "time/fps" in key_values or not any(key.split("/")[0] in INTERVENTIONS for key in key_values):
            return  # SB3's own dump
        self.points.append((step, dict(key_values)))

    def close(self) -> None:
        pass

    def watch(self, model: BaseAlgorithm) -> BaseAlgorithm:
        """Log to this tape, and note on it the steps of the model's optimizers from now on."""
        model.set_logger(Logger(None, [self]))
        for name, optimizer in optimizers_of(model).items():
            optimizer.register_step_post_hook(lambda *_, name=name: self.events.append((f"{name} step", None)))
        return model

    def at_gradient_steps(self, event: str, clock: str = "policy.optimizer") -> list[int]:
        """How many steps the clock's optimizer had made at each of these events."""
        steps, seen = 0, []
        for name, _ in self.events:
            steps += name == f"{clock} step"
            if name == event:
                seen.append(steps)
        return seen

    def values(self, key: str) -> list[Any]:
        """The values written under a key, in order."""
        return [values[key] for _, values in self.points if key in values]


def optimizers_of(model: Any) -> dict[str, torch.optim.Optimizer]:
    """All optimizers of a model by their path."""
    paths = ("policy.optimizer", "actor.optimizer", "critic.optimizer", "ent_coef_optimizer")
    found = {}
    for path in paths:
        holder: Any = model
        for name in path.split("."):
            holder = getattr(holder, name, None)
        if holder is not None:
            found[path] = holder
    return found


def hooks_of(model: Any) -> list[str]:
    """Every hook and every replaced method that is left on a model's modules and optimizers."""
    left = [
        f"{path or 'policy'}: {kind}"
        for path, module in model.policy.named_modules()
        for kind, hooks in vars(module).items()
        if (kind.endswith("_hooks") and hooks) or kind == "forward"
    ]
    for path, optimizer in optimizers_of(model).items():
        hooks = *optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks
        left += [f"{path}: step hook" for _ in hooks]
    return left


def at_gradient_step(clock: torch.optim.Optimizer, step: int, act: Callable[[], Any]) -> None:
    """Have ``act`` called right after one of an optimizer's steps, before all hooks that are registered later."""
    made = 0

    def tick(*_: Any) -> None:
        nonlocal made
        made += 1
        if made == step:
            act()

    clock.register_step_post_hook(tick)


def fingerprint(model: Any) -> dict[str, Any]:
    """Everything a run leaves behind, by name, as plain values that compare bit for bit."""
    left = {
        "weights": model.policy.state_dict(),
        "gradients": {name: parameter.grad for name, parameter in model.policy.named_parameters()},
        "modes": {name: module.training for name, module in model.policy.named_modules()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers_of(model).items()},
        "entropy coefficient": getattr(model, "log_ent_coef", None),
        "replay buffer": contents_of(getattr(model, "replay_buffer", None)),
        "rollout buffer": contents_of(getattr(model, "rollout_buffer", None)),
        "LSTM states": getattr(model, "_last_lstm_states", None),
        "exploration matrices": exploration_matrices(model),
        "environment": model.env.get_attr("np_random"),
        "last observations": model._last_obs,
        "normalisation": normalisation_of(model),
        "counters": (model.num_timesteps, model._n_updates, getattr(model, "_n_calls", None), model._episode_num),
        **random_streams(model),
    }
    return {name: plain(value) for name, value in left.items()}


def contents_of(buffer: Any) -> dict[str, Any]:
    return {} if buffer is None else {name: value for name, value in vars(buffer).items() if is_content(value)}


def is_content(value: Any) -> bool:
    return isinstance(value, (np.ndarray, dict, int, bool))


def exploration_matrices(model: Any) -> list[torch.Tensor]:
    """What state-dependent exploration adds to the actions until it is drawn anew."""
    holders = [module.action_dist for module in model.policy.modules() if hasattr(module, "action_dist")]
    return [holder.exploration_mat for holder in holders if hasattr(holder, "exploration_mat")]


def normalisation_of(model: Any) -> Any:
    env = model.get_vec_normalize_env()
    return None if env is None else (env.obs_rms.mean, env.obs_rms.var, env.obs_rms.count, env.ret_rms.mean)


def random_streams(model: Any) -> dict[str, Any]:
    return {
        "Python's random stream": random.getstate(),
        "NumPy's random stream": np.random.get_state(),
        "torch's random stream": torch.get_rng_state(),
        "action space's random stream": model.action_space.np_random.bit_generator.state,
    }


def restore_random_streams(model: Any, streams: dict[str, Any]) -> None:
    random.setstate(streams["Python's random stream"])
    np.random.set_state(streams["NumPy's random stream"])
    torch.set_rng_state(streams["torch's random stream"])
    model.action_space.np_random.bit_generator.state = streams["action space's random stream"]


def reloaded(model: Any, folder: Path, **settings: Any) -> Any:
    """The model after saving it with its buffer and loading both, its environment and random streams as they were."""
    model.save(folder / "agent")
    streams = random_streams(model)
    loaded = type(model).load(folder / "agent", env=model.get_env(), force_reset=False, **settings)
    if hasattr(model, "replay_buffer"):
        model.save_replay_buffer(folder / "buffer")
        loaded.load_replay_buffer(folder / "buffer")
    if hasattr(model, "_last_lstm_states"):
        loaded._last_lstm_states = model._last_lstm_states  # SB3 does not save them
    restore_random_streams(loaded, streams)
    return loaded


def plain(value: Any) -> Any:
    """Arrays, tensors and generators in a nest as values that compare bit for bit."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.random.Generator):
        value = value.bit_generator.state
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what differs between two fingerprints."""
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


def kill(layer: nn.Module, neurons: list[int]) -> None:
    """Give these neurons of a layer a score of 0 and all others about the same positive one."""
    with torch.no_grad():
        layer.bias.fill_(1000.0)
        layer.bias[neurons] = -1000.0
