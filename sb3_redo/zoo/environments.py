"""Makes the environment that an agent was trained in, or finds its successor."""

import importlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack

from sb3_redo.validation import UsageError, needs
from sb3_redo.zoo.atari import check_atari
from sb3_redo.zoo.pickles import is_installed, read_statistics
from sb3_redo.zoo.saved_agents import SavedAgent, brief, one_line, same_shape
from sb3_redo.zoo.sources import Source

with needs("zoo", "a saved agent"):
    import rl_zoo3.import_envs  # noqa: F401  registers what the zoo can train on
    from huggingface_sb3 import EnvironmentName
    from rl_zoo3.utils import create_test_env

AUTO = "auto"
"""Selects the environment of the run, or its successor."""

_PACKAGES = (
    (r".*BulletEnv", "pybullet_envs_gymnasium", "pybullet_envs_gymnasium"),
    (r"Panda", "panda_gym", "panda_gym"),
    (
        r"(Fetch|HandReach|HandManipulate|Adroit|PointMaze|AntMaze|FrankaKitchen)",
        "gymnasium_robotics",
        "gymnasium-robotics",
    ),
    (r"(highway|merge|roundabout|parking|intersection|racetrack|two-way|exit)-", "highway_env", "highway-env"),
    (r"(MiniGrid|BabyAI)", "minigrid", "minigrid"),
    (r"(LunarLander|BipedalWalker|CarRacing)", "Box2D", '"gymnasium[box2d]"'),
    (
        r"(HalfCheetah|Ant|Hopper|Walker2d|Humanoid|Swimmer|Reacher|Pusher|Inverted\w*Pendulum)-",
        "mujoco",
        '"gymnasium[mujoco]"',
    ),
)
"""Patterns of environment names to the package that has them, and how to install it."""

# Ant-v3 had contact forces in its observations, and its simulator left them at 0.
_KEYWORDS: dict[str, dict[str, Any]] = {"Ant-v4": {"use_contact_forces": True, "contact_force_range": (0.0, 0.0)}}
"""Keyword arguments that give an environment the observations of its predecessors."""

_VERSION = re.compile(r"-v(\d+)$")
_JOINED = ("observation", "desired_goal")
_MOVED = (
    (r"utils\.wrappers\.", "rl_zoo3.wrappers."),
    (r"rl_zoo3\.wrappers\.DoneOnSuccessWrapper$", "rl_zoo3.wrappers.TruncatedOnSuccessWrapper"),
    (r"rl_zoo3\.wrappers\.TimeFeatureWrapper$", "sb3_contrib.common.wrappers.TimeFeatureWrapper"),
    (r"gym_minigrid\.wrappers\.", "minigrid.wrappers."),
    (r"gym(nasium)?\.wrappers\.(\w+\.)?", "gymnasium.wrappers."),
    (r"gymnasium\.wrappers\.GrayScaleObservation$", "gymnasium.wrappers.GrayscaleObservation"),
    (r"gymnasium\.wrappers\.ResizeObservation$", "rl_zoo3.wrappers.YAMLCompatResizeObservation"),
)
"""Patterns of the paths of wrappers that were moved or renamed, applied in this order."""

_KNOWN_WRAPPERS = re.compile(
    r"gymnasium\.wrappers(\.\w+)*|(rl_zoo3|minigrid)\.wrappers|sb3_contrib\.common\.wrappers(\.\w+)*"
    r"|stable_baselines3\.common\.(atari_wrappers|vec_env(\.\w+)*)"
)
"""Modules of wrappers that are safe to import and call."""


@dataclass(frozen=True)
class EnvironmentOptions:
    """The user's settings of the environment. They override saved ones.

    :param env: its id, :data:`AUTO`, or ``None`` for the run's
    :param env_kwargs: keyword arguments
    :param gym_packages: modules that register environments
    :param wrappers: dotted paths of wrappers around the environment, instead of those of the run
    :param n_stack: frames to stack, instead of those of the run
    :param vec_normalize: path of statistics of ``VecNormalize``
    """

    env: str | None = None
    env_kwargs: Mapping[str, Any] | None = None
    gym_packages: Sequence[str] = ()
    wrappers: Sequence[str] | None = None
    n_stack: int | None = None
    vec_normalize: Path | None = None


