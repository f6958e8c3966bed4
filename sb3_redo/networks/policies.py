"""Scalable twins of the policies of Stable-Baselines3 and SB3-Contrib.

A twin takes its original's settings and those of :class:`~sb3_redo.networks.scalable.Scalable`:

>>> from stable_baselines3 import DQN
>>> DQN(DQNMlpPolicy, "CartPole-v1", policy_kwargs={"width": 0.25}).q_net.q_net[0]
Linear(in_features=4, out_features=16, bias=True)

In the zoo's YAML, name it by its path::

    policy: sb3_redo.networks.DQNMlpPolicy
    policy_kwargs: {width: 0.25}
"""

from typing import Any

import sb3_contrib.crossq.policies as crossq
import sb3_contrib.qrdqn.policies as qrdqn
import sb3_contrib.tqc.policies as tqc
import stable_baselines3.common.policies as actor_critic
import stable_baselines3.dqn.policies as dqn
import stable_baselines3.sac.policies as sac
import stable_baselines3.td3.policies as td3
from stable_baselines3.common.type_aliases import Schedule

from sb3_redo.networks.layers import initialise
from sb3_redo.networks.scalable import Scalable
from sb3_redo.networks.spectral import add_spectral_norm


class _QValues(Scalable):
    def make_q_net(self) -> Any:
        return self._finish(super().make_q_net())  # type: ignore[misc]


class _Quantiles(Scalable):
    def make_quantile_net(self) -> Any:
        return self._finish(super().make_quantile_net())  # type: ignore[misc]


class _ActorAndCritic(Scalable):
    def make_actor(self, features_extractor: Any = None) -> Any:
        return self._finish(super().make_actor(features_extractor))  # type: ignore[misc]

    def make_critic(self, features_extractor: Any = None) -> Any:
        return self._finish(super().make_critic(features_extractor))  # type: ignore[misc]


class _ActorCritic(Scalable):
    mlp_extractor: Any
    action_net: Any
    value_net: Any

    def __init__(self, *spaces_and_schedule: Any, initializer: str | None = None, **settings: Any) -> None:
        if initializer is not None and settings.get("ortho_init"):
            raise ValueError(f"initializer={initializer!r} and ortho_init=True exclude each other: give one of them")
        if initializer is not None:
            settings["ortho_init"] = False
        super().__init__(*spaces_and_schedule, initializer=initializer, **settings)

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()  # type: ignore[misc]
        self._finish(self.mlp_extractor)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.scaling.initializer is not None:
            initialise(self.action_net, self.scaling.initializer)
            initialise(self.value_net, self.scaling.initializer)
        if self.scaling.spectral_norm is not None:
            # After SB3 has initialised the weights. The optimizer keeps the same parameters.
            extractors = [part for name, part in self.named_children() if name.endswith("features_extractor")]
            add_spectral_norm(self.scaling.spectral_norm, self.mlp_extractor, extractors)


class DQNMlpPolicy(_QValues, dqn.MlpPolicy):
    """For DQN on vectors."""


class DQNCnnPolicy(_QValues, dqn.CnnPolicy):
    """For DQN on images."""


class DQNMultiInputPolicy(_QValues, dqn.MultiInputPolicy):
    """For DQN on dictionaries."""


class QRDQNMlpPolicy(_Quantiles, qrdqn.MlpPolicy):
    """For QR-DQN on vectors."""


class QRDQNCnnPolicy(_Quantiles, qrdqn.CnnPolicy):
    """For QR-DQN on images."""


class QRDQNMultiInputPolicy(_Quantiles, qrdqn.MultiInputPolicy):
    """For QR-DQN on dictionaries."""


class SACMlpPolicy(_ActorAndCritic, sac.MlpPolicy):
    """For SAC on vectors."""


class SACCnnPolicy(_ActorAndCritic, sac.CnnPolicy):
    """For SAC on images."""


class SACMultiInputPolicy(_ActorAndCritic, sac.MultiInputPolicy):
    """For SAC on dictionaries."""


class TD3MlpPolicy(_ActorAndCritic, td3.MlpPolicy):
    """For TD3 and DDPG on vectors."""


class TD3CnnPolicy(_ActorAndCritic, td3.CnnPolicy):
    """For TD3 and DDPG on images."""


class TD3MultiInputPolicy(_ActorAndCritic, td3.MultiInputPolicy):
    """For TD3 and DDPG on dictionaries."""


class TQCMlpPolicy(_ActorAndCritic, tqc.MlpPolicy):
    """For TQC on vectors."""


class TQCCnnPolicy(_ActorAndCritic, tqc.CnnPolicy):
    """For TQC on images."""


class TQCMultiInputPolicy(_ActorAndCritic, tqc.MultiInputPolicy):
    """For TQC on dictionaries."""


class CrossQMlpPolicy(_ActorAndCritic, crossq.MlpPolicy):
    """For CrossQ on vectors."""


class ActorCriticMlpPolicy(_ActorCritic, actor_critic.ActorCriticPolicy):
    """For PPO, A2C and TRPO on vectors."""


class ActorCriticCnnPolicy(_ActorCritic, actor_critic.ActorCriticCnnPolicy):
    """For PPO, A2C and TRPO on images."""


class ActorCriticMultiInputPolicy(_ActorCritic, actor_critic.MultiInputActorCriticPolicy):
    """For PPO, A2C and TRPO on dictionaries."""
