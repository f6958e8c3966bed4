"""Declares the settings of a classifier's training."""

from dataclasses import dataclass
from typing import Annotated

from sb3_redo.experiments.settings import Count, OptionalCount, Settings, Sizes, choice
from sb3_redo.validation import flag, non_negative_number, optional_positive_number


@dataclass(frozen=True)
class ClassifierSettings(Settings):
    """Declares the settings of a classifier that is trained on changing labels.

    :param targets: ``"shuffled"`` draws new labels for every task, ``"fixed"`` keeps the first labels
    :param redo: whether dormant neurons are recycled
    :param data: images, by the names of :func:`~sb3_redo.environments.images.load_images`
    :param folder: of the image files
    :param n_images: number of images, from the first; by default all
    :param first_labels: of the first task: ``"own"`` are the images' classes, ``"drawn"`` are uniform and independent
        of the image, as in all later tasks
    :param channels: of 3x3 convolutions, each with a ReLU and a pooling that halves height and width; none if empty
    :param layers: neurons of the hidden layers behind them, each with a ReLU
    :param optimizer: ``"adam"`` with PyTorch's settings, or ``"sgd"`` without momentum. ``"adam_default"`` and
        ``"adam_tuned"`` are from Lyle et al. 2023 (appendix A.1). ``"adam_default"`` has an epsilon of 1e-9.
        ``"adam_tuned"`` has an epsilon of 1e-3 inside the root, and a decay of 0.9 for the second moment.
    :param learning_rate: at the first gradient step
    :param decay: whether the learning rate falls linearly to 0 at the last gradient step; it is constant if not
    :param loss: ``"cross_entropy"``, or ``"squared_error"``: the squared distance of the outputs from one-hot labels,
        summed over the classes and averaged over the images
    :param tasks: number of tasks, with new labels or with the first ones
    :param steps: gradient steps of a task
    :param batch_size: images of a gradient step, drawn with replacement
    :param period: in gradient steps; at its end dormancy and accuracy are measured, then dormant neurons are recycled
    :param score_batch_size: images for the scores of recycling; all if there are fewer
    :param optimizer_state: see :class:`~sb3_redo.ReDoCallback`
    """

    training = "the classifier"

    targets: Annotated[str, choice("fixed", "shuffled")] = "shuffled"
    redo: Annotated[bool, flag] = False
    data: str = "digits"
    folder: str | None = None
    n_images: OptionalCount = None
    first_labels: Annotated[str, choice("drawn", "own")] = "drawn"
    channels: Sizes = ()
    layers: Sizes = (128, 128, 128)
    optimizer: Annotated[str, choice("adam", "adam_default", "adam_tuned", "sgd")] = "adam"
    learning_rate: Annotated[float, optional_positive_number] = 1e-3
    decay: Annotated[bool, flag] = False
    loss: Annotated[str, choice("cross_entropy", "squared_error")] = "cross_entropy"
    tasks: Count = 20
    steps: Count = 700
    batch_size: Count = 64
    dormancy_threshold: Annotated[float, non_negative_number] = 0.025
    period: Count = 100
    score_batch_size: Count = 256
    optimizer_state: Annotated[str, choice("clear", "restart", "match")] = "match"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channels and not self.layers:
            raise ValueError("channels and layers are both empty: without a hidden layer no neuron can be dormant")
        if self.steps % self.period:
            raise ValueError(f"period must divide steps, got {self.period} and {self.steps}: a task ends with one")

    @property
    def gradient_steps(self) -> int:
        """Return the gradient steps of the whole training."""
        return self.tasks * self.steps
