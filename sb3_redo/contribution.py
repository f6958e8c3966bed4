"""What neurons contribute to their consumers while a network trains (Dohare et al. 2024, continual backpropagation)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.frozen import neuron_axis
from sb3_redo.outgoing import position_magnitudes
from sb3_redo.wiring import LayerWiring


class Feed:
    """What one layer feeds into one of its consumers, as training sees it.

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
        self.calls = 0
        self.mean = torch.zeros(len(owners), device=weight.device)
        """Running mean of each position's input, not yet corrected for its beginning at 0."""

    def see(self, value: Tensor) -> None:
        """Take in what the consumer is called with."""
        axis = neuron_axis(self.consumer) % value.ndim
        others = tuple(each for each in range(value.ndim) if each != axis)
        value = value.detach()
        self.seen[0] += value.abs().mean(others)
        self.seen[1] += value.mean(others)
        self.calls += 1

    def per_neuron(self, positions: Tensor, neurons: int) -> Tensor:
        """The sum over each neuron's positions, [neurons]."""
        if self.is_plain:
            return positions
        fed = self.owners >= 0
        return positions.new_zeros(neurons).index_add_(0, self.owners[fed], positions[fed])


class Contribution:
    """Running utility, age and outstanding replacements of a layer's neurons.

    The utility of a neuron is a running mean of \\|h\\| · Σ \\|outgoing weights\\|, where h is what its consumers
    receive from it: behind a normalisation, if there is one, and place by place where a channel feeds several columns.

    :param layer: the layer's wiring
    :param modules: its consumers by name
    :param gradient_step: from which its age counts
    """

    def __init__(self, layer: LayerWiring, modules: Mapping[str, nn.Module], gradient_step: int):
        self.name = layer.name
        self.feeds = {name: Feed(modules[name], owners) for name, owners in layer.consumers.items()}
        self.utility = torch.zeros(layer.neurons, device=next(iter(self.feeds.values())).mean.device)
        # On the CPU, so that nobody waits for a GPU to learn that nothing is to be replaced.
        self.ages = torch.zeros(layer.neurons, dtype=torch.long)
        self.outstanding = 0.0
        self.updated_at = gradient_step

    def update(self, gradient_step: int, decay: float) -> int:
        """Take in what was seen since the last time, if every consumer was called.

        :return: the gradient steps since then; 0 if some consumer was not called
        """
        if not all(feed.calls for feed in self.feeds.values()):
            return 0
        elapsed = gradient_step - self.updated_at
        new = 1 - decay**elapsed
        utility = torch.zeros_like(self.utility)
        for feed in self.feeds.values():
            magnitude, mean = feed.seen / feed.calls
            utility += feed.per_neuron(magnitude * position_magnitudes(feed.consumer), len(utility))
            feed.mean.lerp_(mean, new)
            feed.seen.zero_()
            feed.calls = 0
        self.utility.lerp_(utility, new)
        self.ages += elapsed
        self.updated_at = gradient_step
        return elapsed

    def due(self, mature: int, expected: float) -> int:
        """How many of the mature neurons are to be replaced, now that so many more are expected to be.

        What is left of a whole neuron waits for the next time.
        """
        self.outstanding += expected
        whole = int(self.outstanding)
        self.outstanding -= whole
        return min(whole, mature)

    def corrected_utility(self, decay: float) -> Tensor:
        """Utility as it would be had it not begun at 0, [neurons]; 0 at age 0."""
        return self._corrected(self.utility, self._weight_so_far(decay))

    def corrected_mean(self, consumer: str, decay: float) -> Tensor:
        """The same for the mean input of a consumer's positions; 0 where this layer feeds none."""
        feed = self.feeds[consumer]
        means = self._corrected(feed.mean, self._weight_so_far(decay)[feed.owners])
        return means.where(feed.owners >= 0, 0.0)

    def _weight_so_far(self, decay: float) -> Tensor:
        """Of all that went into each neuron's running means since its age was 0, [neurons]."""
        return (1 - decay ** self.ages.double()).to(self.utility)

    @staticmethod
    def _corrected(mean: Tensor, weight: Tensor) -> Tensor:
        return (mean / weight).where(weight > 0, 0.0)

    def forget(self, neurons: Tensor) -> None:
        """Begin anew for some neurons."""
        self.utility[neurons] = 0.0
        self.ages[neurons.cpu()] = 0
        for feed in self.feeds.values():
            feed.mean[torch.isin(feed.owners, neurons)] = 0.0

    def state(self) -> dict[str, Tensor]:
        """All that it knows, on the CPU."""
        state = {"utility": self.utility.cpu(), "ages": self.ages}
        state["progress"] = torch.tensor([self.outstanding, self.updated_at], dtype=torch.double)
        for name, feed in self.feeds.items():
            state |= {f"mean {name}": feed.mean.cpu(), f"seen {name}": feed.seen.cpu()}
            state[f"calls {name}"] = torch.tensor(feed.calls)
        return {f"{self.name} {key}": value for key, value in state.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave, if it is there."""
        if f"{self.name} utility" not in state:
            return
        self.utility.copy_(state[f"{self.name} utility"])
        self.ages.copy_(state[f"{self.name} ages"])
        outstanding, updated_at = state[f"{self.name} progress"].tolist()
        self.outstanding, self.updated_at = outstanding, int(updated_at)
        for name, feed in self.feeds.items():
            feed.mean.copy_(state[f"{self.name} mean {name}"])
            feed.seen.copy_(state[f"{self.name} seen {name}"])
            feed.calls = int(state[f"{self.name} calls {name}"])
