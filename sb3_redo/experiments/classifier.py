"""Trains a classifier on changing labels of the same images. Network and optimizer are kept from task to task.

See Sokar et al. 2023, figure 3, and Lyle et al. 2023, section 4.1.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.optim.lr_scheduler import LinearLR

from sb3_redo.dormancy.meter import Meter
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.environments.images import LabelledImages, load_images
from sb3_redo.experiments.classifier_settings import ClassifierSettings
from sb3_redo.experiments.program import DormancyLog, Point
from sb3_redo.forward.contexts import everything_seeded
from sb3_redo.networks import Adam
from sb3_redo.recycling.initial_weights import InitialWeights
from sb3_redo.recycling.step import Surgery, recycle
from sb3_redo.reports.curves import ACCURACY
from sb3_redo.sb3.seeds import torch_generator
from sb3_redo.wiring.tracing import trace_wiring

TASK_ACCURACY = "classifier/task_accuracy"
"""As :data:`~sb3_redo.reports.curves.ACCURACY`, but only at the end of a task."""
CLASSIFIER_LOSS = "classifier/loss"

_MADE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adam_default": partial(Adam, betas=(0.9, 0.999), eps=1e-9, eps_root=0.0),
    "adam_tuned": partial(Adam, betas=(0.9, 0.9), eps=1e-9, eps_root=1e-3),
    "sgd": torch.optim.SGD,
}
_AT_ONCE = 2048


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the squared distance from one-hot labels, summed over the classes and averaged over the images.

    :param outputs: [images, classes]
    :param labels: [images], classes
    """
    return (outputs - one_hot(labels, outputs.shape[1])).square().sum(1).mean()


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
}


class Classifier:
    """Holds a network, its optimizer, and the recycling of its dormant neurons.

    :param inputs: [images, features], or [images, channels, height, width] for convolutions
    """

    def __init__(self, settings: ClassifierSettings, inputs: Tensor, n_classes: int, seed: int):
        self.settings, self.inputs, self.n_classes, self.seed = settings, inputs, n_classes, seed
        with everything_seeded(seed):
            self.network = self._make()
        self.optimizer = _MADE[settings.optimizer](self.network.parameters(), lr=settings.learning_rate)
        self._decay = LinearLR(self.optimizer, 1, 0, settings.gradient_steps) if settings.decay else None
        self._loss = _LOSSES[settings.loss]
        self.initial_weights = InitialWeights(self._make, untrained=self.network)
        wiring = trace_wiring(self.network, inputs[:2])
        self._meter = Meter(self.network, wiring, {layer.name: "classifier" for layer in wiring})

    def _make(self) -> nn.Sequential:
        parts: list[nn.Module] = []
        features = self.inputs.shape[1]
        for channels in self.settings.channels:
            parts += [nn.Conv2d(features, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            features = channels
        if parts:
            side = 2 ** len(self.settings.channels)
            features *= (self.inputs.shape[2] // side) * (self.inputs.shape[3] // side)
            parts.append(nn.Flatten())
        for neurons in self.settings.layers:
            parts += [nn.Linear(features, neurons), nn.ReLU()]
            features = neurons
        return nn.Sequential(*parts, nn.Linear(features, self.n_classes))

    def step(self, batch: NDArray[np.int64], labels: Tensor) -> None:
        """Make one gradient step on some of the images, in place."""
        rows = torch.from_numpy(batch)
        self.optimizer.zero_grad()
        torch.autograd.backward(self._loss(self.network(self.inputs[rows]), labels[rows]))
        self.optimizer.step()
        if self._decay is not None:
            self._decay.step()

    def accuracy(self, labels: Tensor) -> float:
        """Return the share of all images with correct labels."""
        return self.accuracy_and_loss(labels)[0]

    def accuracy_and_loss(self, labels: Tensor) -> tuple[float, float]:
        """Return the share of all images with correct labels, and the mean loss."""
        with torch.no_grad():
            outputs = torch.cat([self.network(part) for part in torch.split(self.inputs, _AT_ONCE)])
            return float((outputs.argmax(1) == labels).float().mean()), float(self._loss(outputs, labels))

    def measure(self, inputs: Tensor) -> DormancyReport:
        """Measure the network without changing it."""
        return self._meter.measure(self.network, inputs, self.settings.dormancy_threshold)

    def recycle(self, step: int) -> int:
        """Recycle the neurons that are dormant on a fresh batch, in place.

        :param step: gradient step, which seeds all draws together with the seed
        :return: the number of neurons recycled
        """
        report = self.measure(self.some_inputs(step))
        generator = torch_generator((self.seed, step))
        surgery = Surgery(optimizer_state=self.settings.optimizer_state)
        neurons, optimizers = report.dormant_neurons(), [self.optimizer]
        return recycle(
            self.network, report.wiring, neurons, optimizers, self.initial_weights, generator, surgery
        ).recycled

    def some_inputs(self, step: int) -> Tensor:
        """Draw the images for the scores, seeded by seed and gradient step."""
        count = min(self.settings.score_batch_size, len(self.inputs))
        rows = np.random.default_rng((self.seed, step)).choice(len(self.inputs), count, replace=False)
        return self.inputs[torch.from_numpy(rows)]


def train_classifier(settings: ClassifierSettings, seed: int, images: LabelledImages | None = None) -> Iterator[Point]:
    """Train, and yield values to log before the first gradient step and after each period.

    Each point is measured before neurons are recycled. Initial weights, labels and batches depend only on the seed, so
    they are equal in all conditions.

    :param images: instead of those in the settings
    """
    images = load_images(settings.data, settings.folder) if images is None else images
    inputs, labels = _inputs(images, settings), torch.from_numpy(images.labels[: settings.n_images].copy())
    classifier = Classifier(settings, inputs, images.n_classes, seed)
    log, draws = DormancyLog(), np.random.default_rng(seed)
    recycled = 0
    for task in range(settings.tasks):
        # Drawn for every task, even if the first labels stay, so that later batches are the same.
        drawn = torch.from_numpy(draws.integers(images.n_classes, size=len(inputs)))
        if settings.first_labels == "drawn" if task == 0 else settings.targets == "shuffled":
            labels = drawn
        if task == 0:
            yield _measured(classifier, 0, labels, log)
        for step in range(1, settings.steps + 1):
            classifier.step(draws.integers(len(inputs), size=settings.batch_size), labels)
            if step % settings.period:
                continue
            at = task * settings.steps + step
            point = _measured(classifier, at, labels, log)
            if step == settings.steps:
                point.values[TASK_ACCURACY] = point.values[ACCURACY]
            yield point
            if settings.redo:
                now = classifier.recycle(at)
                recycled += now
                yield Point(at, {"redo/recycled": now, "redo/recycled_total": recycled})


def _measured(classifier: Classifier, step: int, labels: Tensor, log: DormancyLog) -> Point:
    values = log.values(classifier.measure(classifier.inputs), step)
    accuracy, loss = classifier.accuracy_and_loss(labels)
    return Point(step, values | {ACCURACY: accuracy, CLASSIFIER_LOSS: loss})


def _inputs(images: LabelledImages, settings: ClassifierSettings) -> Tensor:
    """Scale images to [0, 1]. For convolutions, channels come first; else images are flattened."""
    pixels = torch.from_numpy(images.images[: settings.n_images].astype(np.float32) / 255)
    return pixels.permute(0, 3, 1, 2).contiguous() if settings.channels else pixels.flatten(1)
