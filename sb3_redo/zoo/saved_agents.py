"""Reads the agent in a zip of Stable-Baselines3, saved by any release."""

import base64
import copy
import json
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_redo.algorithms import ALGORITHMS as OURS
from sb3_redo.sb3.agents import known_algorithm
from sb3_redo.validation import (
    UsageError,
    finite_number,
    flag,
    fraction,
    needs,
    non_negative_integer,
    one_of,
    optional_integer,
    positive_integer,
)
from sb3_redo.zoo.pickles import Unreadable, module_of, needed, unpickled, unreadable_parts
from sb3_redo.zoo.policy_names import algorithms_of
from sb3_redo.zoo.sources import Source, check_size

with needs("zoo", "a saved agent"):
    from rl_zoo3.utils import ALGOS

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {**ALGOS, **OURS, "ppo_mask": MaskablePPO}
"""The zoo's names to algorithms, with ours, and with sb3-contrib's that the zoo does not train."""

_OF_POLICIES = {
    "stable_baselines3.common.policies": ("ppo", "a2c", "trpo"),
    "stable_baselines3.dqn.policies": algorithms_of("DQNMlpPolicy"),
    "stable_baselines3.sac.policies": ("sac",),
    "stable_baselines3.td3.policies": ("td3", "ddpg"),
    "sb3_contrib.ars.policies": ("ars",),
    "sb3_contrib.crossq.policies": ("crossq",),
    "sb3_contrib.qrdqn.policies": ("qrdqn",),
    "sb3_contrib.tqc.policies": ("tqc",),
    "sb3_contrib.common.maskable.policies": ("ppo_mask",),
    "sb3_contrib.common.recurrent.policies": ("ppo_lstm",),
}
"""Module of a policy's class to the algorithms that use it."""

_READ = ("policy_class", "policy_kwargs", "action_noise")
"""Keys that are unpickled. An agent that only acts needs no others."""
_HELD_BY_NETWORKS = ("policy_class", "policy_kwargs")
_NUMBERS: dict[str, Callable[[str, Any], Any]] = {
    "exploration_rate": fraction,
    "n_steps": positive_integer,
    "num_timesteps": non_negative_integer,
    "sde_sample_freq": finite_number,
    "seed": optional_integer,
    "use_sde": flag,
    "_n_updates": non_negative_integer,
}
"""Numbers that an acting agent takes from the zip, with their checks. All others are the algorithm's defaults."""


