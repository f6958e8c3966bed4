"""Features extractors and policies for Stable-Baselines3 that scale in width.

Experimental: names may change in any release.
"""

from sb3_redo.networks.categorical import (
    CategoricalDQNCnnPolicy,
    CategoricalDQNMlpPolicy,
    CategoricalDQNMultiInputPolicy,
)
from sb3_redo.networks.dueling import DuelingDQNCnnPolicy, DuelingDQNMlpPolicy, DuelingDQNMultiInputPolicy
from sb3_redo.networks.extractors import CombinedExtractor, ImpalaCNN, NatureCNN
from sb3_redo.networks.injection import InjectableDQNCnnPolicy, InjectableDQNMlpPolicy, InjectableDQNMultiInputPolicy
from sb3_redo.networks.optimizers import Adam
from sb3_redo.networks.policies import (
    ActorCriticCnnPolicy,
    ActorCriticMlpPolicy,
    ActorCriticMultiInputPolicy,
    CrossQMlpPolicy,
    DQNCnnPolicy,
    DQNMlpPolicy,
    DQNMultiInputPolicy,
    QRDQNCnnPolicy,
    QRDQNMlpPolicy,
    QRDQNMultiInputPolicy,
    SACCnnPolicy,
    SACMlpPolicy,
    SACMultiInputPolicy,
    TD3CnnPolicy,
    TD3MlpPolicy,
    TD3MultiInputPolicy,
    TQCCnnPolicy,
    TQCMlpPolicy,
    TQCMultiInputPolicy,
)

__all__ = [
    "ActorCriticCnnPolicy",
    "ActorCriticMlpPolicy",
    "ActorCriticMultiInputPolicy",
    "Adam",
    "CategoricalDQNCnnPolicy",
    "CategoricalDQNMlpPolicy",
    "CategoricalDQNMultiInputPolicy",
    "CombinedExtractor",
    "CrossQMlpPolicy",
    "DQNCnnPolicy",
    "DQNMlpPolicy",
    "DQNMultiInputPolicy",
    "DuelingDQNCnnPolicy",
    "DuelingDQNMlpPolicy",
    "DuelingDQNMultiInputPolicy",
    "ImpalaCNN",
    "InjectableDQNCnnPolicy",
    "InjectableDQNMlpPolicy",
    "InjectableDQNMultiInputPolicy",
    "NatureCNN",
    "QRDQNCnnPolicy",
    "QRDQNMlpPolicy",
    "QRDQNMultiInputPolicy",
    "SACCnnPolicy",
    "SACMlpPolicy",
    "SACMultiInputPolicy",
    "TD3CnnPolicy",
    "TD3MlpPolicy",
    "TD3MultiInputPolicy",
    "TQCCnnPolicy",
    "TQCMlpPolicy",
    "TQCMultiInputPolicy",
]
