"""Plasticity itself: how well a copy of the network fits new targets (Lyle et al. 2023, sections 2.2 and 3.1)."""

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
"""Of the sine, so high that targets are next to unrelated from one observation to another."""


@dataclass(frozen=True)
class ProbeResult:
    """What copies of a network made of new targets. All are means over the targets, in squares of the output's unit.

    :param loss: mean squared error at the end
    :param first_loss: mean squared error before the first step
    :param variance: of the targets: what it takes to predict their mean, about 0.5
    """

    loss: float
    first_loss: float
    variance: float

    @property
    def plasticity(self) -> float:
        """Variance of the targets minus the loss at the end (eq. 5): 0 for a network that learns nothing."""
        return self.variance - self.loss


def probe_targets(network: Network, batch: Any, fresh: Mapping[str, Tensor]) -> Tensor:
    """Return ``a + sin(1e5 · f(x; w₀))``, [batch, outputs], a being the network's mean prediction over all outputs.

    :param fresh: w₀: parameters and buffers of a freshly initialised network, by name
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
    """Let copies of a network fit random targets, one copy for each target, and see how far they get.

    Changes neither the network nor its optimizer nor a random stream. Steps are made in training mode, on minibatches,
    on all outputs, with a fresh optimizer, all of which the paper leaves open. Losses are of the whole batch in
    evaluation mode.

    :param batch: the observations that targets are given to
    :param fresh: for each target parameters and buffers of a freshly initialised network, by name
    :param optimizer: one with the run's own settings that holds the network's parameters
    :param steps: of the optimizer, for each target
    :param minibatch_size: observations per step, drawn anew for every pass over the batch
    :param seed: of the minibatches, and of what the network draws itself (dropout)
    """
    results = []
    for number, weights in enumerate(fresh):
        targets = probe_targets(network, batch, weights)
        task = _Fit(network, batch, targets, optimizer)
        first = task.loss()
        generator = torch.Generator().manual_seed(seed + number)
        # Steps in training mode may change more than the passes that the wiring was read from.
        same_state = unchanged(network.module, all_parts(network.module))
        with network.examined(), same_state, seeded(seed + number), training(list(network.module.modules())):
            for rows in _minibatches(len(targets), minibatch_size, steps, generator):
                task.step(rows)
        results.append((task.loss(), first, float(targets.double().var(0, correction=0).mean())))
    losses, firsts, variances = (sum(values) / len(results) for values in zip(*results, strict=True))
    return ProbeResult(losses, firsts, variances)


class _Fit:
    """A copy of a network, the targets that it is to fit, and the optimizer that it is fitted with."""

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
    """Return row numbers for each step: every row once before any comes again, the last of a pass being fewer."""
    found: list[Tensor] = []
    while len(found) < steps:
        found += torch.randperm(rows, generator=generator).split(size)  # type: ignore[no-untyped-call]
    return found[:steps]


def _fresh_twin(optimizer: Optimizer, copy_of: Mapping[Any, Tensor]) -> Optimizer:
    """Return an optimizer of the same kind and settings without a step made, for copies of some of its parameters."""
    # What an optimizer is pickled as, and so without hooks; its class may not take its own settings as arguments.
    twin = copy.copy(optimizer)
    twin.state = defaultdict(dict)
    groups = [
        {**group, "params": [copy_of[p] for p in group["params"] if p in copy_of]} for group in optimizer.param_groups
    ]
    twin.param_groups = [group for group in groups if group["params"]]
    return twin
