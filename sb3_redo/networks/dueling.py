"""Dueling networks (Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning")."""

from typing import Any

import stable_baselines3.dqn.policies as dqn
from stable_baselines3.common.torch_layers import create_mlp
from torch import Tensor, nn

from sb3_redo.networks.policies import DQNCnnPolicy, DQNMlpPolicy, DQNMultiInputPolicy


class DuelingQNetwork(dqn.QNetwork):
    """A network of Q-values whose features feed a value and advantages: ``Q = V + A - mean(A)``.

    Value and advantages each have their own hidden layers, those of ``net_arch``. For images SB3's default is none.

    :param settings: of :class:`stable_baselines3.dqn.policies.QNetwork`
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        del self.q_net
        actions = int(self.action_space.n)
        self.value = nn.Sequential(*create_mlp(self.features_dim, 1, self.net_arch, self.activation_fn))
        self.advantage = nn.Sequential(*create_mlp(self.features_dim, actions, self.net_arch, self.activation_fn))

    def forward(self, obs: Any) -> Tensor:
        """Return Q-values, [batch, actions]."""
        features = self.extract_features(obs, self.features_extractor)
        advantage: Tensor = self.advantage(features)
        value: Tensor = self.value(features)
        return value + advantage - advantage.mean(1, keepdim=True)


class _Dueling(dqn.DQNPolicy):
    def make_q_net(self) -> Any:
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return DuelingQNetwork(**net_args).to(self.device)


# In the method order after our make_q_net, which finishes this network, and before SB3's.
class DuelingDQNMlpPolicy(DQNMlpPolicy, _Dueling):
    """For DQN and its variants on vectors."""


class DuelingDQNCnnPolicy(DQNCnnPolicy, _Dueling):
    """For DQN and its variants on images."""


class DuelingDQNMultiInputPolicy(DQNMultiInputPolicy, _Dueling):
    """For DQN and its variants on dictionaries."""