@dataclass(frozen=True)
class Made:
    """An environment made for an agent.

    :param env: the environment
    :param id: its registered id
    :param notes: differences from the environment of training, in words
    """

    env: VecEnv
    id: str
    notes: tuple[str, ...] = ()


def make_environment(source: Source, agent: SavedAgent, options: EnvironmentOptions) -> Made:
    """Make the environment that an agent was trained in, with saved wrappers and statistics.

    :param source: the agent and the files saved beside it
    :param agent: the same agent's zip
    :param options: the user's settings
    :raises UsageError: when the environment is not known, cannot be made, or does not fit the agent
    """
    saved_id = source.environment
    wanted = saved_id if options.env in (None, AUTO) else options.env
    if wanted is None:
        raise UsageError("give --env: a zip alone does not tell the agent's environment")
    packages = (*(source.arguments.get("gym_packages") or ()), *options.gym_packages)
    if source.safe:
        _check_harmless(source, options, wanted)
    for package in packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # third-party code
            raise UsageError(f"environment {wanted!r} cannot be made: {one_line(error)}") from error
    # 1. The environment itself, or its successor if it is gone.
    notes: list[str] = []
    env_id = EnvironmentName(wanted).gym_id
    kwargs = {**source.env_kwargs, **(options.env_kwargs or {})}
    for pattern, module, _ in _PACKAGES:
        if env_id not in gym.registry and re.match(pattern, env_id) and is_installed(module):
            importlib.import_module(module)  # registers its environments
    try:
        env = _make(source, env_id, kwargs, options)
    except UsageError as error:
        env_id, kwargs, env = _replacement(source, agent, env_id, kwargs, options, error)
        notes.append(f"{wanted} is gone, {_call(env_id, kwargs)} takes its place")
    try:
        # 2. Observations are normalised as they were in training.
        env, note = _normalised(env, source, agent, options)
        notes += note
        if isinstance(agent.observation_space, spaces.Box) and _takes_goals_joined(agent, env):
            env = _JoinedGoals(env, agent.observation_space)
        # 3. Frames are stacked last, as the zoo does.
        stack = options.n_stack if options.n_stack is not None else source.hyperparameters.get("frame_stack") or 0
        if stack:
            env = VecFrameStack(env, int(stack))
    except BaseException:
        env.close()
        raise
    return Made(env, env_id, tuple(notes))


def _make(source: Source, env_id: str, kwargs: Mapping[str, Any], options: EnvironmentOptions) -> VecEnv:
    """Make an environment with its wrappers.

    :raises UsageError: when it cannot be made. The messages of the zoo and the environment name what is missing.
    """
    given = options.wrappers if options.wrappers is not None else source.hyperparameters.get("env_wrapper")
    settings = {"env_wrapper": _renamed(given), "vec_env_wrapper": source.hyperparameters.get("vec_env_wrapper")}
    settings = {key: value for key, value in settings.items() if value}
    try:
        check_atari(env_id)
        return create_test_env(env_id, should_render=False, hyperparams=settings, env_kwargs=dict(kwargs))
    except gym.error.UnregisteredEnv as error:
        hint = "--gym-packages imports the module that registers it"
        raise UsageError(f"environment {env_id!r} is not registered: {error} ({hint})") from error
    except Exception as error:  # third-party code: simulators, wrappers
        raise UsageError(f"environment {env_id!r} cannot be made: {one_line(error)}") from error


def _check_harmless(source: Source, options: EnvironmentOptions, env: str) -> None:
    """Check that saved settings import and call only known wrappers.

    :raises UsageError: when they do
    """
    packages = source.arguments.get("gym_packages") or ()
    foreign = [name for name in packages if name not in options.gym_packages]
    foreign += [env.partition(":")[0]] if ":" in env and options.env in (None, AUTO) else []
    if foreign:
        raise UsageError(
            f"{source.settings} cannot be opened safely: it imports {foreign[0]}; leave out --safe if you trust it"
        )
    given = source.hyperparameters.get("env_wrapper") if options.wrappers is None else None
    for path in (*_names(_renamed(given)), *_names(source.hyperparameters.get("vec_env_wrapper"))):
        module, _, name = path.rpartition(".")
        is_known = _KNOWN_WRAPPERS.fullmatch(module) and is_installed(module)
        kind = getattr(importlib.import_module(module), name, None) if is_known else None
        if not isinstance(kind, type) or not issubclass(kind, (gym.Wrapper, VecEnvWrapper)):
            raise UsageError(
                f"{source.settings} cannot be opened safely: its wrapper {path} is not known; "
                "leave out --safe if you trust it"
            )


