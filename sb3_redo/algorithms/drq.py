"""DrQ(ε): DrQ (Kostrikov et al. 2020) as Agarwal et al. 2021 run it on Atari 100k, with ε-greedy exploration."""

from typing import Any

import torch
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor
from torch.nn import functional

from sb3_redo.algorithms.double_dqn import DoubleDQN

PADDING = 4
"""Pixels by which an image may be shifted."""

INTENSITY = 0.05
"""Standard deviation of the factor on an image's brightness."""


class DrQ(DoubleDQN):
    """Double DQN that shifts images at random and changes their brightness each time it trains on them.

    The authors' agent also has a dueling network (:class:`~sb3_redo.networks.DuelingDQNCnnPolicy`) and 10-step returns
    (``n_steps=10``). ``zoo_configs/drq.yml`` has all of their settings.

    :raises ValueError: when observations are not images
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        if not is_image_space(self.observation_space):
            raise ValueError(f"DrQ augments images, and observations are {self.observation_space}")

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Train as SB3 does, on augmented batches."""
        buffer: Any = self.replay_buffer
        self.replay_buffer = _Augmented(buffer)  # type: ignore[assignment]
        try:
            super().train(gradient_steps, batch_size)
        finally:
            self.replay_buffer = buffer


class _Augmented:
    """A replay buffer whose samples are augmented, next observations independently of observations."""

    def __init__(self, buffer: Any):
        self.buffer = buffer

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        sample: ReplayBufferSamples = self.buffer.sample(batch_size, env=env)
        return sample._replace(
            observations=augmented(sample.observations), next_observations=augmented(sample.next_observations)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.buffer, name)


def augmented(images: Tensor) -> Tensor:
    """Return images shifted by up to 4 pixels, with the edge repeated, and each multiplied by ``1 + 0.05 · z``.

    z is standard normal, clipped to [-2, 2]. All channels of an image, the frames of a stack, get the same shift.

    :param images: [batch, channels, height, width], of any dtype
    :return: float32, of the same shape and scale
    :raises ValueError: unless there are four axes
    """
    if images.ndim != 4:
        raise ValueError(f"DrQ augments images, [batch, channels, height, width], and got {tuple(images.shape)}")
    batch, _, height, width = images.shape
    padded = functional.pad(images.float(), (PADDING,) * 4, mode="replicate")
    top, left = torch.randint(2 * PADDING + 1, (2, batch, 1), device=images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    picked = torch.arange(batch, device=images.device).view(-1, 1, 1)
    shifted = padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    factors = 1 + INTENSITY * torch.randn(batch, 1, 1, 1, device=images.device).clamp(-2, 2)
    return shifted * factors
