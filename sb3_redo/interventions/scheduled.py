"""Recycling a given share of every layer, whether or not its neurons are dormant (Sokar et al. 2023, figure 15)."""

import math
from dataclasses import replace
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from sb3_redo.callbacks.redo import ReDoCallback
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.dormancy.scores import LayerDormancy
from sb3_redo.recycling.outgoing_weights import neuron_magnitudes
from sb3_redo.sb3.seeds import torch_generator
from sb3_redo.validation import fraction as a_fraction
from sb3_redo.validation import one_of, positive_integer
from sb3_redo.wiring.structure import LayerWiring

SELECTIONS = ("lowest", "random", "highest", "utility", "cbp")


def least(ranks: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Mask of the neurons with the least ranks, exactly so many; of equal ones, which is left to chance.

    :param ranks: [neurons]
    :param count: in 0 to the number of neurons
    :param generator: on the CPU
    :return: bool, [neurons]
    """
    shuffled = torch.randperm(len(ranks), generator=generator).to(ranks.device)
    order = torch.argsort(ranks[shuffled], stable=True)
    mask = torch.zeros(len(ranks), dtype=torch.bool, device=ranks.device)
    mask[shuffled[order[:count]]] = True
    return mask


class ScheduledReDoCallback(ReDoCallback):
    """Recycles a share of every layer at each period; the share falls from ``fraction`` to 0 as a cosine does.

    The share is ``fraction · cos(π/2 · gradient step / end)``, rounded to whole neurons of each layer, which may be
    none. (The authors' code recycles at least one.) Everything but what is selected is as in
    :class:`~sb3_redo.ReDoCallback`, whose settings it takes; ``dormancy_threshold`` is for what is logged.

    :param end: gradient step at which the share has come to 0; the authors' 2,500,000
    :param fraction: in [0, 1], the share at the start; the paper's 0.1
    :param selection: ``"lowest"`` recycles the neurons with the lowest scores, ``"highest"`` those with the highest,
        ``"random"`` any, and ``"utility"`` those with the least mean \\|h\\| times the sum of \\|outgoing weights\\|,
        the contribution utility of continual backpropagation (Dohare et al. 2024). ``"cbp"`` is what the authors have
        for it: mean \\|h - mean h\\| times the sum of \\|outgoing weights\\| over that of \\|incoming weights\\|.
    :param settings: of :class:`~sb3_redo.ReDoCallback`
    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range or an unknown name
    """

    def __init__(self, end: int = 2_500_000, fraction: float = 0.1, selection: str = "lowest", **settings: Any):
        super().__init__(**settings)
        self.end = positive_integer("end", end)
        self.fraction = a_fraction("fraction", fraction)
        self.selection = one_of("selection", selection, SELECTIONS)

    def share(self, gradient_step: int) -> float:
        """Of every layer, in [0, fraction]."""
        return self.fraction * math.cos(math.pi / 2 * min(gradient_step / self.end, 1.0))

    def _select(self, report: DormancyReport, gradient_step: int) -> DormancyReport:
        generator = torch_generator((self._seed + crc32(b"selection"), gradient_step))
        deviations = self._meter.deviations(self._forward, report.batch) if self.selection == "cbp" else {}
        layers = []
        for layer in report.layers:
            count = round(layer.neurons * self.share(gradient_step))
            ranks = self._ranks(layer, report.wiring[layer.name], deviations.get(layer.name))
            layers.append(replace(layer, dormant=least(ranks, count, generator)))
        return replace(report, layers=tuple(layers))

    def _ranks(self, layer: LayerDormancy, wiring: LayerWiring, deviations: Tensor | None) -> Tensor:
        """Those with the least are recycled, [neurons]."""
        if self.selection == "random":
            return torch.zeros_like(layer.scores)
        if self.selection == "highest":
            return -layer.scores
        # What cannot be recycled may have weights that are laid out in another way, and is left alone however it ranks.
        if self.selection == "lowest" or not layer.recyclable:
            return layer.scores
        outgoing = neuron_magnitudes(self.model.policy, wiring)
        if deviations is None:
            return layer.scores * outgoing
        incoming = self.model.policy.get_submodule(layer.name).weight
        assert isinstance(incoming, Tensor)
        magnitudes = incoming.detach().abs().flatten(1).sum(1)
        # Without incoming weights an activation is constant, and its deviation 0.
        return deviations * outgoing / magnitudes.clamp(min=torch.finfo(magnitudes.dtype).tiny)