def _names(wrappers: Any) -> list[str]:
    """Return the dotted paths of wrappers in the zoo's settings."""
    if isinstance(wrappers, str):
        return [wrappers]
    return [name for wrapper in wrappers or () for name in _names(wrapper)]


def _renamed(wrappers: Any) -> Any:
    """Return wrappers under their current names, with their current keyword arguments."""
    if isinstance(wrappers, (list, tuple)):
        return [_renamed(wrapper) for wrapper in wrappers]
    if isinstance(wrappers, Mapping):
        return {_renamed(path): _renamed_kwargs(path, kwargs) for path, kwargs in wrappers.items()}
    if isinstance(wrappers, str):
        for pattern, current in _MOVED:
            wrappers = re.sub(f"^{pattern}", current, wrappers)
    return wrappers


def _renamed_kwargs(path: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a wrapper in their current form. OpenAI Gym took one number for a square."""
    is_square = str(path).endswith(".ResizeObservation") and isinstance(kwargs.get("shape"), int)
    return {**kwargs, "shape": [kwargs["shape"]] * 2} if is_square else dict(kwargs)


def _replacement(
    source: Source,
    agent: SavedAgent,
    env_id: str,
    kwargs: Mapping[str, Any],
    options: EnvironmentOptions,
    error: UsageError,
) -> tuple[str, dict[str, Any], VecEnv]:
    """Return the successor of an environment that is gone.

    :raises UsageError: when there is none, or the user has not asked for it
    """
    failures = [str(error)]
    for other, more in _successors(env_id):
        try:
            env = _make(source, other, {**kwargs, **more}, options)
        except UsageError as failure:
            if str(failure).replace(other, env_id) != str(error):  # a wrapper fails around both environments
                failures.append(str(failure))
            continue
        # 1. Unreadable spaces are accepted: loading the weights shows whether they fit.
        fits = _fits(agent, env, source, options)
        if fits and options.env == AUTO:
            return other, {**kwargs, **more}, env
        env.close()
        if fits:
            words = [shlex.quote(f"{key}:{value}") for key, value in more.items()]
            more_words = " ".join(["", "--env-kwargs", *words]) if words else ""
            raise UsageError(
                f"environment {env_id!r} cannot be made here; {other} has the same shapes: give --env {other}"
                f"{more_words}, or --env {AUTO}"
            ) from error
    # 2. The package of the environment, or of its successor, may be missing.
    for pattern, module, install in _PACKAGES:
        if re.match(pattern, env_id) and not is_installed(module):
            replaced = "" if options.env == AUTO else f", and add --env {AUTO} if that version is gone by now"
            raise UsageError(
                f"environment {env_id!r} needs a package that is not installed: pip install {install}{replaced}"
            )
    raise UsageError("; ".join(failures[:2])) from error


def _successors(env_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield other registered versions of an environment, newest first, with their keyword arguments."""
    name = _VERSION.sub("", env_id)
    others = {known: found for known in gym.registry if (found := _VERSION.search(known)) and known != env_id}
    others = {known: found for known, found in others.items() if _VERSION.sub("", known) == name}
    for other in sorted(others, key=lambda known: int(others[known][1]), reverse=True):
        yield other, {}
        if other in _KEYWORDS:
            yield other, _KEYWORDS[other]


def _fits(agent: SavedAgent, env: VecEnv, source: Source, options: EnvironmentOptions) -> bool:
    stack = options.n_stack if options.n_stack is not None else source.hyperparameters.get("frame_stack") or 0
    saved = agent.observation_space
    # Frames are stacked later, so shapes cannot be compared here.
    is_same = saved is None or bool(stack) or same_shape(saved, env.observation_space)
    is_same = is_same or _takes_goals_joined(agent, env) or _is_transposed(saved, env.observation_space)
    return is_same and (agent.action_space is None or same_shape(agent.action_space, env.action_space))


def _normalised(
    env: VecEnv, source: Source, agent: SavedAgent, options: EnvironmentOptions
) -> tuple[VecEnv, list[str]]:
    """Normalise an environment's observations as in training. Returns it with a note.

    :raises UsageError: when statistics named by the user or the settings are missing or do not fit
    """
    path = options.vec_normalize or source.statistics
    if options.vec_normalize is not None and not options.vec_normalize.is_file():
        raise UsageError(f"there is no file {options.vec_normalize} (--vec-normalize)")
    if path is None:
        if source.needs_statistics:
            where = source.settings / "vecnormalize.pkl" if source.settings is not None else "vecnormalize.pkl"
            raise UsageError(f"VecNormalize stats {where} not found: give their file with --vec-normalize")
        warning = "its observations were normalised, and no statistics are there: give them with --vec-normalize"
        return env, [warning] if not source.hyperparameters and agent.is_normalised else []
    # If the run was trained without statistics, those in its folder belong to another agent.
    if options.vec_normalize is None and source.hyperparameters and not source.needs_statistics:
        return env, []
    statistics = read_statistics(path, safe=source.safe)
    if statistics.norm_obs and not same_shape(statistics.observation_space, env.observation_space):
        shapes = f"{brief(statistics.observation_space)}, the environment gives {brief(env.observation_space)}"
        if options.vec_normalize is None and source.settings is None:
            return env, [f"{path} is not used: it is for {shapes}"]
        raise UsageError(f"{path} does not fit: it is for {shapes}")
    statistics.observation_space, statistics.action_space = env.observation_space, env.action_space
    # Not those of a reset: simulators may run differently after another one.
    observations: Any = create_empty_array(env.observation_space)
    try:
        statistics.set_venv(env)
        statistics.training = statistics.norm_reward = False
        tried = statistics.normalize_obs(observations)
    except Exception as error:  # damaged statistics raise errors of many kinds
        raise UsageError(f"{path} cannot be used: {one_line(error)}") from error
    if not all(np.isfinite(part).all() for part in (tried.values() if isinstance(tried, dict) else [tried])):
        raise UsageError(f"{path} cannot be used: it makes observations NaN or infinite")
    return statistics, [] if source.needs_statistics else [f"observations are normalised by {path}"]


def _is_transposed(saved: spaces.Space[Any] | None, space: spaces.Space[Any]) -> bool:
    """Return whether a space equals another one with images transposed to channels first, as SB3 saves them."""
    if saved is None or space.shape is None or len(space.shape) != 3:
        return False
    return saved.dtype == space.dtype and saved.shape == (space.shape[2], *space.shape[:2])


class _JoinedGoals(VecEnvWrapper):
    """Appends the desired goal to the observation, as HER did before release 1.1."""

    def __init__(self, venv: VecEnv, space: spaces.Box):
        super().__init__(venv, spaces.Box(-np.inf, np.inf, space.shape, np.float32))

    def reset(self) -> Any:
        return self._joined(self.venv.reset())

    def step_wait(self) -> Any:
        observations, *rest = self.venv.step_wait()
        return self._joined(observations), *rest

    @staticmethod
    def _joined(observations: Any) -> np.ndarray[Any, Any]:
        return np.concatenate([observations[key] for key in _JOINED], axis=-1).astype(np.float32)


def _takes_goals_joined(agent: SavedAgent, env: VecEnv) -> bool:
    """Return whether an agent was trained on goals joined to observations, and the environment separates them."""
    saved, space = agent.observation_space, env.observation_space
    if not isinstance(saved, spaces.Box) or not isinstance(space, spaces.Dict):
        return False
    shapes = [space[key].shape or () for key in _JOINED if key in space.spaces]
    return len(shapes) == len(_JOINED) and saved.shape == (sum(sum(shape) for shape in shapes),)


def _call(env_id: str, kwargs: Mapping[str, Any]) -> str:
    words = ", ".join(f"{key}={value}" for key, value in kwargs.items())
    return f"{env_id} ({words})" if words else env_id
