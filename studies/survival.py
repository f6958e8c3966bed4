"""Follows what becomes of recycled neurons.

For sweeps that are started in the root of a clone, whose files name it ``studies.survival.Survival``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo import DormancyCallback, ReDoCallback
from sb3_redo.callbacks.callback_tree import callbacks_in
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.tensorboard import write_point
from sb3_redo.wiring.structure import LayerWiring
from studies.recyclers import Masks, recycled_neurons, refuse_to_go_on

AGES = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
"""Gradient steps after recycling."""


class Survival(DormancyCallback):
    """Follows the neurons of one recycling, and logs what has become of them at ages of 0 to 10,000 gradient steps.

    Logs under ``survival/``: ``age`` in gradient steps; ``dormant``, the share of them that is dormant on a fresh
    batch; ``norm``, their mean norm of outgoing weights, and ``contribution``, their mean \\|h\\| times that norm,
    both over the mean of the other live neurons; ``neurons``, how many there are. To stand behind the recycler,
    which has to recycle once: ``start`` 6000, ``stop`` 6001, say.
    """

    def __init__(self, ages: Sequence[int] = AGES, **settings: Any):
        super().__init__(**settings)
        self.ages = tuple(ages)

    def prepare(self) -> None:
        super().prepare()
        refuse_to_go_on(self)
        # Other observations than the recycler's, which redraws until neurons are active on those.
        self.measurer.sampler.seed += 2**32
        everyone = callbacks_in(self.locals["callback"])
        (self._recycler,) = (callback for callback in everyone if isinstance(callback, ReDoCallback))
        self._born: int | None = None

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        if self._born is None and self.memory.recycled_total_of(self.model) and self._recycler.report is not None:
            self._born = gradient_step
            self._followed = recycled_neurons(self._recycler.report)
        if self._born is not None and gradient_step - self._born in self.ages:
            report = self.measure(gradient_step)
            if report is not None:
                self._tell(report, gradient_step - self._born)

    def log(self, report: DormancyReport | None, gradient_step: int) -> None:
        """The recycler does."""

    def _tell(self, report: DormancyReport, age: int) -> None:
        values = fates(report, self._followed, self.model.policy)
        write_point(self.logger, {**values, "survival/age": age}, self.model.num_timesteps)


def fates(report: DormancyReport, followed: Masks, network: nn.Module) -> dict[str, float]:
    """Compute what has become of some neurons of a network.

    :param followed: of which neurons, by layer
    :return: values under the keys of :class:`Survival`, but for the age, all shares of 1 but for ``neurons``. Those of
        the other live neurons are NaN where a layer has none
    """
    sums = dict.fromkeys(("dormant", "norm", "contribution"), 0.0)
    neurons = 0
    for layer in report.layers:
        mine = followed.get(layer.name)
        if mine is None or not mine.any():
            continue
        norms = outgoing_norms(report.wiring[layer.name], network)
        others = ~mine & ~layer.dormant
        contributions = layer.scores * norms
        count = int(mine.sum())
        neurons += count
        sums["dormant"] += float(layer.dormant[mine].sum())
        sums["norm"] += count * float(norms[mine].mean() / norms[others].mean())
        sums["contribution"] += count * float(contributions[mine].mean() / contributions[others].mean())
    return {f"survival/{name}": value / neurons for name, value in sums.items()} | {"survival/neurons": neurons}


def outgoing_norms(layer: LayerWiring, network: nn.Module) -> Tensor:
    """Return the norm of all weights that a neuron feeds, [neurons]."""
    squares = torch.zeros(layer.neurons)
    for consumer, positions in layer.consumers.items():
        weight = network.get_parameter(f"{consumer}.weight").detach()
        of_positions = weight.flatten(2).pow(2).sum((0, 2)) if weight.ndim > 2 else weight.pow(2).sum(0)
        read = positions >= 0
        squares.index_add_(0, positions[read], of_positions[read].to(squares))
    return squares.sqrt()
