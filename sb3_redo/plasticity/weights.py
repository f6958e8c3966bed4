"""Norms and ranks of a network's weights, and the distance they have moved."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sb3_redo.forward.contexts import uncompiled_name
from sb3_redo.forward.layers import TRANSPOSED
from sb3_redo.plasticity.network import Network
from sb3_redo.plasticity.ranks import Ranks, ranks_of


def weight_norm(network: Network) -> float:
    """Return ‖θ‖, the L2 norm of all trained parameters together, biases and normalisations included."""
    return norm_of(network.parameters)


def weight_ranks(network: Network) -> dict[str, Ranks]:
    """Return the ranks of every hidden layer's weights, as matrices [neurons, inputs], by layer name."""
    # In training mode, computing parametrised weights may change the parameters.
    with network.examined(), torch.no_grad():
        return {layer.name: ranks_of(_matrix(network.module.get_submodule(layer.name))) for layer in network.wiring}


def _matrix(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    # Transposed convolutions have their neurons on the second axis.
    return (weight.movedim(1, 0) if isinstance(layer, TRANSPOSED) else weight).flatten(1)


def distance_from(network: Network, before: Mapping[str, Tensor]) -> float:
    """Return ‖θ - θ'‖, the L2 distance that all trained parameters have moved.

    :param before: θ', by parameter name, without the parts that ``torch.compile`` adds
    """
    return norm_of({name: p.detach() - before[uncompiled_name(name)].to(p) for name, p in network.parameters.items()})


def update_ratio(network: Network, before: Mapping[str, Tensor]) -> float:
    """Return ‖θ - θ'‖ / ‖θ'‖, the norm of an update over that of the weights before it. NaN if these are 0.

    :param before: parameters before the update, see :func:`distance_from`
    """
    length = norm_of({name: before[uncompiled_name(name)] for name in network.parameters})
    return distance_from(network, before) / length if length else float("nan")


def norm_of(tensors: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of all entries of some tensors, or 0 without tensors."""
    if not tensors:
        return 0.0
    return float(torch.stack([tensor.detach().norm().float().cpu() for tensor in tensors.values()]).norm())
