"""A network's features: the inputs of its output layers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.forward.contexts import replaced_forward
from sb3_redo.forward.nested import chunks
from sb3_redo.plasticity.network import Network
from sb3_redo.plasticity.ranks import Ranks, ranks_of


def feature_matrices(network: Network, batch: Any) -> dict[str, Tensor]:
    """Return the inputs of a network's output layers, [batch, features], by layer name.

    If two layers have the same input, the second is left out, as for an actor's log standard deviation.
    """
    layers = {name: network.module.get_submodule(name) for name in network.wiring.outputs}
    parts: list[dict[str, Tensor]] = []

    def recording(name: str, layer: nn.Module) -> Callable[..., Any]:
        real = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            read: Tensor = args[0] if args else kwargs["input"]
            if not any(read is other for other in parts[-1].values()):
                parts[-1][name] = read
            return real(*args, **kwargs)

        return forward

    with network.examined(), torch.no_grad(), replaced_forward(layers, recording):
        for part in chunks(batch, network.wiring.rows_at_once):
            parts.append({})
            network(part)
    return {name: torch.cat([part[name].flatten(1) for part in parts]) for name in parts[0]}


def feature_norm(features: Tensor) -> float:
    """Return the mean length of the feature vectors in a batch.

    :param features: [batch, features]
    """
    return float(features.norm(dim=1).mean())


def feature_ranks(features: Tensor) -> Ranks:
    """Return the ranks of the feature matrix, not centred.

    :param features: [batch, features]. More rows can only raise the ranks: compare batches of equal size.
    """
    return ranks_of(features)
