"""What there is to set of a classifier's training."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sb3_redo.validation import (
    flag,
    listed,
    non_negative_number,
    one_of,
    optional_positive_number,
    positive_integer,
)

TARGETS = ("fixed", "shuffled")
FIRST_LABELS = ("drawn", "own")
OPTIMIZERS = ("adam", "adam_default", "adam_tuned", "sgd")
OPTIMIZER_STATES = ("clear", "restart", "match")


@dataclass(frozen=True)
class ClassifierSettings:
    """A classifier that is trained on one labelling of its images after another, checked when it is made.

    :param targets: ``"shuffled"`` draws the labels of all images anew for every task, ``"fixed"`` keeps the first
    :param redo: whether dormant neurons are recycled
    :param data: images, by the names of :func:`~sb3_redo.environments.images.load_images`
    :param folder: where their files are
    :param n_images: the first so many of them; all if not given
    :param first_labels: of the first task: ``"own"`` are the images' classes, ``"drawn"`` are uniform and independent
        of the image, as those of all later tasks are
    :param channels: of 3x3 convolutions, each with a ReLU and a pooling that halves height and width; none if empty
    :param layers: neurons of the hidden layers behind them, each with a ReLU
    :param optimizer: ``"adam"`` with PyTorch's own settings, ``"adam_default"`` and ``"adam_tuned"`` with those that
        Lyle et al. 2023 compare (appendix A.1): an epsilon of 1e-9, and for the latter a decay of 0.9 for the second
        moment and an epsilon of 1e-3 inside the root; or ``"sgd"`` without momentum
    :param tasks: labellings, or as many times the first one
    :param steps: gradient steps of a task
    :param batch_size: images of a gradient step, drawn with replacement
    :param period: in gradient steps; dormancy and accuracy are measured at its end, and then dormant neurons recycled
    :param score_batch_size: images on which recycling measures scores; all where there are fewer
    :param optimizer_state: see :class:`~sb3_redo.ReDoCallback`
    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range or an unknown name
    """

    targets: str = "shuffled"
    redo: bool = False
    data: str = "digits"
    folder: str | None = None
    n_images: int | None = None
    first_labels: str = "drawn"
    channels: tuple[int, ...] = ()
    layers: tuple[int, ...] = (128, 128, 128)
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    tasks: int = 20
    steps: int = 700
    batch_size: int = 64
    dormancy_threshold: float = 0.025
    period: int = 100
    score_batch_size: int = 256
    optimizer_state: str = "match"

    def __post_init__(self) -> None:
        for name, choices in (
            ("targets", TARGETS),
            ("first_labels", FIRST_LABELS),
            ("optimizer", OPTIMIZERS),
            ("optimizer_state", OPTIMIZER_STATES),
        ):
            one_of(name, getattr(self, name), choices)
        flag("redo", self.redo)
        if self.n_images is not None:
            positive_integer("n_images", self.n_images)
        for name in ("tasks", "steps", "batch_size", "period", "score_batch_size"):
            object.__setattr__(self, name, positive_integer(name, getattr(self, name)))
        for name in ("channels", "layers"):
            sizes = tuple(positive_integer(name, size) for size in listed(name, getattr(self, name)))
            object.__setattr__(self, name, sizes)
        non_negative_number("dormancy_threshold", self.dormancy_threshold)
        optional_positive_number("learning_rate", self.learning_rate)
        if not self.channels and not self.layers:
            raise ValueError("channels and layers are both empty: without a hidden layer no neuron can be dormant")
        if self.steps % self.period:
            raise ValueError(f"period must divide steps, got {self.period} and {self.steps}: a task ends with one")

    @property
    def all_steps(self) -> int:
        """Gradient steps of the whole training."""
        return self.tasks * self.steps

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "ClassifierSettings":
        """From names and values.

        :raises ValueError: on an unknown name, naming the nearest one
        """
        for name in settings:
            one_of("a setting of the classifier", name, cls.names())
        return cls(**settings)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(cls))
