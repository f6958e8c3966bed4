"""Observations from a model's replay or rollout buffer, leaving every random stream untouched."""

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
    """Return the replay buffer or the rollout buffer; ``None`` where there is neither."""
    buffer = getattr(model, "replay_buffer", None)
    return getattr(model, "rollout_buffer", None) if buffer is None else buffer


def has_buffer(model: BaseAlgorithm) -> bool:
    """Return whether a model keeps observations that can be sampled."""
    return _buffer_of(model) is not None


def buffer_capacity(model: BaseAlgorithm) -> int:
    """Return how many observations the buffer can hold, over all environments."""
    buffer = _buffer_of(model)
    if hasattr(buffer, "buffer_size"):
        return int(buffer.buffer_size) * getattr(buffer, "n_envs", 1)
    return int(getattr(model, "buffer_size", sys.maxsize))


def available_batch_size(model: BaseAlgorithm, batch_size: int, consequence: str) -> int:
    """Return the observations per measurement, as far as the buffer can ever hold that many.

    :param batch_size: asked for
    :param consequence: of fewer, in words, with {} for their number: warned of where a rollout has fewer
    :raises RuntimeError: when there is no buffer, or a replay buffer never holds that many
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
    """Return how many observations the buffer holds now, over all environments."""
    buffer = _buffer_of(model)
    if buffer is None:
        return 0
    if hasattr(buffer, "size"):
        return int(buffer.size()) * getattr(buffer, "n_envs", 1)
    return len(buffer) if hasattr(buffer, "__len__") else min(model.num_timesteps, buffer_capacity(model))


def sample_batch(model: BaseAlgorithm, batch_size: int, seed: tuple[int, int]) -> Batch:
    """Draw stored observations without replacement, as training sees them.

    Reads the arrays of SB3's buffers, because their ``sample()`` draws from NumPy's global generator and, for hindsight
    replay, calls the environment. A buffer with methods of its own is asked, see
    :func:`~sb3_redo.sb3.own_buffers.sample_own`. What a replay buffer holds is normalised by ``VecNormalize`` as it
    stands, whose statistics stay as they are; a rollout buffer holds what was normalised already.

    :param batch_size: at most :func:`stored_observations`
    :param seed: of this draw alone: the callback's seed and the gradient step
    :raises ValueError: when the buffer holds fewer observations
    :raises RuntimeError: when a buffer of an own class does not give observations of the model's observation space
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

    :param rows: in the order in which they were collected
    :param environments: of each row picked
    """

    def __init__(self, buffer: Any, rows: np.ndarray, environments: np.ndarray):
        self.rows, self.environments = rows, environments
        self.torch = buffer.to_torch
        # A rollout buffer that was trained on has its arrays flattened, one environment after the other.
        self.flat = environments * buffer.buffer_size + rows if getattr(buffer, "generator_ready", False) else None

    def __call__(self, array: np.ndarray, environment_axis: int = 1) -> np.ndarray:
        """From [rows, environments, ...], unless the environments lie along another axis; [picked, ...]."""
        picked: np.ndarray = (
            np.moveaxis(array, environment_axis, 1)[self.rows, self.environments]
            if self.flat is None
            else array[self.flat]
        )
        return picked
