"""Recycling a given share of every layer, whether or not its neurons are dormant (Sokar et al. 2023, figure 15)."""

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
    """Return the neurons with the least ranks, exactly so many. Chance decides between equal ones.

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
    """Selects a share of every layer, which falls with the gradient steps; see :class:`ScheduledReDoCallback`."""

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
            # Drawn for every layer, so that what one gets does not depend on whether another can be recycled.
            count = round(layer.neurons * self.share(gradient_step))
            ranks = self.ranks(layer, report.wiring[layer.name], callback.model.policy, deviations.get(layer.name))
            neurons = least(ranks, count, generator)
            if layer.recyclable:
                selected[layer.name] = neurons
        return selected

    def ranks(self, layer: LayerDormancy, wiring: LayerWiring, policy: nn.Module, deviations: Tensor | None) -> Tensor:
        """Return ranks of a layer's neurons, [neurons]; the least are recycled."""
        if self.selection == "random":
            return torch.zeros_like(layer.scores)
        if self.selection == "highest":
            return -layer.scores
        # What cannot be recycled may have weights that are laid out in another way, and is left alone however it ranks.
        if self.selection == "lowest" or not layer.recyclable:
            return layer.scores
        outgoing = neuron_magnitudes(policy, wiring)
        if deviations is None:
            return layer.scores * outgoing
        incoming = policy.get_submodule(layer.name).weight
        assert isinstance(incoming, Tensor)
        magnitudes = incoming.detach().abs().flatten(1).sum(1)
        # Without incoming weights an activation is constant, and its deviation 0.
        return deviations * outgoing / magnitudes.clamp(min=torch.finfo(magnitudes.dtype).tiny)


class ScheduledReDoCallback(ReDoCallback):
    """Recycles a share of every layer at each period; the share falls from ``fraction`` to 0 as a cosine does.

    The share is ``fraction · cos(π/2 · gradient step / end)``, rounded to whole neurons of each layer, which may be
    none. (The authors' code recycles at least one.) ``dormancy_threshold`` is for what is logged.

    :param end: gradient step at which the share has come to 0; the authors' 2,500,000
    :param fraction: in [0, 1], the share at the start; the paper's 0.1
    :param selection: ``"lowest"`` recycles the neurons with the lowest scores, ``"highest"`` those with the highest,
        ``"random"`` any, and ``"utility"`` those with the least mean \\|h\\| · Σ \\|outgoing weights\\| (Dohare et al.
        2024). ``"cbp"`` is what the authors have for it: mean \\|h - mean h\\| · Σ \\|outgoing weights\\| /
        Σ \\|incoming weights\\|.
    :param settings: of :class:`~sb3_redo.ReDoCallback`
    :raises TypeError, ValueError: on a setting of the wrong type, out of range or with an unknown name
    """

    def __init__(self, end: int = 2_500_000, fraction: float = 0.1, selection: str = "lowest", **settings: Any):
        super().__init__(select=ScheduledSelection(end, fraction, selection), **settings)
