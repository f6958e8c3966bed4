"""Loads trained agents from a zip or a zoo run's folder, in the environment that they were trained in."""

import base64
import importlib
import json
import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from sb3_contrib import MaskablePPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_redo.algorithms import ALGORITHMS as OURS
from sb3_redo.validation import UsageError, needs, one_of
from sb3_redo.zoo.atari import check_atari
from sb3_redo.zoo.policy_names import algorithms_of

with needs("zoo", "a saved agent"):
    import rl_zoo3.import_envs  # noqa: F401  registers what the zoo can train on
    import yaml
    from huggingface_sb3 import EnvironmentName
    from rl_zoo3.utils import ALGOS, create_test_env, get_saved_hyperparams

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {**ALGOS, **OURS, "ppo_mask": MaskablePPO}
"""By the zoo's names, ours among them, with sb3-contrib's for the one that the zoo does not train."""

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
"""Which algorithms a saved policy may be of, by the module of its class."""

# What pickles of other Python versions break on and nothing but training needs; the zoo replaces the same.
_REPLACED = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}


@dataclass(frozen=True)
class Source:
    """Says where an agent is and what was saved beside it.

    :param model: the zip
    :param settings: the folder in which the zoo keeps a run's settings, if the agent is of such a run
    """

    model: Path
    settings: Path | None

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The command line that the run was started with; like the zip, it is unpickled: open only what you trust."""
        if self.settings is None:
            return {}
        with open(self.settings / "args.yml") as file:
            return dict(yaml.load(file, Loader=yaml.UnsafeLoader))


def find_model(path: Path) -> Source:
    """Find the agent that a path means: a zip, or a zoo run's final agent, else its best, else its latest checkpoint.

    :raises UsageError: when there is none
    """
    if not path.exists() and path.with_name(path.name + ".zip").is_file():
        path = path.with_name(path.name + ".zip")
    if not path.exists():
        raise UsageError(f"there is no file or folder {path}")
    if path.is_file():
        return Source(_checked(path), _settings_in(path.parent))
    run = path.parent if (path / "args.yml").is_file() else path
    settings = _settings_in(run)
    if settings is None:
        runs = sorted(str(file.parents[1]) for file in path.glob("**/args.yml"))
        hint = f"; did you mean one of the runs in it, such as {runs[-1]}?" if runs else ""
        raise UsageError(f"{path} is not the folder of a zoo run (it has no */args.yml){hint}")
    checkpoints = sorted(run.glob("rl_model_*_steps.zip"), key=lambda file: int(file.name.split("_")[-2]))
    candidates = [run / f"{settings.name}.zip", run / "best_model.zip", *reversed(checkpoints)]
    for candidate in candidates:
        if candidate.is_file():
            return Source(_checked(candidate), settings)
    raise UsageError(f"no model in {run}: neither {settings.name}.zip nor best_model.zip nor rl_model_*_steps.zip")


def _settings_in(run: Path) -> Path | None:
    found = list(run.glob("*/args.yml"))
    return found[0].parent if len(found) == 1 else None


def _checked(path: Path) -> Path:
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is no zip file, and agents are saved as such")
    with zipfile.ZipFile(path) as archive:
        if "data" not in archive.namelist():
            raise UsageError(f"{path} is a zip file, but not an agent that Stable-Baselines3 saved (no 'data' in it)")
    return path


def algorithm_of(source: Source, given: str | None) -> str:
    """Return the name of an agent's algorithm: as given, as the zoo noted, or as the saved policy tells.

    :raises UsageError: when it is unknown, cannot be told, or is not that of the policy
    """
    with zipfile.ZipFile(source.model) as archive:
        policy = json.loads(archive.read("data")).get("policy_class", {})
    possible = _algorithms_of(policy)
    name = given or source.arguments.get("algo")
    # Ours differ from the one that they extend in how they are trained, and here nothing is.
    plain = tuple(algorithm for algorithm in possible if algorithm not in OURS) or possible
    if name is None and len(plain) == 1:
        return plain[0]
    if name is None:
        reason = f"it may be {' or '.join(possible)}" if possible else "its policy is of a class of your own"
        raise UsageError(f"give --algo: the file does not tell which algorithm it is of; {reason}")
    try:
        one_of("--algo", name, tuple(ALGORITHMS))
    except ValueError as error:
        raise UsageError(str(error)) from None
    if possible and name not in possible:
        raise UsageError(f"--algo is {name}, but the policy in {source.model} is of {' or '.join(possible)}")
    return name


def _algorithms_of(policy: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which algorithms a saved policy may be of, from what the zip says of its class."""
    module = policy.get("__module__", "")
    if not module.startswith("sb3_redo.networks."):
        return _OF_POLICIES.get(module, ())
    # Policies of all algorithms lie in one module: the pickle, which is not run here, has the name of the class.
    pickled = pickletools.genops(base64.b64decode(policy[":serialized:"]))
    names = [argument for _, argument, _ in pickled if isinstance(argument, str)]
    return next(filter(None, map(algorithms_of, names)), ())


def load_agent(
    source: Source,
    algorithm: str,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    gym_packages: Sequence[str] = (),
) -> BaseAlgorithm:
    """Load an agent in the environment it was trained in, with the wrappers and statistics that the zoo saved.

    :param algorithm: a name in :data:`ALGORITHMS`
    :param env: the environment's id; the one that the zoo noted if not given
    :param env_kwargs: for the environment, over those of the run
    :param gym_packages: modules that register environments, besides those of the run
    :raises UsageError: when the environment is not known, cannot be made, or does not fit the agent
    """
    kind = ALGORITHMS[algorithm]
    made = _make_env(source, env, env_kwargs or {}, gym_packages)
    # A replay buffer is not needed, and one of the size used for training may not fit into memory.
    is_off_policy = issubclass(kind, OffPolicyAlgorithm)
    small: dict[str, Any] = {"buffer_size": 1, "optimize_memory_usage": False} if is_off_policy else {}
    try:
        return kind.load(source.model, env=made, custom_objects=_REPLACED, **small)
    except ValueError as error:
        made.close()
        if "spaces do not match" in str(error):
            raise UsageError(f"the environment is not the one that {source.model} was trained in: {error}") from error
        raise
    except BaseException:
        made.close()
        raise


def _make_env(source: Source, env: str | None, env_kwargs: Mapping[str, Any], gym_packages: Sequence[str]) -> VecEnv:
    arguments = source.arguments
    env_id = env or arguments.get("env")
    if env_id is None:
        raise UsageError("give --env: a zip on its own does not tell in which environment its agent was trained")
    settings, stats_path = (
        get_saved_hyperparams(str(source.settings), test_mode=True) if source.settings else ({}, None)
    )
    kwargs = {**settings.pop("env_kwargs", {}), **(arguments.get("env_kwargs") or {}), **env_kwargs}
    # What the zoo cannot make is missing on this machine or misspelt; its own messages name it.
    try:
        for package in (*(arguments.get("gym_packages") or ()), *gym_packages):
            importlib.import_module(package)
        check_atari(env_id)
        return create_test_env(
            EnvironmentName(env_id).gym_id,
            stats_path=stats_path,
            should_render=False,
            hyperparams=settings,
            env_kwargs=kwargs,
        )
    except gym.error.UnregisteredEnv as error:
        hint = "--gym-packages imports the module that registers it"
        raise UsageError(f"environment {env_id!r} is not registered: {error} ({hint})") from error
    except (ImportError, gym.error.Error, TypeError, ValueError) as error:
        raise UsageError(f"environment {env_id!r} cannot be made: {error}") from error
