"""Draws observations from custom buffers by their own methods, and restores the buffers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import Tensor

from sb3_redo.forward.contexts import everything_seeded
from sb3_redo.forward.state import ObjectState
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.seeds import integer_seed

# Our DrQ wraps SB3's buffer in one that augments samples. Dormancy is measured on the stored observations.
_KNOWN_PACKAGES = ("stable_baselines3", "sb3_contrib", "sb3_redo")


def is_read_directly(buffer: Any) -> bool:
    """Return whether a buffer's observations can be read from arrays [rows, environments, ...], as SB3's."""
    arrays = getattr(buffer, "observations", None)
    arrays = arrays.values() if isinstance(arrays, Mapping) else (arrays,)
    return all(isinstance(array, np.ndarray) for array in arrays) and _is_known(buffer, *_methods_of(buffer))


def _methods_of(buffer: Any) -> tuple[str, ...]:
    """Return the names of the methods through which training reads a buffer."""
    if isinstance(buffer, HerReplayBuffer):
        return ("_get_real_samples",)  # relabelled transitions ask the environment for rewards
    return ("get" if is_rollout(buffer) else "sample", "_get_samples")


def is_rollout(buffer: Any) -> bool:
    """Return whether a buffer holds rollouts, and returns batches by ``get``."""
    return isinstance(buffer, RolloutBuffer) or (hasattr(buffer, "get") and not hasattr(buffer, "sample"))


def _is_known(buffer: Any, *methods: str) -> bool:
    modules = (getattr(getattr(buffer, name, None), "__module__", None) or "" for name in methods)
    return all(module.partition(".")[0] in _KNOWN_PACKAGES for module in modules)


def sample_own(
    model: BaseAlgorithm, buffer: Any, rows: np.ndarray, environments: np.ndarray, seed: tuple[int, int]
) -> Batch:
    """Draw observations from a buffer as training does. Changes neither the buffer nor a random generator.

    :param rows: the rows to draw, if the buffer does not choose them
    :param environments: the environment of each row. SB3's replay buffers draw them again.
    :param seed: of the buffer's own draws
    :raises RuntimeError: when observations cannot be drawn, or do not fit the observation space
    """
    try:
        with restored(buffer, integer_seed(seed)):
            return _batch(model, _samples(model, buffer, rows, environments), len(rows))
    except Exception as error:
        raise RuntimeError(
            f"observations cannot be drawn from a {type(buffer).__name__} ({type(error).__name__}: {error}): pass "
            "observations=, a fixed set to measure on, to DormancyCallback, ReDoCallback or measure_dormancy"
        ) from error


def _samples(model: BaseAlgorithm, buffer: Any, rows: np.ndarray, environments: np.ndarray) -> Any:
    env = model.get_vec_normalize_env()
    if isinstance(buffer, HerReplayBuffer):
        return buffer._get_real_samples(rows, environments, env)
    if hasattr(buffer, "hidden_states_pi"):
        # The first batch flattens all arrays. Each row is drawn as a separate sequence with its own states.
        next(iter(buffer.get(1)))
        every = buffer.buffer_size * buffer.n_envs
        return buffer._get_samples(environments * buffer.buffer_size + rows, np.ones((every, 1)))
    if is_rollout(buffer):
        return next(iter(buffer.get(len(rows))))
    # Some buffers have rows that must not be drawn. Their own methods avoid them.
    chooses = getattr(buffer, "optimize_memory_usage", False) or not _is_known(buffer, "sample")
    return buffer.sample(len(rows), env=env) if chooses else buffer._get_samples(rows, env=env)


def _batch(model: BaseAlgorithm, samples: Any, size: int) -> Batch:
    """Return copies, because buffers may reuse the returned memory."""

    def copied(value: Any) -> Tensor:
        return torch.as_tensor(value).detach().clone().to(model.device)

    observations, actions = samples.observations, getattr(samples, "actions", None)
    if isinstance(observations, Mapping):
        observations = {key: copied(value) for key, value in observations.items()}
    else:
        observations = copied(observations)
    check_observations(observations, model.observation_space, size)
    states: tuple[Tensor, ...] = ()
    memories: RNNStates | None = getattr(samples, "lstm_states", None)
    if memories is not None:
        inner = (copied(state).transpose(0, 1).contiguous() for memory in memories for state in memory)
        states = (*inner, copied(samples.episode_starts).reshape(-1))
    return Batch(observations, None if actions is None else copied(actions), states)


def check_observations(observations: Any, space: spaces.Space[Any], size: int) -> None:
    """Check that observations fit a space.

    :param observations: a tensor [size, ...] or a dictionary of tensors
    :raises ValueError, LookupError: when they do not fit
    """
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            check_observations(observations[key], part, size)
        return
    shape = tuple(observations.shape)
    if shape[1:] not in (space.shape, get_obs_shape(space)) or shape[0] != size:
        raise ValueError(f"observations are {list(shape)} and not {[size, *get_obs_shape(space)]}")
    if np.issubdtype(space.dtype, np.floating) and not observations.is_floating_point():
        raise ValueError(f"observations are {observations.dtype} where the observation space is of {space.dtype}")


@contextmanager
def restored(owner: Any, seed: int) -> Iterator[None]:
    """Restore an object's contents afterwards: attributes, lists, dictionaries, arrays and random generators.

    :param seed: of all random streams within this context, including the object's own generators
    :raises TypeError: when it holds an iterator or a queue, whose items cannot be put back
    """
    state = ObjectState(owner, (gym.Env, VecEnv, BaseAlgorithm))
    if state.iterators:
        raise TypeError(f"it holds a {type(state.iterators[0]).__name__}, which cannot be put back")
    state.seed(seed)
    try:
        with everything_seeded(seed):
            yield
    finally:
        state.put_back()
