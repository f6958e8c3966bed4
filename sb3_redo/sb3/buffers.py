"""Reads observations from a model's replay or rollout buffer, without changing a random generator."""

import sys
import warnings
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.own_buffers import is_read_directly, is_rollout, sample_own

_STATES = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")


def _buffer_of(model: Any) -> Any:
    """Return the replay buffer or the rollout buffer, or ``None`` without either."""
    buffer = getattr(model, "replay_buffer", None)
    return getattr(model, "rollout_buffer", None) if buffer is None else buffer


def has_buffer(model: BaseAlgorithm) -> bool:
    """Return whether a model keeps observations that can be sampled."""
    return _buffer_of(model) is not None


def buffer_capacity(model: BaseAlgorithm) -> int:
    """Return the buffer's capacity in observations, over all environments."""
    buffer = _buffer_of(model)
    if hasattr(buffer, "buffer_size"):
        return int(buffer.buffer_size) * getattr(buffer, "n_envs", 1)
    return int(getattr(model, "buffer_size", sys.maxsize))


def available_batch_size(model: BaseAlgorithm, batch_size: int, consequence: str) -> int:
    """Return the number of observations per measurement: ``batch_size``, or the rollout's if it has fewer.

    :param batch_size: the requested number
    :param consequence: effect of fewer observations, for the warning, with {} for their number
    :raises RuntimeError: when there is no buffer, or a replay buffer can never hold that many
    """
    if not has_buffer(model):
        raise RuntimeError(f"{type(model).__name__} has no buffer to measure on")
    capacity = buffer_capacity(model)
    if batch_size <= capacity:
        return batch_size
    if not is_rollout(_buffer_of(model)):
        raise RuntimeError(
            f"batch_size is {batch_size}, but the replay buffer never holds more than {capacity} observations: "
            "choose a smaller batch_size or a larger buffer_size"
        )
    warnings.warn(
        f"a rollout holds {capacity} observations and batch_size is {batch_size}: {consequence.format(capacity)}. "
        "More n_steps or environments give more.",
        RuntimeWarning,
        stacklevel=3,
    )
    return capacity


def stored_observations(model: BaseAlgorithm) -> int:
    """Return the number of observations in the buffer, over all environments."""
    buffer = _buffer_of(model)
    if buffer is None:
        return 0
    if hasattr(buffer, "size"):
        return int(buffer.size()) * getattr(buffer, "n_envs", 1)
    return len(buffer) if hasattr(buffer, "__len__") else min(model.num_timesteps, buffer_capacity(model))


def sample_batch(model: BaseAlgorithm, batch_size: int, seed: tuple[int, int]) -> Batch:
    """Draw stored observations without replacement, prepared as in training.

    Reads the arrays of SB3's buffers: their ``sample()`` draws from NumPy's global generator, and hindsight replay's
    calls the environment. A buffer with its own methods is sampled by them, see
    :func:`~sb3_redo.sb3.own_buffers.sample_own`. ``VecNormalize`` normalises a replay buffer's observations with its
    current statistics, which do not change. A rollout buffer holds normalised observations.

    :param batch_size: at most :func:`stored_observations`
    :param seed: of this draw: the callback's seed and the gradient step
    :raises ValueError: when the buffer holds fewer observations
    :raises RuntimeError: when a custom buffer gives observations that do not fit the observation space
    """
    buffer, stored = _buffer_of(model), stored_observations(model)
    if batch_size > stored:
        kind = "rollout" if is_rollout(buffer) else "replay"
        raise ValueError(
            f"batch_size is {batch_size}, but the {kind} buffer holds {stored} observations: "
            "collect more first, ask for fewer or pass observations="
        )
    chosen = np.random.default_rng(seed).choice(stored, batch_size, replace=False)
    rows, environments = np.divmod(chosen, getattr(buffer, "n_envs", 1))
    if not is_read_directly(buffer):
        return sample_own(model, buffer, rows, environments, seed)
    pick = _Picker(buffer, rows, environments)
    seen: Any
    if isinstance(buffer.observations, dict):
        seen = {key: pick(array) for key, array in buffer.observations.items()}
    else:
        seen = pick(buffer.observations)
    if not is_rollout(buffer):
        seen = buffer._normalize_obs(seen, model.get_vec_normalize_env())
    observations = {key: pick.torch(a) for key, a in seen.items()} if isinstance(seen, dict) else pick.torch(seen)
    states: tuple[Tensor, ...] = ()
    if hasattr(buffer, _STATES[0]):
        arrays = [pick(getattr(buffer, name), environment_axis=2) for name in _STATES]
        states = (*map(pick.torch, arrays), pick.torch(pick(buffer.episode_starts).reshape(-1)))
    return Batch(observations, pick.torch(pick(buffer.actions)), states)


class _Picker:
    """Picks the same entries from every array of a buffer.

    :param rows: row numbers, in the order of collection
    :param environments: the environment of each row
    """

    def __init__(self, buffer: Any, rows: np.ndarray, environments: np.ndarray):
        self.rows, self.environments = rows, environments
        self.torch = buffer.to_torch
        # Training on a rollout buffer flattens its arrays, one environment after the other.
        self.flat = environments * buffer.buffer_size + rows if getattr(buffer, "generator_ready", False) else None

    def __call__(self, array: np.ndarray, environment_axis: int = 1) -> np.ndarray:
        """Return the picked entries, [picked, ...], of an array [rows, environments, ...]."""
        picked: np.ndarray = (
            np.moveaxis(array, environment_axis, 1)[self.rows, self.environments]
            if self.flat is None
            else array[self.flat]
        )
        return picked
