"""Observations from a model's replay or rollout buffer, leaving every random stream untouched."""

import warnings
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer, RolloutBuffer
from torch import Tensor

from sb3_redo.sb3.batch import Batch

_STATES = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")


def _buffer_of(model: Any) -> Any:
    """Return the replay buffer or the rollout buffer; ``None`` where there is neither."""
    buffer: BaseBuffer | None = getattr(model, "replay_buffer", None)
    return getattr(model, "rollout_buffer", None) if buffer is None else buffer


def has_buffer(model: BaseAlgorithm) -> bool:
    """Return whether a model keeps observations that can be sampled."""
    return _buffer_of(model) is not None


def buffer_capacity(model: BaseAlgorithm) -> int:
    """Return how many observations the buffer can hold, over all environments."""
    buffer = _buffer_of(model)
    return int(buffer.buffer_size * buffer.n_envs)


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
    if not isinstance(_buffer_of(model), RolloutBuffer):
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
    return 0 if buffer is None else int(buffer.size() * buffer.n_envs)


def sample_batch(model: BaseAlgorithm, batch_size: int, seed: tuple[int, int]) -> Batch:
    """Draw stored observations without replacement, as training sees them.

    Reads the buffer's arrays, because its ``sample()`` draws from NumPy's global generator and, for hindsight
    replay, calls the environment. What a replay buffer holds is normalised by ``VecNormalize`` as it stands, whose
    statistics stay as they are; a rollout buffer holds what was normalised already.

    :param batch_size: at most :func:`stored_observations`
    :param seed: of this draw alone: the callback's seed and the gradient step
    :raises ValueError: when the buffer holds fewer observations
    """
    buffer, stored = _buffer_of(model), stored_observations(model)
    if batch_size > stored:
        kind = "rollout" if isinstance(buffer, RolloutBuffer) else "replay"
        raise ValueError(
            f"batch_size is {batch_size}, but the {kind} buffer holds {stored} observations: "
            "collect more first, ask for fewer or pass observations="
        )
    rows, environments = np.divmod(np.random.default_rng(seed).choice(stored, batch_size, replace=False), buffer.n_envs)
    pick = _Picker(buffer, rows, environments)
    seen: Any
    if isinstance(buffer.observations, dict):
        seen = {key: pick(array) for key, array in buffer.observations.items()}
    else:
        seen = pick(buffer.observations)
    if not isinstance(buffer, RolloutBuffer):
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
