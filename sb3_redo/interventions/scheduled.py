"""Recycling a given share of every layer, whether or not its neurons are dormant (Sokar et al. 2023, figure 15)."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from sb3_redo.dormancy import DormancyReport, LayerDormancy
from sb3_redo.outgoing import neuron_magnitudes
from sb3_redo.redo import ReDoCallback
from sb3_redo.sampling import torch_generator
from sb3_redo.settings import fraction as a_fraction
from sb3_redo.settings import one_of, positive_integer

SELECTIONS: dict[str, Callable[[Tensor, Callable[[], Tensor]], Tensor]] = {
    "lowest": lambda scores, outgoing: scores,
    "random": lambda scores, outgoing: torch.zeros_like(scores),
    "highest": lambda scores, outgoing: -scores,
    "utility": lambda scores, outgoing: scores * outgoing(),
}
"""What to rank neurons by, from their dormancy scores and the sums of their outgoing weights' magnitudes; those with
the least are recycled."""


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
        the contribution utility of continual backpropagation (Dohare et al. 2024). The authors' ``cbp`` score also
        takes the mean off h and divides by the sum of \\|incoming weights\\|.
    :param settings: of :class:`~sb3_redo.ReDoCallback`
    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range or an unknown name
    """

    def __init__(self, end: int = 2_500_000, fraction: float = 0.1, selection: str = "lowest", **settings: Any):
        super().__init__(**settings)
        self.end = positive_integer("end", end)
        self.fraction = a_fraction("fraction", fraction)
        self.selection = one_of("selection", selection, tuple(SELECTIONS))

    def share(self, gradient_step: int) -> float:
        """Of every layer, in [0, fraction]."""
        return self.fraction * math.cos(math.pi / 2 * min(gradient_step / self.end, 1.0))

    def _select(self, report: DormancyReport, gradient_step: int) -> DormancyReport:
        generator = torch_generator((self._seed + crc32(b"selection"), gradient_step))
        layers = []
        for layer in report.layers:
            count = round(layer.neurons * self.share(gradient_step))
            layers.append(replace(layer, dormant=least(self._ranks(layer, report), count, generator)))
        return replace(report, layers=tuple(layers))

    def _ranks(self, layer: LayerDormancy, report: DormancyReport) -> Tensor:
        def outgoing() -> Tensor:
            # What cannot be recycled may have consumers whose weights are laid out in another way.
            if not layer.recyclable:
                return torch.ones_like(layer.scores)
            return neuron_magnitudes(self.model.policy, report.wiring[layer.name])

        return SELECTIONS[self.selection](layer.scores, outgoing)
