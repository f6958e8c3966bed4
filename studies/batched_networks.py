"""Trains many small networks at once, each on one random labelling of its inputs after another, and recycles neurons.

All tensors have an axis of trainings in front, and Adam is written out with a step count for each weight. A test of
:mod:`studies.optimizer_state` holds that each training ends as with torch's Adam and the package's own recycling.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from torch import Tensor, nn

CLASSES, INPUTS = 10, 128
BETAS = (0.9, 0.999)
THRESHOLD = 0.025
"""At which dormant neurons are counted, whatever the threshold of recycling."""


@dataclass(frozen=True)
class Training:
    """One training. ``threshold`` and ``period`` are 0 without recycling."""

    data: str
    method: str
    epsilon: float
    learning_rate: float
    threshold: float
    period: int
    seed: int


SETTINGS = [field.name for field in fields(Training)]


def digits() -> Tensor:
    """Return some of scikit-learn's handwritten digits, [inputs, 64], in [0, 1]."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data[:INPUTS].astype(np.float32) / 16)


def cancer() -> Tensor:
    """Return some of scikit-learn's breast cancer measurements, [inputs, 30], standardised."""
    from sklearn.datasets import load_breast_cancer

    return torch.from_numpy(_standardised(load_breast_cancer().data.astype(np.float32))[:INPUTS])


def patches() -> Tensor:
    """Return random patches of scikit-learn's two photographs, [inputs, 3, 8, 8], each channel standardised."""
    from sklearn.datasets import load_sample_images

    pixels = np.stack(load_sample_images().images).astype(np.float32)
    draws = np.random.default_rng(0)
    _, height, width, _ = pixels.shape
    corners = draws.integers((len(pixels), height - 7, width - 7), size=(INPUTS, 3))
    cut = np.stack([pixels[image, top : top + 8, left : left + 8] for image, top, left in corners])
    return torch.from_numpy(_standardised(cut)).permute(0, 3, 1, 2).contiguous()


def _standardised(values: np.ndarray) -> np.ndarray:
    """Shift and scale the last axis' entries to mean 0 and deviation 1."""
    others = tuple(range(values.ndim - 1))
    return np.asarray((values - values.mean(others)) / values.std(others))


DATA = {"digits": digits, "cancer": cancer, "patches": patches}
inputs_of = cache(lambda name: DATA[name]())


