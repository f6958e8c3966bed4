"""What feeds every element of a tensor, and the wiring that follows from it.

Sources are numbered: 0 is the observation, ``1 + WIDTH * n + j`` neuron j of the n-th layer.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sb3_redo.forward.layers import is_plain

WIDTH, LAYERS = 8, 16
OBSERVATION = "the observation"


class Flow(NamedTuple):
    """Bool tensors [sources, *one sample's shape].

    :param feeds: whether the source changes the element
    :param bare: whether it does so along a way without an activation call
    :param loud: whether the element is not 0 where the source's activation is
    """

    feeds: Tensor
    bare: Tensor
    loud: Tensor

    @classmethod
    def observed(cls, shape: tuple[int, ...]) -> "Flow":
        feeds = torch.zeros(1 + WIDTH * LAYERS, *shape, dtype=torch.bool)
        feeds[0] = True
        return cls(feeds, feeds, feeds)

    @classmethod
    def of_layer(cls, number: int, shape: tuple[int, ...], axis: int) -> "Flow":
        feeds = torch.zeros(1 + WIDTH * LAYERS, *shape, dtype=torch.bool)
        for neuron in range(shape[axis]):
            feeds[1 + WIDTH * number + neuron].movedim(axis, 0)[neuron] = True
        return cls(feeds, feeds, feeds)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.feeds.shape[1:])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Flow":
        """Through an operation on batches that moves or pools elements: each source is a sample of ones and zeros."""
        return Flow(*(function(part.float()) > 0 for part in self))

    def halves(self) -> tuple["Flow", "Flow"]:
        return self.map(lambda x: x.chunk(2, 1)[0]), self.map(lambda x: x.chunk(2, 1)[1])

    def joined(self, other: "Flow") -> "Flow":
        """Of a sum, a difference or a maximum."""
        return Flow(*(mine | theirs for mine, theirs in zip(self, other, strict=True)))

    def multiplied(self, other: "Flow") -> "Flow":
        """Of a product: silent as soon as one of two factors of the same source is."""
        loud = (self.loud | ~self.feeds) & (other.loud | ~other.feeds)
        return Flow(self.feeds | other.feeds, self.bare | other.bare, loud & (self.feeds | other.feeds))

    def mixed(self) -> "Flow":
        """Of an operation in which every feature depends on all."""
        feeds, bare = (part.any(1, keepdim=True).expand_as(part) for part in self[:2])
        return Flow(feeds, bare, feeds)

    @property
    def is_one_to_one(self) -> bool:
        """Whether every feature has one source, and no two of them the same."""
        by_feature = self.feeds.reshape(*self.feeds.shape[:2], -1).any(2)
        return bool((by_feature.sum(0) == 1).all() and (by_feature.sum(1) <= 1).all())

    def sources(self) -> set[int]:
        """The numbers of the layers that feed any of it, and -1 for the observation."""
        return {(source - 1) // WIDTH for source in self.feeds.flatten(1).any(1).nonzero().flatten().tolist()}

    def rows(self, layer: int) -> "Flow":
        return Flow(*(part[1 + WIDTH * layer : 1 + WIDTH * (layer + 1)] for part in self))

    def owners(self, layer: int) -> Tensor:
        """The one neuron of a layer that feeds each element, else -1."""
        feeds = self.rows(layer).feeds
        return torch.where(feeds.sum(0) == 1, feeds.long().argmax(0), -1)

    def sole_sources(self) -> Tensor:
        """The one source of each element, else -1."""
        return torch.where(self.feeds.sum(0) == 1, self.feeds.long().argmax(0), -1)

    def others(self, layer: int) -> Tensor:
        """Whether anything but the layer feeds each element."""
        feeds = self.feeds.clone()
        feeds[1 + WIDTH * layer : 1 + WIDTH * (layer + 1)] = False
        return feeds.any(0)


@dataclass
class Known:
    """What is true of one layer.

    :param consumers: consumer name to the neuron feeding each of its input positions, -1 for none or several
    :param reasons: texts of which one has to be in the reason why it is not recycled; none if it is
    :param exact: whether recycling a dead neuron changes no output
    :param seen: number of a tensor and the neuron at each of its elements, -1 for none: where it is measured
    :param doubt: which open question of where to measure touches it, if any
    """

    consumers: dict[str, list[int]]
    reasons: list[str]
    exact: bool
    seen: list[tuple[int, Tensor]]
    doubt: str | None


@dataclass
class Call:
    """A layer that takes a tensor."""

    layer: str
    register: int
    flow: Flow
    axis: int

    def by_position(self) -> Tensor:
        """[sources, input positions]"""
        feeds = self.flow.feeds.movedim(self.axis, 1)
        return feeds.reshape(*feeds.shape[:2], -1).any(2)


@dataclass
class Ledger:
    """Takes down what happens to the neurons while a network is built.

    :param names: of all layers, in the order of their numbers
    :param results: layer name to the tensors that it gave
    :param activations: layer number to the tensors that its activation calls gave, with the neurons seen there
    :param joined: numbers of the layers that share an activation with another
    :param entries: normalisation name to the one source of what each entry of its weight acts on, else -1
    """

    names: list[str] = field(default_factory=list)
    results: dict[str, list[tuple[int, Flow]]] = field(default_factory=lambda: defaultdict(list))
    taken: list[Call] = field(default_factory=list)
    activations: dict[int, list[tuple[int, Tensor]]] = field(default_factory=lambda: defaultdict(list))
    joined: set[int] = field(default_factory=set)
    normalised: set[int] = field(default_factory=set)
    entries: dict[str, Tensor] = field(default_factory=dict)
    returned: set[int] = field(default_factory=set)

    def calls(self, name: str, register: int, flow: Flow, axis: int) -> None:
        self.taken.append(Call(name, register, flow, axis))

    def normalises(self, name: str, module: nn.Module, flow: Flow) -> None:
        self.normalised |= flow.sources()
        alone = flow.sole_sources()
        if isinstance(module, nn.LayerNorm):
            by_entry = alone.reshape(-1, module.weight.numel()).T
        else:
            by_entry = alone.flatten(1) if alone.ndim > 1 else alone[:, None]
        same = (by_entry == by_entry[:, :1]).all(1)
        self.entries[name] = torch.where(same, by_entry[:, 0], -1).reshape(module.weight.shape)

    def returns(self, flow: Flow) -> None:
        self.returned |= flow.sources()

    def activates(self, register: int, flow: Flow, wakes: bool) -> Flow:
        """An activation call: that of layers that arrive for the first time, or at elements of their own without one.

        :param wakes: whether it makes something of 0
        """
        bare, loud = flow.bare.clone(), flow.feeds.clone() if wakes else flow.loud.clone()
        for layer in flow.sources() - {-1}:
            rows = slice(1 + WIDTH * layer, 1 + WIDTH * (layer + 1))
            owners, others = flow.owners(layer), flow.others(layer)
            if self.activations[layer]:
                owners = owners.where(flow.bare[rows].any(0) & ~others, -1)
            if (owners >= 0).any():
                self.activations[layer].append((register, owners))
                if ((owners >= 0) & others).any():
                    self.joined.add(layer)
                bare[rows] = loud[rows] = False
        return Flow(flow.feeds, bare, loud)

    def known(self, network: nn.Module) -> dict[str, Known]:
        """Everything about the hidden layers."""
        found = {name: self._known(number, network) for number, name in enumerate(self.names)}
        return {name: known for name, known in found.items() if known.consumers}

    def outputs(self) -> set[str]:
        hidden = {number for call in self.taken for number in call.flow.sources()}
        return {name for number, name in enumerate(self.names) if number not in hidden}

    def _known(self, layer: int, network: nn.Module) -> Known:
        consumers, reasons = {}, []
        mine = slice(1 + WIDTH * layer, 1 + WIDTH * (layer + 1))
        for consumer in dict.fromkeys(call.layer for call in self.taken):
            feeds = torch.stack([call.by_position() for call in self.taken if call.layer == consumer]).any(0)
            fed = feeds[mine].sum(0)
            if not fed.any():
                continue
            consumers[consumer] = torch.where(fed == 1, feeds[mine].long().argmax(0), -1).tolist()
            others = {(row - 1) // WIDTH for row in feeds[:, fed > 0].any(1).nonzero().flatten().tolist()} - {layer}
            if others:
                names = sorted(OBSERVATION if other < 0 else self.names[other] for other in others)
                reasons.append(f"what it feeds into {consumer} is also fed by {', '.join(names)} (")
            if (fed > 1).any():
                reasons.append(f"input positions of {consumer} depend on several of its neurons")
        if layer in self.returned:
            reasons.append("it also reaches an output")
        for name in (self.names[layer], *consumers):
            reasons += _not_writable(network, name)
        seen, doubt, active = self._seen(layer, consumers)
        rows = [call.flow.rows(layer) for call in self.taken]
        silent = not any((row.loud & row.feeds).any() for row in rows)
        return Known(consumers, reasons, layer not in self.normalised and (silent or not active), seen, doubt)

    def _seen(self, layer: int, consumers: dict[str, list[int]]) -> tuple[list[tuple[int, Tensor]], str | None, bool]:
        """Where it is measured, what is doubtful about that, and whether that is at its activation calls."""
        calls = self.activations[layer]
        arrivals = [(call.register, call.flow) for call in self.taken if layer in call.flow.sources()]
        around = any((flow.rows(layer).bare.any(0) & ~flow.others(layer)).any() for _, flow in arrivals)
        doubt = "joined activations" if layer in self.joined and (len(calls) > 1 or around) else None
        if calls and not around:
            return calls, doubt, True
        is_mixed = any(-1 in positions and self._is_mixed(layer, name) for name, positions in consumers.items())
        tensors = self.results[self.names[layer]] if is_mixed else arrivals
        return [(register, flow.owners(layer)) for register, flow in tensors], doubt, False

    def _is_mixed(self, layer: int, consumer: str) -> bool:
        feeds = torch.stack([call.by_position() for call in self.taken if call.layer == consumer]).any(0)
        return bool((feeds[1 + WIDTH * layer : 1 + WIDTH * (layer + 1)].sum(0) > 1).any())


def _not_writable(network: nn.Module, name: str) -> list[str]:
    layer = network.get_submodule(name)
    if not is_plain(layer):
        return ["forward pass is not that of a plain layer"]
    if parametrize.is_parametrized(layer):
        return ["weights are computed from other parameters"]
    if not layer.weight.requires_grad:
        return ["weights are frozen"]
    twins = [n for n, other in network.named_modules() if getattr(other, "weight", None) is layer.weight and n != name]
    return ["weights are shared with"] if twins else []
