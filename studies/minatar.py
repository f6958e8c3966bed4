"""Registers MinAtar's games (Young & Tian 2019) for sweeps with ``gym_packages: [studies.minatar]``.

They are ``MinAtarBreakout-v1`` and so on, each with its minimal set of actions. MinAtar is under the GPL
and no dependency of this project: ``pip install --no-deps minatar`` installs it for these studies.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor, nn

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


class MinAtar(gym.Env[np.ndarray, np.int64]):
    """Plays one game. Observations are uint8 of 0 and 1, [channels, 10, 10]; actions stick with 0.1, as in MinAtar."""

    def __init__(self, game: str):
        from minatar import Environment

        self.game = Environment(game)
        self.actions = self.game.minimal_action_set()
        height, width, channels = self.game.state_shape()
        self.observation_space = spaces.Box(0, 1, (channels, height, width), np.uint8)
        self.action_space = spaces.Discrete(len(self.actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.game.seed(seed)
        self.game.reset()
        # Else the first sticky action would be the last one of the episode before.
        self.game.last_action = 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, is_over = self.game.act(self.actions[action])
        return self._observation(), float(reward), bool(is_over), False, {}

    def _observation(self) -> np.ndarray:
        return np.ascontiguousarray(self.game.state().transpose(2, 0, 1), dtype=np.uint8)


class SmallCNN(BaseFeaturesExtractor):
    """Builds the network of Young & Tian 2019: a convolution of 3 x 3 and a dense layer.

    :param channels: of the convolution, theirs 16
    :param features_dim: neurons of the dense layer, theirs 128
    """

    def __init__(self, observation_space: spaces.Box, channels: int = 16, features_dim: int = 128):
        super().__init__(observation_space, features_dim)
        convolution = nn.Sequential(nn.Conv2d(observation_space.shape[0], channels, 3), nn.ReLU(), nn.Flatten())
        with torch.no_grad():
            flattened = convolution(torch.zeros(1, *observation_space.shape)).shape[1]
        self.network = nn.Sequential(*convolution, nn.Linear(flattened, features_dim), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        features: Tensor = self.network(observations)
        return features


class SmallPolicy(DQNPolicy):
    """Builds a policy for DQN with the hidden layers of :class:`SmallCNN` alone, and takes the settings of both."""

    def __init__(self, *spaces_and_schedule: Any, channels: int = 16, features_dim: int = 128, **settings: Any):
        ours = {
            "net_arch": [],
            "normalize_images": False,
            "features_extractor_class": SmallCNN,
            "features_extractor_kwargs": {"channels": channels, "features_dim": features_dim},
        }
        super().__init__(*spaces_and_schedule, **{**settings, **ours})


for name in GAMES:
    title = name.title().replace("_", "")
    gym.register(f"MinAtar{title}-v1", "studies.minatar:MinAtar", max_episode_steps=10_000, kwargs={"game": name})
