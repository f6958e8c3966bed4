"""Sizes and effects of the weights that read each input position of a layer."""

import torch
from torch import Tensor, nn

from sb3_redo.recycling.edits import groups
from sb3_redo.wiring.structure import LayerWiring


def position_magnitudes(layer: nn.Module) -> Tensor:
    """Sum \\|w\\| over all weights that read a position, [input positions]."""
    weight = _weight(layer)
    others = [axis for axis in range(weight.ndim) if axis != 1]
    if getattr(layer, "groups", 1) == 1:
        return weight.abs().sum(others)
    return torch.cat([weight[rows].abs().sum(others) for rows, _ in groups(layer, weight)])


def neuron_magnitudes(policy: nn.Module, layer: LayerWiring) -> Tensor:
    """Sum \\|w\\| over all outgoing weights of each neuron of a layer, in all of its consumers, [neurons].

    If a channel feeds several columns of a linear layer, the weights of all of them count.
    """
    device = _weight(policy.get_submodule(layer.name)).device
    totals = torch.zeros(layer.neurons, device=device)
    for consumer, owners in layer.consumers.items():
        fed = (owners >= 0).nonzero().flatten()
        magnitudes = position_magnitudes(policy.get_submodule(consumer))[fed.to(device)]
        totals.index_add_(0, owners[fed].to(device), magnitudes.to(totals))
    return totals


def position_effects(layer: nn.Module, values: Tensor) -> Tensor:
    """Compute a layer's output without its bias when each input position is constant over space, [neurons].

    For a convolution, it is the output at positions with the whole kernel inside the input.

    :param values: of the input positions, [input positions]
    """
    weight = _weight(layer)
    effects = [_flat(weight[rows]).sum(2) @ values[columns].to(weight) for rows, columns in groups(layer, weight)]
    return torch.cat(effects)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _flat(weight: Tensor) -> Tensor:
    """Return the weight as [neurons, input positions, kernel positions]."""
    return weight.flatten(2) if weight.ndim > 2 else weight.unsqueeze(2)
