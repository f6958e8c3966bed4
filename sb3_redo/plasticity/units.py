"""Dead and saturated neurons."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sb3_redo.dormancy.meter import LayerSite, Meter
from sb3_redo.forward.functions import ACTIVATIONS, FunctionWatcher
from sb3_redo.plasticity.network import Network


@dataclass(frozen=True)
class LayerUnits:
    """The dead and saturated neurons of a layer on one batch.

    :param name: path of the layer
    :param dead: bool mask, [neurons]: the activation is 0 for every observation, and everywhere in space
    :param saturated: bool mask, [neurons]: the activation's slope is below the threshold for every observation, and
        everywhere in space, so that almost no gradient passes
    """

    name: str
    dead: Tensor = field(repr=False)
    saturated: Tensor = field(repr=False)


def units_of(network: Network, batch: Any, slope: float = 0.01) -> tuple[LayerUnits, ...]:
    """Find the dead and saturated neurons of every hidden layer, in the order in which they run.

    The slope is the derivative of the activation function at the neuron's value. That of a tanh is 1 - h², below 0.01
    beyond \\|h\\| = 0.995. That of a ReLU is 0 or 1, so a dead neuron is saturated, too. A neuron counts as not
    saturated if torch has no name for its activation: ``x * sigmoid(x)`` written out, or none at all.

    :param slope: a neuron is saturated if its activation's slope is below this
    :raises RuntimeError: when the network makes other calls than when it was read
    """
    meter = Meter(network.module, network.wiring, {layer.name: network.name for layer in network.wiring})
    meter.watches_functions = True
    slopes = _SlopeWatcher(slope)

    def activity_and_steepness(site: LayerSite, value: Tensor) -> tuple[Tensor, float]:
        is_activation = site.kind != "input" and value is slopes.output
        steep = slopes.steep if is_activation else torch.ones_like(value)
        return torch.stack([site.magnitudes(value)[0], site.magnitudes(steep)[0]]), 1.0

    # The watcher runs outside the meter, so that a slope is known when the meter sees its activation.
    with network.examined(), slopes:
        totals = meter.totals(network, batch, activity_and_steepness)
    return tuple(LayerUnits(name, active == 0, steep == 0) for name, (active, steep) in totals.items())


class _SlopeWatcher(FunctionWatcher):
    """Keeps the output of the latest activation call, and a mask: 1 where the activation is steep, else 0."""

    output: Tensor | None = None
    steep: Tensor

    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in ACTIVATIONS:
            return super().__torch_function__(func, types, args, kwargs)
        # Before the call, which may overwrite its input.
        steep = self._steep(func, args, kwargs or {})
        self.output, self.steep = super().__torch_function__(func, types, args, kwargs), steep
        return self.output

    def _steep(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        value, *others = args or (kwargs["input"],)
        rest = {key: item for key, item in kwargs.items() if key != "input"}
        with torch.enable_grad():
            here = value.detach().clone().requires_grad_()
            # Cloned, since an in-place function may not change a leaf.
            there = func(here.clone(), *others, **rest)
            slopes = torch.autograd.grad(there.sum(), here)[0]
        flat: Tensor = slopes.abs() < self.slope
        return (~flat).to(value)  # so that NaN is not flat
