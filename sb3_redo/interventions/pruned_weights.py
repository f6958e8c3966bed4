"""The weights that read pruned neurons."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from sb3_redo.recycling.edits import groups
from sb3_redo.recycling.optimizer_state import OptimizerState
from sb3_redo.wiring.structure import LayerWiring


@dataclass(frozen=True, eq=False)
class PrunedWeights:
    """The weights of a consumer that read pruned neurons.

    :param weight: of the consumer
    :param mask: True for these weights, in a shape that broadcasts to ``weight``
    """

    weight: Tensor
    mask: Tensor

    @cached_property
    def _others(self) -> Tensor:
        """Return 0 for them and 1 for all other weights. Multiplying takes a quarter of the time of filling."""
        # Infinite values become NaN. A step on such a gradient would break the network without pruning, too.
        return (~self.mask).to(self.weight.dtype)

    def clear(self) -> None:
        """Set them to 0, in place."""
        with torch.no_grad():
            self.weight.mul_(self._others)

    def clear_state(self, state: OptimizerState) -> None:
        """Reset the optimizers' state of these weights, in place, so that no momentum moves them."""
        for entry in state.of(self.weight):
            # A mean over an axis also belongs to other weights.
            if entry.kind.what != "ignore" and getattr(entry.value, "shape", None) == self.weight.shape:
                entry.value.masked_fill_(self.mask, entry.initial)

    def without_gradient(self, gradient: Tensor) -> Tensor:
        """Return a gradient of the weight, with 0 for these entries."""
        return gradient * self._others


def weights_of_pruned(
    policy: nn.Module, wiring: Iterable[LayerWiring], pruned: dict[str, Tensor]
) -> dict[str, PrunedWeights]:
    """Return the weights that read pruned neurons, by consumer name.

    :param wiring: layers of the policy
    :param pruned: layer name to bool mask [neurons]. Other layers have no pruned neurons.
    """
    positions: dict[str, Tensor] = {}
    for layer in wiring:
        mask = pruned.get(layer.name)
        for consumer, owners in layer.consumers.items() if mask is not None and mask.any() else ():
            assert mask is not None
            theirs = (owners >= 0) & mask.cpu()[owners]
            positions[consumer] = positions[consumer] | theirs if consumer in positions else theirs
    found = {}
    for consumer, chosen in positions.items():
        module = policy.get_submodule(consumer)
        weight = module.weight
        assert isinstance(weight, Tensor)
        parts = groups(module, weight)
        # If all rows read the same positions, one row of the mask is enough.
        mask = torch.zeros(1 if len(parts) == 1 else len(weight), *weight.shape[1:2], dtype=torch.bool)
        for rows, columns in parts:
            mask[rows] = chosen[columns]
        found[consumer] = PrunedWeights(weight, mask.view(*mask.shape, *[1] * (weight.ndim - 2)).to(weight.device))
    return found
