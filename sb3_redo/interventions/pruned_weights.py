"""The weights with which layers read neurons that are pruned."""

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
    """The weights with which a consumer reads pruned neurons.

    :param weight: of the consumer
    :param mask: True for those, of a shape that broadcasts to the weight's
    """

    weight: Tensor
    mask: Tensor

    @cached_property
    def _others(self) -> Tensor:
        """0 for them and 1 for all other weights: to multiply takes a quarter of the time that to fill takes."""
        # What is infinite becomes NaN. A step on such a gradient would break the network without pruning, too.
        return (~self.mask).to(self.weight.dtype)

    def clear(self) -> None:
        """Set them to 0, in place."""
        with torch.no_grad():
            self.weight.mul_(self._others)

    def clear_state(self, state: OptimizerState) -> None:
        """Set what optimizers remember of them to what it began with, in place, so that nothing moves them."""
        for entry in state.of(self.weight):
            # A mean over an axis is that of other weights, too.
            if entry.kind.what != "ignore" and getattr(entry.value, "shape", None) == self.weight.shape:
                entry.value.masked_fill_(self.mask, entry.initial)

    def without_gradient(self, gradient: Tensor) -> Tensor:
        """Return a gradient of the weight, with 0 for them."""
        return gradient * self._others


def weights_of_pruned(
    policy: nn.Module, wiring: Iterable[LayerWiring], pruned: dict[str, Tensor]
) -> dict[str, PrunedWeights]:
    """Return what consumers read pruned neurons with, by the consumer's name.

    :param wiring: layers of the policy
    :param pruned: layer name to bool mask [neurons]; other layers have none
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
        # One row stands for all of them where all read the same positions.
        mask = torch.zeros(1 if len(parts) == 1 else len(weight), *weight.shape[1:2], dtype=torch.bool)
        for rows, columns in parts:
            mask[rows] = chosen[columns]
        found[consumer] = PrunedWeights(weight, mask.view(*mask.shape, *[1] * (weight.ndim - 2)).to(weight.device))
    return found
