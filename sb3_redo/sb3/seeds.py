"""Derives the seed of each random draw from a seed and a gradient step."""

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm


def seed_of(model: BaseAlgorithm, seed: int | None) -> int:
    """Return the given seed, else the model's, else 0."""
    return (model.seed or 0) if seed is None else seed


def torch_generator(seed: tuple[int, int]) -> torch.Generator:
    """Return a generator on the CPU.

    :param seed: a seed and a gradient step
    """
    state = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def integer_seed(seed: tuple[int, int] | None) -> int:
    """Return a small number that seeds environments and generators.

    :param seed: a seed and a gradient step. Default: random.
    """
    return int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)
