"""Double DQN (van Hasselt, Guez & Silver 2016, "Deep Reinforcement Learning with Double Q-learning")."""

from typing import Any

import torch
from stable_baselines3 import DQN
from torch import Tensor, nn


class DoubleDQN(DQN):
    """DQN whose target network values the action that the online network likes best in the next observation.

    Settings, policies and everything else are those of :class:`stable_baselines3.DQN`.
    """

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """As SB3's, with other targets: ``r + gamma * Q_target(s', argmax_a Q(s', a))``."""
        target = self.q_net_target
        self.q_net_target = _Chosen(self.q_net, target)  # type: ignore[assignment]
        try:
            super().train(gradient_steps, batch_size)
        finally:
            self.q_net_target = target


class _Chosen:
    """Values of the target network for the actions that the online network chooses, minus infinity for the others.

    SB3 takes the largest of what its target network says.
    """

    def __init__(self, online: Any, target: nn.Module):
        self.online = online
        self.target = target

    def __call__(self, observations: Any) -> Tensor:
        # Choosing is no training: batch norm is not to learn from the next observations, nor dropout to choose.
        self.online.set_training_mode(False)
        chosen = self.online(observations).argmax(1, keepdim=True)
        self.online.set_training_mode(True)
        values: Tensor = self.target(observations)
        return torch.full_like(values, -torch.inf).scatter(1, chosen, values.gather(1, chosen))