class SavedAgent:
    """Reads a zip without building its agent.

    :param path: the zip
    :param safe: whether to unpickle only known classes
    :raises UsageError: when the zip cannot be read
    """

    def __init__(self, path: Path, *, safe: bool = False):
        self.path = path
        self.safe = safe
        try:
            with zipfile.ZipFile(path) as archive:
                self.data: dict[str, Any] = json.loads(archive.read("data"))
        except Exception as error:  # damaged files raise errors of many kinds
            raise UsageError(f"{path} cannot be read: {error}") from error
        if not isinstance(self.data, dict) or "policy_class" not in self.data:
            raise UsageError(f"{path} is a zip file, but not an agent that Stable-Baselines3 saved")

    def value(self, key: str) -> Any:
        """Return a setting.

        :param key: its name
        :return: its value, :class:`~sb3_redo.zoo.pickles.Unreadable`, or ``None`` if it is missing
        """
        return self._read(key)[0]

    def _read(self, key: str) -> tuple[Any, tuple[str, ...]]:
        saved = self.data.get(key)
        if not isinstance(saved, dict) or ":serialized:" not in saved:
            return saved, ()
        return unpickled(_decoded(saved[":serialized:"]), safe=self.safe)

    @cached_property
    def observation_space(self) -> spaces.Space[Any] | None:
        """The observation space, or ``None`` if it cannot be read."""
        return self._space("observation_space")

    @cached_property
    def action_space(self) -> spaces.Space[Any] | None:
        """The action space, or ``None`` if it cannot be read."""
        return self._space("action_space")

    def _space(self, key: str) -> spaces.Space[Any] | None:
        space = self.value(key)
        try:
            return space if same_shape(space, space) else None
        except Exception:  # damaged spaces lack attributes
            return None

    @property
    def is_normalised(self) -> bool:
        """Whether the zip shows that ``VecNormalize`` changed its observations.

        Then on-policy algorithms keep an original observation. An observation outside its space also shows it.
        """
        if "n_steps" in self.data and "replay_buffer_class" not in self.data:
            return self.value("_last_original_obs") is not None
        seen, space = self.value("_last_obs"), self.observation_space
        if not isinstance(seen, np.ndarray) or not isinstance(space, spaces.Box) or seen.shape[1:] != space.shape:
            return False
        return bool((seen < space.low - 1e-3).any() or (seen > space.high + 1e-3).any())

    def algorithm(self, source: Source, given: str | None) -> str:
        """Return the name of the algorithm: as given, from the zoo's settings, or from the saved policy.

        :param source: has the zoo's settings
        :param given: the user's choice
        :raises UsageError: when it is unknown, cannot be determined, is not supported, or does not match the policy
        """
        possible = self._possible_algorithms()
        # Our algorithms differ from DQN only in training, which is not done here.
        plain = tuple(name for name in possible if name not in OURS) or possible
        name = given or source.arguments.get("algo")
        if name == "her":  # in old releases an algorithm that wraps that of the policy
            name = plain[0] if plain else None
        if name is None and len(plain) == 1:
            name = plain[0]
        if name is None and source.run is not None and source.run.parent.name in possible:
            name = source.run.parent.name  # the zoo's folders are <algorithm>/<environment>_<number>
        if name is None:
            reason = f"it may be {' or '.join(possible)}" if possible else "its policy is of a class of your own"
            raise UsageError(f"give --algo: the file does not tell its algorithm; {reason}")
        try:
            one_of("--algo", name, tuple(ALGORITHMS))
            known_algorithm(ALGORITHMS[name])
        except (ValueError, RuntimeError) as error:
            raise UsageError(str(error)) from None
        if possible and name not in possible:
            raise UsageError(f"--algo is {name}, but the policy in {self.path} is of {' or '.join(possible)}")
        return str(name)

    def _possible_algorithms(self) -> tuple[str, ...]:
        policy = self.data.get("policy_class", {})
        module = str(policy.get("__module__", "")) if isinstance(policy, Mapping) else ""
        if module == "stable_baselines3.her.her" or not module.startswith("sb3_redo.networks."):
            return _OF_POLICIES.get(module, ())
        # Policies of several algorithms share a module. The pickle has the class's name; it is not run here.
        try:
            pickled = list(pickletools.genops(_decoded(policy.get(":serialized:"))))
        except ValueError:  # damaged
            return ()
        names = [argument for _, argument, _ in pickled if isinstance(argument, str)]
        return next(filter(None, map(algorithms_of, names)), ())

    def build(self, kind: type[BaseAlgorithm], env: VecEnv) -> tuple[BaseAlgorithm, list[str]]:
        """Build the agent with its weights, to act in an environment, not for training.

        Replay buffers, schedules, optimizers and the state of training are not read. An unreadable setting gets the
        algorithm's default.

        :param kind: the algorithm
        :param env: the environment. The agent gets its spaces.
        :return: the model, and the unreadable settings in words
        :raises UsageError: when the policy cannot be read, or does not fit the environment
        """
        # 1. The algorithm wraps the environment, and uses its spaces: those of other releases have other bounds.
        self._check_space("action_space", env)
        data, notes = self._settings(env)
        try:
            model = kind(policy=data["policy_class"], env=env, _init_setup_model=False)  # type: ignore[call-arg]
            self._check_space("observation_space", model)
            # 2. It builds its networks from the policy's settings. A full replay buffer would waste memory.
            small = {"buffer_size": 1, "optimize_memory_usage": False} if "buffer_size" in self.data else {}
            model.__dict__.update({**data, **small})
            model._setup_model()
        except UsageError:
            raise
        except Exception as error:  # settings that current policies do not take
            raise UsageError(f"the networks of {self.path} cannot be built: {one_line(error)}") from error
        # 3. It loads only the policy's weights.
        policy: Any = model.policy
        self._load_weights(policy)
        broken = [name for name, value in policy.state_dict().items() if not torch.isfinite(value).all()]
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            notes.append(f"its weights are NaN or infinite: {broken[0]}{more}")
        if model.use_sde:
            try:
                policy.reset_noise()
            except Exception as error:  # damaged settings
                raise UsageError(f"{self.path} cannot be opened: use_sde is True, and its policy lacks it") from error
        return model, notes

    def _check_space(self, key: str, holder: VecEnv | BaseAlgorithm) -> None:
        saved, space = self._space(key), getattr(holder, key)
        if saved is not None and not same_shape(saved, space):
            raise UsageError(
                f"the environment is not the one that {self.path} was trained in: its {key} is {brief(space)}, "
                f"the agent's is {brief(saved)}"
            )

    def _settings(self, env: VecEnv) -> tuple[dict[str, Any], list[str]]:
        """Return the saved settings that acting needs, and what differs from training, in words."""
        data: dict[str, Any] = {}
        notes = _differences(self.observation_space, env.observation_space, "observations")
        notes += _differences(self.action_space, env.action_space, "actions")
        for key, saved in self.data.items():
            # 1. Numbers are checked. The constructor has set those that acting does not need.
            if key in _NUMBERS:
                try:
                    data[key] = _NUMBERS[key](key, saved)
                except (TypeError, ValueError) as error:
                    raise UsageError(f"{self.path} cannot be opened: {error}") from None
            if key not in _READ:
                continue
            # 2. Needed settings are unpickled, in part if they have unreadable parts.
            value, unreadable = self._read(key)
            if key == "policy_kwargs" and isinstance(value, dict):
                unreadable = _without_optimizer(value, unreadable)
            if not unreadable and not isinstance(value, Unreadable):
                data[key] = value
            elif key in _HELD_BY_NETWORKS:
                raise UsageError(self._unreadable(key, unreadable))
            elif key == "action_noise":
                notes.append(f"its action noise cannot be read ({unreadable[0]}): it acts without noise")
        # 3. Old releases saved some settings in other forms.
        noise = data.get("action_noise")
        data["action_noise"] = _renewed_noise(noise, env.action_space)
        if noise is not None and data["action_noise"] is None:
            notes.append("its action noise is damaged: it acts without noise")
        policy_kwargs = data.get("policy_kwargs")
        if not isinstance(policy_kwargs, (dict, type(None))):
            raise UsageError(f"{self.path} cannot be opened: its policy_kwargs are not a dictionary")
        data["policy_kwargs"] = _renewed(policy_kwargs or {})
        return data, notes

    def _load_weights(self, policy: nn.Module) -> None:
        """Load the policy's weights, in place. Old releases saved a shared extractor under only one of its names."""
        state = self._state()
        try:
            missing, unexpected = policy.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise UsageError(f"the weights in {self.path} do not fit its policy: {one_line(error)}") from error
        missing = [
            name for name in missing if not name.startswith(("pi_features_extractor.", "vf_features_extractor."))
        ]
        if missing or unexpected:
            what = f"{missing[0]} is missing" if missing else f"{unexpected[0]} has no place there"
            raise UsageError(f"the weights in {self.path} do not fit its policy: {what}")

    def _state(self) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("policy.pth") as file:
                check_size(file, self.path)
                file.seek(0)
                return dict(torch.load(file, map_location="cpu", weights_only=True))
        except UsageError:
            raise
        except KeyError:
            raise UsageError(f"{self.path} has no policy.pth, which holds the weights") from None
        except Exception as error:  # damaged files raise errors of many kinds
            raise UsageError(f"the weights in {self.path} cannot be read: {one_line(error)}") from error

    def _unreadable(self, key: str, unreadable: tuple[str, ...]) -> str:
        what = unreadable[0] if unreadable else "an unknown object"
        safely, remedy = "", f"install or put on the path {module_of(what)}"
        if self.safe:
            safely, remedy = " safely", "leave out --safe if you trust it"
        elif " " in what:
            remedy = "the file is damaged, or not of Stable-Baselines3"
        return f"{self.path} cannot be opened{safely}: of its {key}, {needed(what)}; {remedy}"


