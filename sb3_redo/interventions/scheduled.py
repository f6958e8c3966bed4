"""Recycles a given share of every layer, dormant or not (Sokar et al. 2023, figure 15)."""

import math
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from sb3_redo.callbacks.redo import ReDoCallback
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.dormancy.scores import LayerDormancy
from sb3_redo.recycling.outgoing_weights import neuron_magnitudes
from sb3_redo.sb3.seeds import torch_generator
from sb3_redo.validation import fraction, one_of, positive_integer
from sb3_redo.wiring.structure import LayerWiring

SELECTIONS = ("lowest", "random", "highest", "utility", "cbp")


def least(ranks: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return exactly ``count`` neurons with the lowest ranks. Ties are broken at random.

    :param ranks: [neurons]
    :param count: in 0 to the number of neurons
    :param generator: on the CPU
    :return: long tensor of neurons
    """
    shuffled = torch.randperm(len(ranks), generator=generator).to(ranks.device)
    order = torch.argsort(ranks[shuffled], stable=True)
    return shuffled[order[:count]]


@dataclass(frozen=True)
class ScheduledSelection:
    """Selects a share of every layer that falls with the gradient steps, see :class:`ScheduledReDoCallback`."""

    end: int = 2_500_000
    fraction: float = 0.1
    selection: str = "lowest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", positive_integer("end", self.end))
        object.__setattr__(self, "fraction", fraction("fraction", self.fraction))
        one_of("selection", self.selection, SELECTIONS)

    def share(self, gradient_step: int) -> float:
        """Return the share of every layer, in [0, fraction]."""
        return self.fraction * math.cos(math.pi / 2 * min(gradient_step / self.end, 1.0))

    def __call__(self, report: DormancyReport, callback: ReDoCallback) -> dict[str, Tensor]:
        measurer, gradient_step = callback.measurer, callback.gradient_step
        generator = torch_generator((measurer.seed + crc32(b"selection"), gradient_step))
        deviations = measurer.deviations(report.batch) if self.selection == "cbp" else {}
        selected = {}
        for layer in report.layers:
            # Drawn for every layer, so that a layer's draw does not depend on the others.
            count = round(layer.neurons * self.share(gradient_step))
            ranks = self.ranks(layer, report.wiring[layer.name], callback.model.policy, deviations.get(layer.name))
            neurons = least(ranks, count, generator)
            if layer.recyclable:
                selected[layer.name] = neurons
        return selected

    def ranks(self, layer: LayerDormancy, wiring: LayerWiring, policy: nn.Module, deviations: Tensor | None) -> Tensor:
        """Return ranks of a layer's neurons, [neurons]. The lowest are recycled."""
        if self.selection == "random":
            return torch.zeros_like(layer.scores)
        if self.selection == "highest":
            return -layer.scores
        # Layers that cannot be recycled may have another weight layout. Their ranks are not used.
        if self.selection == "lowest" or not layer.recyclable:
            return layer.scores
        outgoing = neuron_magnitudes(policy, wiring)
        if deviations is None:
            return layer.scores * outgoing
        incoming = policy.get_submodule(layer.name).weight
        assert isinstance(incoming, Tensor)
        magnitudes = incoming.detach().abs().flatten(1).sum(1)
        # Without incoming weights, an activation is constant and its deviation is 0.
        return deviations * outgoing / magnitudes.clamp(min=torch.finfo(magnitudes.dtype).tiny)


class ScheduledReDoCallback(ReDoCallback):
    """Recycles a share of every layer at each period. The share falls from ``fraction`` to 0 along a cosine.

    The share is ``fraction · cos(π/2 · gradient step / end)``, rounded to whole neurons per layer, possibly none. The
    authors' code recycles at least one. ``dormancy_threshold`` only affects the logged fractions.

    :param end: gradient step at which the share reaches 0. The authors' value is 2,500,000.
    :param fraction: in [0, 1], the share at the start. The paper's value is 0.1.
    :param selection: ``"lowest"`` recycles the neurons with the lowest scores, ``"highest"`` those with the highest,
        ``"random"`` random ones. ``"utility"`` recycles those with the lowest mean \\|h\\| · Σ \\|outgoing weights\\|
        (Dohare et al. 2024). ``"cbp"`` uses the authors' formula for it: mean \\|h - mean h\\| · Σ \\|outgoing
        weights\\| / Σ \\|incoming weights\\|.
    :param settings: of :class:`~sb3_redo.ReDoCallback`
    :raises TypeError, ValueError: on a setting of the wrong type, out of range or with an unknown name
    """

    def __init__(self, end: int = 2_500_000, fraction: float = 0.1, selection: str = "lowest", **settings: Any):
        super().__init__(select=ScheduledSelection(end, fraction, selection), **settings)
