"""Declares what can be set of a training on stored transitions."""

from dataclasses import dataclass
from typing import Annotated, Any

from sb3_redo.experiments.settings import Count, OptionalCount, Settings, choice, optional
from sb3_redo.validation import non_negative_number, optional_positive_number

BOOTSTRAPPED, FIXED, TEACHER = "bootstrapped", "fixed", "teacher"
FRESH, PRETRAINED = "fresh", "pretrained"


def _path(name: str, value: Any) -> str:
    if value == "":
        raise ValueError(f"{name} is missing: name a file, or a folder below which it is")
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a path, got {value!r}")
    return value


@dataclass(frozen=True)
class OfflineSettings(Settings):
    """Declares the settings of a DQN's Q-network that is trained on stored transitions, without an environment.

    Paths are of files, or of folders below which the newest is meant: of agents, that which the zoo has trained; see
    :mod:`sb3_redo.experiments.stored`.

    :param agent: a saved DQN, of which the student has policy, discount, gradient clipping and, unless they are set
        here, learning rate and batch size
    :param replay_buffer: the transitions, as ``save_replay_buffer`` writes them
    :param targets: what the student learns: ``"bootstrapped"`` as DQN does; ``"fixed"`` the same with a target network
        that is drawn at random and never changes; ``"teacher"`` the values that a saved agent gives all actions
    :param teacher: a saved DQN, for these targets alone
    :param student: ``"fresh"`` with weights drawn from the seed, or ``"pretrained"`` with those of the agent; its
        optimizer begins anew either way
    :param gradient_steps: of the whole training
    :param batch_size: transitions of a gradient step; the agent's if not given
    :param learning_rate: the agent's, over the gradient steps as it had it over its own training, if not given
    :param target_update_interval: in gradient steps, of bootstrapped targets
    :param dormancy_threshold: dormant at a score of at most this
    :param measuring_period: in gradient steps
    :param score_batch_size: transitions that dormancy and loss are measured on, the same at every measurement
    :raises ValueError: also on a teacher that is missing or of no use
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