def _decoded(text: Any) -> bytes:
    """Return the pickle in a zip's data, or no bytes if it is damaged."""
    try:
        return base64.b64decode(text)
    except (ValueError, TypeError):
        return b""


def algorithm_of(source: Source, given: str | None = None) -> str:
    """Return the name of an agent's algorithm, see :meth:`SavedAgent.algorithm`.

    :param source: the zip, and the zoo's settings
    :param given: the user's choice
    :raises UsageError: when it is unknown, cannot be determined, is not supported, or does not match the policy
    """
    return SavedAgent(source.model, safe=source.safe).algorithm(source, given)


def same_shape(one: spaces.Space[Any] | None, other: spaces.Space[Any] | None) -> bool:
    """Return whether two spaces hold values of the same shape and kind. Bounds and precision may differ.

    :param one: a space
    :param other: another one
    """
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        return set(one.spaces) == set(other.spaces) and all(same_shape(one[key], other[key]) for key in one.spaces)
    if type(one) is not type(other) or one is None or other is None or one.shape != other.shape:
        return False
    if isinstance(one, spaces.Discrete) and isinstance(other, spaces.Discrete):
        return bool(one.n == other.n)
    if isinstance(one, spaces.MultiDiscrete) and isinstance(other, spaces.MultiDiscrete):
        return bool((one.nvec == other.nvec).all())
    return one.dtype is not None and other.dtype is not None and one.dtype.kind == other.dtype.kind


