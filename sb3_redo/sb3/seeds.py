"""Seeds of all random draws, each from a seed and a gradient step."""

import numpy as np
import torch


def torch_generator(seed: tuple[int, int]) -> torch.Generator:
    """A generator on the CPU for one recycling step."""
    state = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def integer_seed(seed: tuple[int, int] | None) -> int:
    """One small number for environments and generators, from a seed and a gradient step or, without, from chance."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)
