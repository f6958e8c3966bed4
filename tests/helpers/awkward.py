"""What tests know of a network: its wiring as written down, and its true activations as it runs."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

RANGE = {width: list(range(width)) for width in range(1, 100)}


@dataclass(frozen=True)
class Known:
    """What is true of one layer.

    :param consumers: consumer name to the neuron feeding each of its input positions, -1 for none
    :param reason: text in the reason why it is not recycled, or ``None`` if it is
    :param exact: whether recycling a dead neuron changes no output
    :param normalisations: parameter or buffer on the way to the neuron that each of its entries belongs to
    """

    consumers: dict[str, list[int]] = field(default_factory=dict)
    reason: str | None = None
    exact: bool = True
    normalisations: dict[str, list[Any]] = field(default_factory=dict)


class Awkward(nn.Module):
    """A network that notes its activations in ``seen``: layer name to tensors [batch, neurons, ...]."""

    known: dict[str, Known]
    outputs: tuple[str, ...] = ("out",)

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[Tensor]] = {}

    def note(self, name: str, activation: Tensor) -> Tensor:
        self.seen.setdefault(name, []).append(activation.detach().clone())
        return activation

    def observations(self, batch: int, seed: int = 0) -> Any:
        return torch.randn(batch, 5, generator=torch.Generator().manual_seed(seed))
