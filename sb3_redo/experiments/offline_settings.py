"""What there is to set of a training on stored transitions."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sb3_redo.validation import non_negative_number, one_of, optional_positive_number, positive_integer

BOOTSTRAPPED, FIXED, TEACHER = TARGETS = ("bootstrapped", "fixed", "teacher")
FRESH, PRETRAINED = STUDENTS = ("fresh", "pretrained")


@dataclass(frozen=True)
class OfflineSettings:
    """A DQN's Q-network that is trained on stored transitions, without an environment; checked when it is made.

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
    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range, an unknown name, or a teacher that is missing or of no use
    """

    agent: str
    replay_buffer: str
    targets: str = BOOTSTRAPPED
    teacher: str | None = None
    student: str = FRESH
    gradient_steps: int = 15000
    batch_size: int | None = None
    learning_rate: float | None = None
    target_update_interval: int = 1000
    dormancy_threshold: float = 0.025
    measuring_period: int = 500
    score_batch_size: int = 256

    def __post_init__(self) -> None:
        one_of("targets", self.targets, TARGETS)
        one_of("student", self.student, STUDENTS)
        for name in ("agent", "replay_buffer", "teacher"):
            path = getattr(self, name)
            if not (isinstance(path, str) and path) and not (name == "teacher" and path is None):
                raise TypeError(f"{name} must be a path, got {path!r}")
        if self.targets == TEACHER and self.teacher is None:
            raise ValueError("teacher is missing: targets are its values")
        if self.targets != TEACHER and self.teacher is not None:
            raise ValueError(f"teacher has no part in targets {self.targets!r}: leave it out")
        for name in ("gradient_steps", "target_update_interval", "measuring_period", "score_batch_size"):
            object.__setattr__(self, name, positive_integer(name, getattr(self, name)))
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", positive_integer("batch_size", self.batch_size))
        optional_positive_number("learning_rate", self.learning_rate)
        non_negative_number("dormancy_threshold", self.dormancy_threshold)
        if self.gradient_steps % self.measuring_period:
            raise ValueError(
                f"measuring_period must divide gradient_steps, got {self.measuring_period} and {self.gradient_steps}: "
                "training ends with a measurement"
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "OfflineSettings":
        """From names and values.

        :raises ValueError: on an unknown name, naming the nearest one, or one that is missing
        """
        for name in settings:
            one_of("a setting of offline training", name, cls.names())
        for name in ("agent", "replay_buffer"):
            if name not in settings:
                raise ValueError(f"{name} is missing: name a file, or a folder below which it is")
        return cls(**settings)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(cls))
