"""Published settings of ReDo, by algorithm."""

from typing import Any

from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import TrainFrequencyUnit


def published_settings(model: BaseAlgorithm) -> tuple[str, dict[str, float]] | None:
    """Return the algorithm of Sokar et al. (2023) that a model matches, and their settings of a ``ReDoCallback``.

    For DQN the threshold depends on the replay ratio (google/dopamine issue 226). ``None`` if they did not train the
    algorithm.

    :param model: a model of any algorithm
    """
    if isinstance(model, SAC):
        return "SAC", {"dormancy_threshold": 0.0, "recycling_period": 200_000, "batch_size": 256}
    if isinstance(model, DQN):
        of_dqn = {"recycling_period": 1000, "batch_size": 64}
        if _replay_ratio(model) == 0.25:
            return "DQN at replay ratio 0.25", {"dormancy_threshold": 0.025, **of_dqn}
        return "DQN at other replay ratios", {"dormancy_threshold": 0.1, **of_dqn}
    return None


def _replay_ratio(model: DQN) -> float | None:
    """Return gradient steps per environment step, or ``None`` if ``train_freq`` counts episodes."""
    every: Any = model.train_freq
    if model.gradient_steps < 0:
        return 1.0
    return model.gradient_steps / (every.frequency * model.n_envs) if every.unit == TrainFrequencyUnit.STEP else None
