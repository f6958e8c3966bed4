"""Dead and saturated neurons."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.dormancy.meter import LayerSite
from sb3_redo.forward.contexts import replaced_forward
from sb3_redo.forward.functions import ACTIVATIONS, FunctionWatcher
from sb3_redo.forward.nested import chunks
from sb3_redo.plasticity.network import Network


@dataclass(frozen=True)
class LayerUnits:
    """Which neurons of a layer do nothing, or learn nothing, on one batch.

    :param name: path of the layer
    :param dead: bool mask, [neurons]: the activation is 0 for every observation, and everywhere in space
    :param saturated: bool mask, [neurons]: the activation's slope is below the threshold for every observation, and
        everywhere in space, so that next to no gradient passes
    """

    name: str
    dead: Tensor = field(repr=False)
    saturated: Tensor = field(repr=False)


def units_of(network: Network, batch: Any, slope: float = 0.01) -> tuple[LayerUnits, ...]:
    """Dead and saturated neurons of every hidden layer, in the order in which they run.

    The slope is the derivative of the activation function where the neuron is: 1 - h² of a tanh, which is below 0.01
    beyond \\|h\\| = 0.995; 0 or 1 of a ReLU, of which a dead neuron is a saturated one too. A neuron whose activation
    is none that torch knows by name (``x * sigmoid(x)`` written out, or none at all) counts as not saturated.

    :param slope: a neuron is saturated where its activation is flatter than this
    :raises RuntimeError: when the network makes other calls than when it was read
    """
    layers = list(network.wiring)
    watcher = _UnitWatcher(network, slope)
    watched = {name: network.module.get_submodule(name) for kind, name, _ in watcher.sites if kind != "activation"}
    with network.examined(), torch.no_grad(), replaced_forward(watched, watcher.watching):
        for part in chunks(batch, network.wiring.rows_at_once):
            watcher.begin()
            with watcher:
                network(part)
            watcher.check()
    return tuple(
        LayerUnits(layer.name, torch.stack(active).sum(0) == 0, torch.stack(steep).sum(0) == 0)
        for layer, active, steep in zip(layers, watcher.active, watcher.steep, strict=True)
    )


class _UnitWatcher(FunctionWatcher):
    """Sums up, for each neuron, its activations and how often its activation function is steep."""

    def __init__(self, network: Network, slope: float):
        super().__init__()
        self.wiring = network.wiring
        self.slope = slope
        self.sites: dict[tuple[str, str, int], list[LayerSite]] = {}
        for number, layer in enumerate(network.wiring):
            for site in layer.sites:
                self.sites.setdefault((site.kind, site.name, site.call), []).append(LayerSite(number, layer, site))
        self.active: list[list[Tensor]] = [[] for _ in network.wiring]
        self.steep: list[list[Tensor]] = [[] for _ in network.wiring]

    def begin(self) -> None:
        """Before a pass."""
        self.activation_calls = self.seen = 0
        self.calls: dict[str, Any] = {}
        self.last: tuple[Tensor | None, Tensor | None] = None, None
        """The output of the last activation call, and where it is steep."""

    def check(self) -> None:
        """After a pass."""
        expected = sum(map(len, self.sites.values()))
        if (self.seen, self.activation_calls) != (expected, self.wiring.activation_calls):
            raise RuntimeError(
                f"the forward pass made {self.activation_calls} activation calls and reached {self.seen} places to "
                f"measure, but {self.wiring.activation_calls} and {expected} when it was read: a network that changes "
                "from pass to pass cannot be measured"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ACTIVATIONS:
            # Before the call, which may overwrite its input.
            steep = self._steep(func, args, kwargs or {})
            output = super().__torch_function__(func, types, args, kwargs)
            self.last = output, steep
            call = self.activation_calls - 1
            self._see(("activation", str(call), call), output, steep)
            return output
        return super().__torch_function__(func, types, args, kwargs)

    def _steep(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """1 where the activation is steep, else 0."""
        value, *others = args or (kwargs["input"],)
        rest = {key: item for key, item in kwargs.items() if key != "input"}
        with torch.enable_grad():
            here = value.detach().clone().requires_grad_()
            # A copy once more, since a function that works in place may not change a leaf.
            there = func(here.clone(), *others, **rest)
            slopes = torch.autograd.grad(there.sum(), here)[0]
        flat: Tensor = slopes.abs() < self.slope
        return (~flat).to(value)  # so that NaN is not flat

    def watching(self, name: str, module: nn.Module) -> Callable[..., Any]:
        """Stands in for the ``forward`` of a module that has sites."""
        real = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = next(self.calls.setdefault(name, count()))
            self._see(("input", name, call), args[0] if args else kwargs["input"], None)
            result = real(*args, **kwargs)
            output, steep = self.last
            self._see(("result", name, call), result, steep if output is result else None)
            return result

        return forward

    def _see(self, place: tuple[str, str, int], value: Tensor, steep: Tensor | None) -> None:
        for site in self.sites.get(place, ()):
            self.active[site.number].append(site.magnitudes(value)[0])
            self.steep[site.number].append(site.magnitudes(torch.ones_like(value) if steep is None else steep)[0])
            self.seen += 1
