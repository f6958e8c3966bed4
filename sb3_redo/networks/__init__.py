"""Networks whose width is one number: features extractors and policies for Stable-Baselines3."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_redo.networks.categorical import CategoricalDQNCnnPolicy as CategoricalDQNCnnPolicy
    from sb3_redo.networks.categorical import CategoricalDQNMlpPolicy as CategoricalDQNMlpPolicy
    from sb3_redo.networks.categorical import CategoricalDQNMultiInputPolicy as CategoricalDQNMultiInputPolicy
    from sb3_redo.networks.dueling import DuelingDQNCnnPolicy as DuelingDQNCnnPolicy
    from sb3_redo.networks.dueling import DuelingDQNMlpPolicy as DuelingDQNMlpPolicy
    from sb3_redo.networks.dueling import DuelingDQNMultiInputPolicy as DuelingDQNMultiInputPolicy
    from sb3_redo.networks.extractors import CombinedExtractor as CombinedExtractor
    from sb3_redo.networks.extractors import ImpalaCNN as ImpalaCNN
    from sb3_redo.networks.extractors import NatureCNN as NatureCNN
    from sb3_redo.networks.injection import InjectableDQNCnnPolicy as InjectableDQNCnnPolicy
    from sb3_redo.networks.injection import InjectableDQNMlpPolicy as InjectableDQNMlpPolicy
    from sb3_redo.networks.injection import InjectableDQNMultiInputPolicy as InjectableDQNMultiInputPolicy
    from sb3_redo.networks.optimizers import Adam as Adam
    from sb3_redo.networks.policies import ActorCriticCnnPolicy as ActorCriticCnnPolicy
    from sb3_redo.networks.policies import ActorCriticMlpPolicy as ActorCriticMlpPolicy
    from sb3_redo.networks.policies import ActorCriticMultiInputPolicy as ActorCriticMultiInputPolicy
    from sb3_redo.networks.policies import CrossQMlpPolicy as CrossQMlpPolicy
    from sb3_redo.networks.policies import DQNCnnPolicy as DQNCnnPolicy
    from sb3_redo.networks.policies import DQNMlpPolicy as DQNMlpPolicy
    from sb3_redo.networks.policies import DQNMultiInputPolicy as DQNMultiInputPolicy
    from sb3_redo.networks.policies import QRDQNCnnPolicy as QRDQNCnnPolicy
    from sb3_redo.networks.policies import QRDQNMlpPolicy as QRDQNMlpPolicy
    from sb3_redo.networks.policies import QRDQNMultiInputPolicy as QRDQNMultiInputPolicy
    from sb3_redo.networks.policies import SACCnnPolicy as SACCnnPolicy
    from sb3_redo.networks.policies import SACMlpPolicy as SACMlpPolicy
    from sb3_redo.networks.policies import SACMultiInputPolicy as SACMultiInputPolicy
    from sb3_redo.networks.policies import TD3CnnPolicy as TD3CnnPolicy
    from sb3_redo.networks.policies import TD3MlpPolicy as TD3MlpPolicy
    from sb3_redo.networks.policies import TD3MultiInputPolicy as TD3MultiInputPolicy
    from sb3_redo.networks.policies import TQCCnnPolicy as TQCCnnPolicy
    from sb3_redo.networks.policies import TQCMlpPolicy as TQCMlpPolicy
    from sb3_redo.networks.policies import TQCMultiInputPolicy as TQCMultiInputPolicy

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


def __getattr__(name: str) -> Any:
    # Imported when asked for, as in sb3_redo: the names alone must not cost torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    rooms = {"Adam": "optimizers", "CategoricalDQN": "categorical"}
    rooms |= {"DuelingDQN": "dueling", "InjectableDQN": "injection", "Policy": "policies"}
    room = next((room for part, room in rooms.items() if part in name), "extractors")
    return getattr(import_module(f"sb3_redo.networks.{room}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
