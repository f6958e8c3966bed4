"""Double DQN (van Hasselt, Guez & Silver 2016, "Deep Reinforcement Learning with Double Q-learning")."""

from typing import Any

import torch
from stable_baselines3 import DQN
from torch import Tensor, nn


class DoubleDQN(DQN):
    """DQN whose target network evaluates the action that the online network chooses in the next observation.

    Settings and policies are those of :class:`stable_baselines3.DQN`.
    """

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Train as SB3 does, with other targets: ``r + gamma * Q_target(s', argmax_a Q(s', a))``."""
        target = self.q_net_target
        self.q_net_target = _Chosen(self.q_net, target)  # type: ignore[assignment]
        try:
            super().train(gradient_steps, batch_size)
        finally:
            self.q_net_target = target


class _Chosen:
    """The target network's values of the actions that the online network chooses, minus infinity for the others.

    SB3 takes the maximum over the target network's values.
    """

    def __init__(self, online: Any, target: nn.Module):
        self.online = online
        self.target = target

    def __call__(self, observations: Any) -> Tensor:
        # Evaluation mode: the choice must not update batch norm or use dropout.
        self.online.set_training_mode(False)
        chosen = self.online(observations).argmax(1, keepdim=True)
        self.online.set_training_mode(True)
        values: Tensor = self.target(observations)
        return torch.full_like(values, -torch.inf).scatter(1, chosen, values.gather(1, chosen))
