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
    def is_single(self) -> bool:
        """Whether every element has at most one source."""
        return bool((self.feeds.sum(0) <= 1).all())

    @property
    def is_one_to_one(self) -> bool:
        """Whether every feature has one source, and no two of them the same."""
        by_feature = self.feeds.reshape(*self.feeds.shape[:2], -1).any(2)
        return bool((by_feature.sum(0) == 1).all() and (by_feature.sum(1) <= 1).all())

    @property
    def is_constant_in_space(self) -> bool:
        return self.shape[-1] == 1

    def sources(self) -> set[int]:
        """The numbers of the layers that feed any of it, and -1 for the observation."""
        return {(source - 1) // WIDTH for source in self.feeds.flatten(1).any(1).nonzero().flatten().tolist()}

    def rows(self, layer: int) -> "Flow":
        return Flow(*(part[1 + WIDTH * layer : 1 + WIDTH * (layer + 1)] for part in self))

    def owners(self, layer: int) -> Tensor:
        """The one neuron of a layer that feeds each element, else -1."""
        feeds = self.rows(layer).feeds
        return torch.where(feeds.sum(0) == 1, feeds.long().argmax(0), -1)

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
    :param doubt: which known fault of measuring or which open question of where to measure touches it, if any
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
    """

    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    is_linear: list[bool] = field(default_factory=list)
    results: dict[str, list[tuple[int, Flow]]] = field(default_factory=lambda: defaultdict(list))
    taken: list[Call] = field(default_factory=list)
    activations: dict[int, list[tuple[int, Flow]]] = field(default_factory=lambda: defaultdict(list))
    normalised: set[int] = field(default_factory=set)
    returned: set[int] = field(default_factory=set)

    def add(self, name: str, size: int, is_linear: bool) -> None:
        self.names.append(name)
        self.is_linear.append(is_linear)
        self.sizes.append(size)

    def calls(self, name: str, register: int, flow: Flow, axis: int) -> None:
        self.taken.append(Call(name, register, flow, axis))

    def normalises(self, flow: Flow) -> None:
        self.normalised |= flow.sources()

    def returns(self, flow: Flow) -> None:
        self.returned |= flow.sources()

    def activates(self, register: int, flow: Flow, wakes: bool) -> Flow:
        """An activation call: that of every layer that arrives without one and is still readable.

        :param wakes: whether it makes something of 0
        """
        bare, loud = flow.bare.clone(), flow.feeds.clone() if wakes else flow.loud.clone()
        for layer in flow.sources() - {-1}:
            rows = slice(1 + WIDTH * layer, 1 + WIDTH * (layer + 1))
            if bare[rows].any() and (flow.owners(layer) >= 0).any():
                self.activations[layer].append((register, flow))
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
        around = [flow for _, flow in arrivals if flow.rows(layer).bare.any()]
        doubt = self._doubt(layer, [flow for _, flow in calls], around)
        is_mixed = any(-1 in positions and self._is_mixed(layer, name) for name, positions in consumers.items())
        is_active = bool(calls) and not around
        results = self.results[self.names[layer]]
        seen = [
            (register, flow.owners(layer))
            for register, flow in (calls if is_active else results if is_mixed else arrivals)
        ]
        if not doubt and set(range(self.sizes[layer])) - {n for _, owners in seen for n in owners.unique().tolist()}:
            doubt = "unseen neuron"
        if not is_active and is_mixed and self.is_linear[layer] and len(results[0][1].shape) > 1:
            doubt = "tokens"
        return seen, doubt, is_active

    def _doubt(self, layer: int, calls: list[Flow], around: list[Flow]) -> str | None:
        """Sharing one activation is an open question; lying side by side in one tensor is none."""
        doubts = []
        if len(calls) > 1:
            doubts += [flow for flow in calls if len(flow.sources()) > 1]
        if calls and around and all(len(flow.sources()) > 1 for flow in around):
            doubts += around
        if not doubts:
            return None
        joined = any((flow.rows(layer).feeds.any(0) & flow.others(layer)).any() for flow in [*calls, *doubts])
        return "joined activations" if joined else "way around beside others" if around else "calls beside others"

    def _is_mixed(self, layer: int, consumer: str) -> bool:
        feeds = torch.stack([call.by_position() for call in self.taken if call.layer == consumer]).any(0)
        return bool((feeds[1 + WIDTH * layer : 1 + WIDTH * (layer + 1)].sum(0) > 1).any())


def _not_writable(network: nn.Module, name: str) -> list[str]:
    layer = network.get_submodule(name)
    if parametrize.is_parametrized(layer):
        return ["weights are computed from other parameters"]
    if not layer.weight.requires_grad:
        return ["weights are frozen"]
    twins = [n for n, other in network.named_modules() if getattr(other, "weight", None) is layer.weight and n != name]
    return ["weights are shared with"] if twins else []
