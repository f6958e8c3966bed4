"""Declares the settings of a training on stored transitions."""

from dataclasses import dataclass
from typing import Annotated, Any

from sb3_redo.experiments.settings import Count, OptionalCount, Settings, choice, optional
from sb3_redo.validation import non_negative_number, optional_positive_number

BOOTSTRAPPED, FIXED, TEACHER = "bootstrapped", "fixed", "teacher"
FRESH, PRETRAINED = "fresh", "pretrained"


def _path(name: str, value: Any) -> str:
    if value == "":
        raise ValueError(f"{name} is missing: name a file, or a folder that contains it")
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a path, got {value!r}")
    return value


@dataclass(frozen=True)
class OfflineSettings(Settings):
    """Declares the settings of training a DQN's Q-network on stored transitions, without an environment.

    A path is a file, or a folder in which the newest file is used, see :mod:`sb3_redo.experiments.stored`.

    :param agent: a saved DQN. The student gets its policy, discount and gradient clipping, and by default its learning
        rate and batch size.
    :param replay_buffer: the transitions, written by ``save_replay_buffer``
    :param targets: ``"bootstrapped"`` as in DQN, ``"fixed"`` from a random target network that never changes, or
        ``"teacher"`` for a saved agent's values of all actions
    :param teacher: a saved DQN, for ``"teacher"``
    :param student: ``"fresh"`` with weights drawn from the seed, or ``"pretrained"`` with the agent's. Its optimizer is
        new in both cases.
    :param gradient_steps: of the whole training
    :param batch_size: transitions per gradient step. Default: the agent's.
    :param learning_rate: default: the agent's, with its schedule stretched over ``gradient_steps``
    :param target_update_interval: of bootstrapped targets, in gradient steps
    :param dormancy_threshold: a neuron is dormant when its score is at most this
    :param measuring_period: in gradient steps
    :param score_batch_size: number of transitions to measure dormancy and loss on, the same ones each time
    :raises ValueError: also on a missing or unused teacher
    """

    training = "offline training"

    agent: Annotated[str, _path] = ""
    replay_buffer: Annotated[str, _path] = ""
    targets: Annotated[str, choice(BOOTSTRAPPED, FIXED, TEACHER)] = BOOTSTRAPPED
    teacher: Annotated[str | None, optional(_path)] = None
    student: Annotated[str, choice(FRESH, PRETRAINED)] = FRESH
    gradient_steps: Count = 15000
    batch_size: OptionalCount = None
    learning_rate: Annotated[float | None, optional_positive_number] = None
    target_update_interval: Count = 1000
    dormancy_threshold: Annotated[float, non_negative_number] = 0.025
    measuring_period: Count = 500
    score_batch_size: Count = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets == TEACHER and self.teacher is None:
            raise ValueError("teacher is missing: targets are its values")
        if self.targets != TEACHER and self.teacher is not None:
            raise ValueError(f"teacher has no part in targets {self.targets!r}: leave it out")
        if self.gradient_steps % self.measuring_period:
            raise ValueError(
                f"measuring_period must divide gradient_steps, got {self.measuring_period} and {self.gradient_steps}: "
                "training ends with a measurement"
            )
