"""The probe task: how well a copy of the network fits new targets (Lyle et al. 2023, sections 2.2 and 3.1)."""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sb3_redo.forward.contexts import seeded, training
from sb3_redo.forward.nested import map_tensors
from sb3_redo.forward.state import all_parts, unchanged
from sb3_redo.plasticity.network import Network

FREQUENCY = 1e5
"""Frequency of the sine. So high that targets of different observations are almost unrelated."""


@dataclass(frozen=True)
class ProbeResult:
    """How well copies of a network fitted new targets. Means over the targets, in squares of the output's unit.

    :param loss: mean squared error at the end
    :param first_loss: mean squared error before the first step
    :param variance: of the targets, about 0.5: the loss of predicting their mean
    """

    loss: float
    first_loss: float
    variance: float

    @property
    def plasticity(self) -> float:
        """Variance of the targets minus the loss at the end (eq. 5): 0 for a network that learns nothing."""
        return self.variance - self.loss


def probe_targets(network: Network, batch: Any, fresh: Mapping[str, Tensor]) -> Tensor:
    """Return ``a + sin(1e5 · f(x; w₀))``, [batch, outputs]; ``a`` is the network's mean prediction over all outputs.

    :param fresh: w₀, the parameters and buffers of a fresh network, by name
    """
    with network.examined(), torch.no_grad():
        return network.of_all(batch).mean() + torch.sin(FREQUENCY * network.of_all(batch, fresh))


def probe(
    network: Network,
    batch: Any,
    fresh: Sequence[Mapping[str, Tensor]],
    optimizer: Optimizer,
    *,
    steps: int = 2000,
    minibatch_size: int = 32,
    seed: int = 0,
) -> ProbeResult:
    """Fit copies of a network to random targets, one copy per target, and return their losses.

    Changes neither the network, nor its optimizer, nor a random stream. Steps use training mode, minibatches, all
    outputs and a fresh optimizer. The paper leaves these open. Losses are of the whole batch in evaluation mode.

    :param batch: the observations
    :param fresh: per target, the parameters and buffers of a fresh network, by name
    :param optimizer: holds the network's parameters, with the run's settings
    :param steps: optimizer steps per target
    :param minibatch_size: observations per step. The batch is shuffled for each pass.
    :param seed: of the minibatches, and of the network's own draws (dropout)
    """
    results = []
    for number, weights in enumerate(fresh):
        targets = probe_targets(network, batch, weights)
        task = _Fit(network, batch, targets, optimizer)
        first = task.loss()
        generator = torch.Generator().manual_seed(seed + number)
        # Steps in training mode may change more state than the passes that read the wiring.
        same_state = unchanged(network.module, all_parts(network.module))
        with network.examined(), same_state, seeded(seed + number), training(list(network.module.modules())):
            for rows in _minibatches(len(targets), minibatch_size, steps, generator):
                task.step(rows)
        results.append((task.loss(), first, float(targets.double().var(0, correction=0).mean())))
    losses, firsts, variances = (sum(values) / len(results) for values in zip(*results, strict=True))
    return ProbeResult(losses, firsts, variances)


class _Fit:
    """A copy of a network with its targets and its optimizer."""

    def __init__(self, network: Network, batch: Any, targets: Tensor, optimizer: Optimizer):
        self.network, self.batch, self.targets = network, batch, targets
        self.copies = {name: p.detach().clone().requires_grad_() for name, p in network.parameters.items()}
        buffers = {name: buffer.clone() for name, buffer in network.module.named_buffers()}
        self.state: dict[str, Tensor] = {**buffers, **self.copies}
        copy_of = {parameter: self.copies[name] for name, parameter in network.parameters.items()}
        self.optimizer = _fresh_twin(optimizer, copy_of)

    def step(self, rows: Tensor) -> None:
        part = map_tensors(lambda tensor: tensor[rows.to(tensor.device)], self.batch)
        error = self.network(part, self.state) - self.targets[rows.to(self.targets.device)]
        gradients = torch.autograd.grad(error.pow(2).mean(), list(self.copies.values()), allow_unused=True)
        for tensor, gradient in zip(self.copies.values(), gradients, strict=True):
            tensor.grad = gradient
        self.optimizer.step()

    def loss(self) -> float:
        with self.network.examined(), torch.no_grad():
            return float((self.network.of_all(self.batch, self.state) - self.targets).double().pow(2).mean())


def _minibatches(rows: int, size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Return row numbers for each step. Each pass has every row once; its last minibatch may be smaller."""
    found: list[Tensor] = []
    while len(found) < steps:
        found += torch.randperm(rows, generator=generator).split(size)  # type: ignore[no-untyped-call]
    return found[:steps]


def _fresh_twin(optimizer: Optimizer, copy_of: Mapping[Any, Tensor]) -> Optimizer:
    """Return a fresh optimizer of the same kind and settings, for copies of some of its parameters."""
    # Built from its pickled state, so without hooks. Its class may not take its own settings as arguments.
    twin = copy.copy(optimizer)
    twin.state = defaultdict(dict)
    groups = [
        {**group, "params": [copy_of[p] for p in group["params"] if p in copy_of]} for group in optimizer.param_groups
    ]
    twin.param_groups = [group for group in groups if group["params"]]
    return twin