def network_of(name: str) -> nn.Sequential:
    """Build the network of a data set, as PyTorch initialises it."""
    if name == "patches":
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 32)]
    else:
        layers = [nn.Linear(inputs_of(name).shape[1], 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(32, CLASSES))


class Networks:
    """Trains many networks of one shape at once, each as :class:`Training` says.

    All parameters of a network lie one after another in ``values``, [trainings, parameters], and Adam's moments in
    tensors of the same shape. ``decays`` hold each beta to the power of the step count: for each weight where counts
    differ within a network, else for each training. A convolution is a linear layer on the patches that its kernel
    sees, which are cut out once.

    :param trainings: of one data set and one method
    """

    def __init__(self, trainings: Sequence[Training]):
        self.trainings, self.method = trainings, trainings[0].method
        self.seeds, self.seed_of = np.unique([each.seed for each in trainings], return_inverse=True)
        name = trainings[0].data
        modules = {seed: self._built(name, seed) for seed in self.seeds}
        first = modules[self.seeds[0]]
        kernels = [each for each in first if isinstance(each, (nn.Linear, nn.Conv2d))]
        self.inputs = inputs_of(name).to(kernels[0].weight.dtype)
        self.places = 1  # of a convolution's output
        if isinstance(kernels[0], nn.Conv2d):
            unfolded = nn.functional.unfold(self.inputs, 3, stride=kernels[0].stride)
            self.inputs, self.places = unfolded.transpose(1, 2).contiguous(), unfolded.shape[2]
        self.shapes = [(len(each.weight), each.weight[0].numel()) for each in kernels]
        flat = [nn.utils.parameters_to_vector(modules[seed].parameters()).detach() for seed in self.seeds]
        self.values = torch.stack(flat)[self.seed_of]
        self.first, self.second = torch.zeros_like(self.values), torch.zeros_like(self.values)
        counted = self.method in ("restart", "count", "random_count")
        self.decays = [torch.ones_like(self.values if counted else self.values[:, :1]) for _ in BETAS]
        self.rate, self.epsilon, self.threshold = (
            self.values.new_tensor([getattr(each, field) for each in trainings])[:, None]
            for field in ("learning_rate", "epsilon", "threshold")
        )
        self.period = torch.tensor([each.period for each in trainings])
        self.parts = self._parts(self.values)

    @staticmethod
    def _built(name: str, seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return network_of(name)

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """Return views of a tensor [trainings, parameters]: of each layer the weight [trainings, neurons, inputs] and
        the bias [trainings, 1, neurons]."""
        parts, at = [], 0
        for neurons, inputs in self.shapes:
            parts.append(flat[:, at : at + neurons * inputs].view(-1, neurons, inputs))
            at += neurons * inputs
            parts.append(flat[:, at : at + neurons].unsqueeze(1))
            at += neurons
        return parts

    def outputs(self, batch: Tensor) -> list[Tensor]:
        """Return what each layer puts out behind its activation; of a convolution [trainings, inputs * places,
        channels].

        :param batch: [trainings, inputs, features], or [trainings, inputs, places, features] of a convolution
        """
        found, hidden = [], batch.flatten(1, -2)
        for layer in range(len(self.shapes)):
            weight, bias = self.parts[2 * layer : 2 * layer + 2]
            hidden = torch.baddbmm(bias, hidden, weight.transpose(1, 2))
            if layer < len(self.shapes) - 1:
                hidden = torch.relu(hidden)
            found.append(hidden)
            hidden = self._flattened(hidden, layer + 1)
        return found

    def _flattened(self, hidden: Tensor, layer: int) -> Tensor:
        """Return what the layer before puts out as what a layer reads: behind a convolution in the order of
        ``nn.Flatten``."""
        if layer != 1 or self.places == 1:
            return hidden
        by_place = hidden.view(len(hidden), -1, self.places, hidden.shape[2])
        return by_place.transpose(2, 3).flatten(2)

    @torch.no_grad()
    def step(self, rows: Tensor, labels: Tensor) -> None:
        """Make one gradient step of all networks, in place.

        :param rows: of the inputs, [trainings, batch]
        :param labels: of all inputs, [trainings, inputs]
        """
        batch = self.inputs[rows]
        hidden = self.outputs(batch)
        # 1. The gradient of the cross entropy with respect to the logits.
        slope = (hidden[-1] - hidden[-1].amax(2, keepdim=True)).exp_()
        slope.div_(slope.sum(2, keepdim=True))
        targets = labels.gather(1, rows)[:, :, None]
        slope.scatter_add_(2, targets, slope.new_full((), -1.0).expand(targets.shape)).div_(rows.shape[1])
        # 2. Back through the layers. Autograd takes longer.
        gradients: list[Tensor] = []
        for layer in range(len(self.shapes) - 1, -1, -1):
            below = self._flattened(hidden[layer - 1], layer) if layer else batch.flatten(1, -2)
            gradients[:0] = [torch.bmm(slope.transpose(1, 2), below), slope.sum(1)]
            if layer:
                slope = torch.ops.aten.threshold_backward(torch.bmm(slope, self.parts[2 * layer]), below, 0)
                if layer == 1 and self.places > 1:
                    by_channel = slope.view(*slope.shape[:2], -1, self.places)
                    slope = by_channel.transpose(2, 3).flatten(1, 2)
        self._adam(torch.cat([each.flatten(1) for each in gradients], 1))

    def _adam(self, gradient: Tensor) -> None:
        for decay, beta in zip(self.decays, BETAS, strict=True):
            decay.mul_(beta)
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        divisor = self.second.sqrt().div_((1 - self.decays[1]).sqrt_()).add_(self.epsilon)
        self.values.sub_((self.first * (self.rate / (1 - self.decays[0]))).div_(divisor))

    @torch.no_grad()
    def dormant(self, threshold: Tensor | float) -> list[Tensor]:
        """Return which neurons of each hidden layer are dormant on all inputs, [trainings, neurons].

        :param threshold: a number, or one for each training, [trainings, 1]
        """
        found = []
        for hidden in self.outputs(self._every_input())[:-1]:
            activity = hidden.mean(1)  # of ReLUs
            scores = activity / activity.mean(1, keepdim=True).clamp_min(torch.finfo(activity.dtype).tiny)
            found.append(scores <= threshold)
        return found

    @torch.no_grad()
    def recycle(self, step: int) -> None:
        """Recycle the networks whose period ends with this gradient step, in place."""
        due = (self.period > 0) & (step % self.period.clamp_min(1) == 0)
        if not due.any():
            return
        draws = {seed: np.random.default_rng((seed, step)) for seed in self.seeds}
        chosen = [mask & due[:, None] for mask in self.dormant(self.threshold)]
        if self.method.startswith("random"):
            chosen = [self._as_many(mask, draws) for mask in chosen]
        fresh = torch.from_numpy(np.stack([self.fresh(draws[seed], seed, step) for seed in self.seeds]))
        self.renew(chosen, fresh.to(self.values)[self.seed_of])

    def fresh(self, draws: np.random.Generator, seed: int, step: int) -> np.ndarray:
        """Draw all parameters anew, as ``nn.Linear`` and ``nn.Conv2d`` do it, [parameters]; biases become 0."""
        parts: list[np.ndarray] = []
        for neurons, inputs in self.shapes:
            bound = inputs**-0.5
            parts += [draws.uniform(-bound, bound, neurons * inputs), np.zeros(neurons)]
        return np.concatenate(parts)

    def _as_many(self, mask: Tensor, draws: dict[int, np.random.Generator]) -> Tensor:
        """Choose as many neurons of a layer as a mask has, at random."""
        ranks = np.stack([draws[seed].permutation(mask.shape[1]) for seed in self.seeds])[self.seed_of]
        return torch.from_numpy(ranks) < mask.sum(1, keepdim=True)

    @torch.no_grad()
    def renew(self, chosen: Sequence[Tensor], fresh: Tensor) -> None:
        """Renew neurons of all networks, in place.

        :param chosen: of each hidden layer [trainings, neurons]
        :param fresh: new parameters, as ``values``
        """
        new, weights = self._parts(fresh), self._parts(self.values)
        first, second = self._parts(self.first), self._parts(self.second)
        decays = [self._parts(each.expand_as(self.values)) for each in self.decays]
        none = torch.zeros_like(chosen[0][:, :1])
        for layer, (neurons, inputs) in enumerate(self.shapes):
            # 1. The rows of this layer's neurons, and the columns that read the layer before.
            row = chosen[layer] if layer < len(chosen) else none.expand(-1, neurons)
            before = chosen[layer - 1] if layer else none
            column = before.repeat_interleave(inputs // before.shape[1], 1)
            for part, rows, columns in (
                (2 * layer, row[:, :, None], column[:, None, :]),
                (2 * layer + 1, row[:, None, :], none[:, None, :]),
            ):
                # 2. Rows are drawn anew, then columns are cleared.
                weights[part].copy_(torch.where(columns, 0.0, torch.where(rows, new[part], weights[part])))
                # 3. Moments.
                renewed = rows | columns
                first[part].masked_fill_(renewed, 0.0)
                values = torch.zeros_like(second[part])
                if self.method.endswith("match"):
                    axis = 1 if part % 2 == 0 else 2
                    values = matched(second[part], rows, columns, axis)
                second[part].copy_(torch.where(renewed, values, second[part]))
                # 4. Step counts.
                for decay in decays:
                    if self.method.endswith("count"):
                        decay[part].masked_fill_(renewed, 1.0)
                    elif self.method == "restart":
                        decay[part].masked_fill_(renewed.flatten(1).any(1)[:, None, None], 1.0)

    @torch.no_grad()
    def accuracy(self, labels: Tensor) -> Tensor:
        """Return the share of all inputs that get their labels, [trainings]."""
        return (self.outputs(self._every_input())[-1].argmax(2) == labels).float().mean(1)

    def dormant_fraction(self) -> Tensor:
        """Return the share of dormant neurons, pooled over hidden layers, [trainings]."""
        return torch.cat(self.dormant(THRESHOLD), 1).float().mean(1)

    def _every_input(self) -> Tensor:
        return self.inputs.expand(len(self.trainings), *self.inputs.shape)


def matched(second: Tensor, rows: Tensor, columns: Tensor, axis: int) -> Tensor:
    """Return the second moments that ``match`` gives renewed entries.

    :param second: of a weight or a bias
    :param rows: which entries are drawn anew, as a mask that broadcasts
    :param columns: which entries are cleared, the same
    :param axis: that of the neurons
    """
    of_rows = mean_where(second, ~rows, axis)
    if axis == 2 or not columns.any():
        return of_rows.expand_as(second)
    of_columns = mean_where(second, ~columns, 2)
    # A weight between two recycled neurons gets the mean over the rows that stay.
    instead = mean_where(of_columns, ~rows, 1)
    some_stay = (~rows).any(1, keepdim=True) & (~columns).any(2, keepdim=True)
    of_columns = torch.where(rows & some_stay, instead, of_columns)
    return torch.where(columns, of_columns, of_rows)


def mean_where(values: Tensor, mask: Tensor, axis: int) -> Tensor:
    """Return means along an axis over the entries of a mask; 0 where it has none."""
    weights = mask.to(values)
    return (values * weights).sum(axis, keepdim=True) / weights.sum(axis, keepdim=True).clamp_min(1)
