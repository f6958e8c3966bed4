"""Tracks the contribution of neurons to their consumers during training (Dohare et al. 2024)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.forward.layers import neuron_axis
from sb3_redo.recycling.outgoing_weights import position_magnitudes
from sb3_redo.wiring.structure import LayerWiring


class Feed:
    """Tracks one layer's contribution to one of its consumers, with a few small operations per gradient step.

    :param consumer: the consumer
    :param owners: the neuron that feeds each of its input positions, -1 for none, [input positions]
    """

    def __init__(self, consumer: nn.Module, owners: Tensor):
        weight: Any = consumer.weight
        self.consumer = consumer
        self.owners = owners.to(weight.device)
        self.is_plain = torch.equal(owners, torch.arange(len(owners)))
        self.seen = torch.zeros(2, len(owners), device=weight.device)
        """Sums over calls of the mean \\|input\\| and the mean input of each position."""
        self._magnitudes, self._means = self.seen
        self._shares = self.seen.new_empty(0)
        self.calls = 0
        self.running = torch.zeros(2, len(owners), device=weight.device)
        """Running means without bias correction: \\|input\\| · Σ \\|outgoing weights\\| of each position, and its
        input."""

    def see(self, value: Tensor) -> None:
        """Add an input of the consumer."""
        value = value.detach()
        is_flat = value.ndim == 2 and neuron_axis(self.consumer) == -1
        if is_flat and value.dtype == self.seen.dtype:
            # Products with 1 / batch compute a mean and add it in one operation instead of two.
            if len(self._shares) != len(value):
                self._shares = self.seen.new_full((len(value),), 1 / len(value))
            self._means.addmv_(value.T, self._shares)
            self._magnitudes.addmv_(value.abs().T, self._shares)
        else:
            axis = neuron_axis(self.consumer) % value.ndim
            others = tuple(each for each in range(value.ndim) if each != axis)
            share = value.shape[axis] / value.numel()
            self._magnitudes.add_(value.abs().sum(others), alpha=share)
            self._means.add_(value.sum(others), alpha=share)
        self.calls += 1

    def update(self, new: float) -> None:
        """Update the running means with the inputs seen, with weight ``new``, and clear these."""
        self._magnitudes.mul_(position_magnitudes(self.consumer))
        if self.calls > 1:
            self.seen.div_(self.calls)
        self.running.lerp_(self.seen, new)
        self.seen.zero_()
        self.calls = 0

    def utility(self, neurons: int) -> Tensor:
        """Return the running utility, summed over each neuron's positions, [neurons]."""
        if self.is_plain and len(self.owners) == neurons:
            return self.running[0]
        fed = self.owners >= 0
        return self.running.new_zeros(neurons).index_add_(0, self.owners[fed], self.running[0, fed])


class Contribution:
    """Keeps the running utility, age and outstanding replacements of a layer's neurons.

    The utility of a neuron is a running mean of \\|h\\| · Σ \\|outgoing weights\\|. h is its consumers' input, after
    any normalisation. If a channel feeds several columns, each column has its own h.

    :param layer: the layer's wiring
    :param modules: its consumers by name
    :param gradient_step: the gradient step at age 0
    """

    def __init__(self, layer: LayerWiring, modules: Mapping[str, nn.Module], gradient_step: int):
        self.name = layer.name
        self.neurons = layer.neurons
        self.feeds = {name: Feed(modules[name], owners) for name, owners in layer.consumers.items()}
        # On the CPU, so that the usual case without replacements does not wait for a GPU.
        self.born = torch.full((layer.neurons,), gradient_step)
        """The gradient step at which each neuron's age is 0."""
        self.outstanding = 0.0
        self.updated_at = gradient_step

    @property
    def ages(self) -> Tensor:
        """Return the neurons' ages in gradient steps, [neurons]."""
        return self.updated_at - self.born

    @property
    def utility(self) -> Tensor:
        """Return the running utility without bias correction, [neurons]."""
        return torch.stack([feed.utility(self.neurons) for feed in self.feeds.values()]).sum(0)

    def update(self, gradient_step: int, decay: float) -> int:
        """Add the inputs seen since the last update, if every consumer was called.

        :return: the gradient steps since then, or 0 if a consumer was not called
        """
        if not all(feed.calls for feed in self.feeds.values()):
            return 0
        elapsed = gradient_step - self.updated_at
        for feed in self.feeds.values():
            feed.update(1 - decay**elapsed)
        self.updated_at = gradient_step
        return elapsed

    def mature(self, maturity: int) -> Tensor:
        """Return the mask of neurons older than ``maturity``, bool [neurons], on the CPU."""
        return self.born < self.updated_at - maturity

    def due(self, mature: int, expected: float) -> int:
        """Return the number of ``mature`` neurons to replace, after adding ``expected``. Fractions are kept."""
        self.outstanding += expected
        whole = int(self.outstanding)
        self.outstanding -= whole
        return min(whole, mature)

    def corrected_utility(self, decay: float) -> Tensor:
        """Return the bias-corrected utility, [neurons], or 0 at age 0."""
        return self._corrected(self.utility, self._weight_so_far(decay))

    def corrected_mean(self, consumer: str, decay: float) -> Tensor:
        """Return the same for the mean input of a consumer's positions, or 0 where this layer feeds none."""
        feed = self.feeds[consumer]
        means = self._corrected(feed.running[1], self._weight_so_far(decay)[feed.owners])
        return means.where(feed.owners >= 0, 0.0)

    def _weight_so_far(self, decay: float) -> Tensor:
        """Return the total weight in each neuron's running means since age 0, [neurons]."""
        return (1 - decay ** self.ages.double()).to(next(iter(self.feeds.values())).running)

    @staticmethod
    def _corrected(mean: Tensor, weight: Tensor) -> Tensor:
        return (mean / weight).where(weight > 0, 0.0)

    def forget(self, neurons: Tensor) -> None:
        """Reset some neurons."""
        self.born[neurons.cpu()] = self.updated_at
        for feed in self.feeds.values():
            feed.running[:, torch.isin(feed.owners, neurons.to(feed.owners))] = 0.0

    def pass_over(self, gradient_steps: int) -> None:
        """Exclude unwatched gradient steps from the ages."""
        self.born += gradient_steps
        self.updated_at += gradient_steps

    def state(self) -> dict[str, Tensor]:
        """Return the whole state, on the CPU."""
        state = {"born": self.born, "progress": torch.tensor([self.outstanding, self.updated_at], dtype=torch.double)}
        for name, feed in self.feeds.items():
            state |= {f"running {name}": feed.running.cpu(), f"seen {name}": feed.seen.cpu()}
            state[f"calls {name}"] = torch.tensor(feed.calls)
        return {f"{self.name} {key}": value for key, value in state.items()}

    def load(self, state: Mapping[str, Tensor]) -> bool:
        """Load a result of :meth:`state`, if it has one of a layer of this width. Returns whether it had."""
        if any(key not in state or state[key].shape != value.shape for key, value in self.state().items()):
            return False
        self.born.copy_(state[f"{self.name} born"])
        outstanding, updated_at = state[f"{self.name} progress"].tolist()
        self.outstanding, self.updated_at = outstanding, int(updated_at)
        for name, feed in self.feeds.items():
            feed.running.copy_(state[f"{self.name} running {name}"])
            feed.seen.copy_(state[f"{self.name} seen {name}"])
            feed.calls = int(state[f"{self.name} calls {name}"])
        return True
