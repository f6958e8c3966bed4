"""Observations from a model's replay buffer, leaving every random stream untouched."""

from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm


class Batch(NamedTuple):
    """What a policy's networks are run on.

    :param observations: as the networks take them: a tensor [batch, ...] or a dictionary of such
    :param actions: for critics of continuous actions, [batch, action size] in [-1, 1], else unused
    """

    observations: Any
    actions: torch.Tensor


def has_buffer(model: BaseAlgorithm) -> bool:
    """Whether a model keeps observations that can be sampled."""
    return getattr(model, "replay_buffer", None) is not None


def buffer_capacity(model: BaseAlgorithm) -> int:
    """How many observations the replay buffer can hold, over all environments."""
    buffer = model.replay_buffer  # type: ignore[attr-defined]
    return int(buffer.buffer_size * buffer.n_envs)


def stored_observations(model: BaseAlgorithm) -> int:
    """How many observations the replay buffer holds now, over all environments."""
    buffer = model.replay_buffer  # type: ignore[attr-defined]
    return int(buffer.size() * buffer.n_envs)


def sample_batch(model: BaseAlgorithm, batch_size: int, seed: tuple[int, int]) -> Batch:
    """Draw stored observations without replacement, as training sees them.

    Reads the buffer's arrays, because its ``sample()`` draws from NumPy's global generator and, for hindsight
    replay, calls the environment. Observations are normalised by ``VecNormalize`` as it stands; its statistics
    stay as they are.

    :param batch_size: at most :func:`stored_observations`
    :param seed: of this draw alone: the callback's seed and the gradient step
    :raises ValueError: when the buffer holds fewer observations
    """
    stored = stored_observations(model)
    if batch_size > stored:
        raise ValueError(
            f"batch_size is {batch_size}, but the replay buffer holds {stored} observations: "
            "collect more first, ask for fewer or pass observations="
        )
    buffer = model.replay_buffer  # type: ignore[attr-defined]
    generator = np.random.default_rng(seed)
    rows, environments = np.divmod(generator.choice(stored, batch_size, replace=False), buffer.n_envs)

    def take(array: np.ndarray) -> np.ndarray:
        return array[rows, environments]

    stored_arrays = buffer.observations
    is_dict = isinstance(stored_arrays, dict)
    picked = {key: take(array) for key, array in stored_arrays.items()} if is_dict else take(stored_arrays)
    seen = buffer._normalize_obs(picked, model.get_vec_normalize_env())
    observations = {key: buffer.to_torch(array) for key, array in seen.items()} if is_dict else buffer.to_torch(seen)
    return Batch(observations, buffer.to_torch(take(buffer.actions)))


def torch_generator(seed: tuple[int, int]) -> torch.Generator:
    """A generator on the CPU for one recycling step."""
    state = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