def _differences(saved: Any, space: Any, what: str) -> list[str]:
    """Return notes on values that mean something else in a space of the same shape."""
    if isinstance(saved, spaces.Dict) and isinstance(space, spaces.Dict):
        both = saved.spaces.keys() & space.spaces.keys()
        return [note for key in sorted(both) for note in _differences(saved[key], space[key], f"{what} {key}")]
    if not same_shape(saved, space):
        return []
    were = ""
    if isinstance(saved, spaces.Box) and what == "actions":  # bounds of observations change nothing
        is_same = np.allclose(saved.low, space.low) and np.allclose(saved.high, space.high)
        were = "" if is_same else f"from {saved.low.min():g} to {saved.high.max():g}"
    elif isinstance(saved, (spaces.Discrete, spaces.MultiDiscrete)):
        is_same = np.array_equal(saved.start, space.start)
        were = "" if is_same else f"numbered from {saved.start}"
    differ = f"its {what} were {were}, and those of the environment have other bounds: its behaviour may differ"
    return [differ] if were else []


def brief(space: spaces.Space[Any]) -> str:
    """Return a space in a few words, without its bounds.

    :param space: the space
    """
    if isinstance(space, spaces.Box):
        return f"Box{space.shape} of {space.dtype}"
    if isinstance(space, spaces.Dict):
        return "Dict(" + ", ".join(f"{key}: {brief(part)}" for key, part in space.spaces.items()) + ")"
    return str(space)


def one_line(error: BaseException, length: int = 300) -> str:
    """Return an error's message as one line of at most ``length`` characters.

    :param error: the error
    :param length: in characters
    """
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= length else line[: length - 1] + "…"


def _without_optimizer(policy_kwargs: dict[str, Any], unreadable: tuple[str, ...]) -> tuple[str, ...]:
    """Remove an unreadable optimizer, in place: acting needs none. Returns the remaining unreadable parts."""
    for part in list(unreadable_parts(policy_kwargs)):
        if part.startswith("optimizer"):
            del policy_kwargs[part]
    return unreadable if list(unreadable_parts(policy_kwargs)) else ()


def _renewed(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a policy's settings in the current form. Releases before 1.8 put a dictionary of sizes into a list."""
    renewed = {key: value for key, value in policy_kwargs.items() if key != "device"}
    sizes = renewed.get("net_arch")
    if isinstance(sizes, list) and sizes and isinstance(sizes[0], dict):
        renewed["net_arch"] = sizes[0]
    return renewed


def _renewed_noise(noise: Any, space: spaces.Space[Any]) -> ActionNoise | None:
    """Return action noise of one environment with its current attributes, or ``None`` if it is damaged."""
    try:
        single = noise.base_noise if isinstance(noise, VectorizedActionNoise) else noise
        if not hasattr(single, "_dtype"):  # old releases saved fewer attributes
            single.__dict__["_dtype"] = np.float32
        is_whole = isinstance(single, ActionNoise) and copy.deepcopy(single)().shape == space.shape
    except Exception:  # damaged noise raises errors of many kinds
        return None
    return single if is_whole else None
