"""Reports which neurons of a policy were dormant on one batch."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sb3_redo.dormancy.scores import LayerDormancy
from sb3_redo.forward.nested import tensors_in
from sb3_redo.validation import needs
from sb3_redo.wiring.html_table import html_table
from sb3_redo.wiring.structure import Wiring

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class DormancyReport:
    """The neurons of a policy that were dormant on one batch.

    :param layers: the measured layers, in the order in which they run
    :param dormancy_threshold: a neuron is dormant when its score is at most this
    :param wiring: the wiring that was measured, with the reasons why layers cannot be recycled
    :param batch: the observations, nested tensors [observations, ...]
    """

    layers: tuple[LayerDormancy, ...]
    dormancy_threshold: float
    wiring: Wiring = field(repr=False)
    batch: Any = field(repr=False)

    @property
    def dormant_fraction(self) -> float:
        """Return dormant neurons over neurons, pooled over all layers, in [0, 1]."""
        return self.fraction(layer.dormant for layer in self.layers)

    @property
    def observations(self) -> int:
        """Return the number of observations."""
        return len(next(tensors_in(self.batch)))

    @property
    def networks(self) -> tuple[str, ...]:
        """Return the names of the networks, in the order in which they run."""
        return tuple(dict.fromkeys(layer.network for layer in self.layers))

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Return the names of layers with NaN or infinite activations. Their neurons count as not dormant."""
        return tuple(layer.name for layer in self.layers if not layer.is_finite)

    def dormant_neurons(self) -> dict[str, Tensor]:
        """Return the dormant neurons that can be recycled. Empty if any activation was not finite.

        :return: layer name to long tensor of neurons, ascending. Layers without dormant neurons are left out.
        """
        if self.not_finite:
            return {}
        dormant = {layer.name: layer.dormant.nonzero().flatten() for layer in self.layers if layer.recyclable}
        return {name: neurons for name, neurons in dormant.items() if len(neurons)}

    def network_fraction(self, network: str) -> float:
        """Return the dormant fraction pooled over the layers of one network, in [0, 1]."""
        return self.fraction(layer.dormant for layer in self.layers if layer.network == network)

    def fraction_at(self, dormancy_threshold: float) -> float:
        """Return the pooled dormant fraction at another threshold, in [0, 1]."""
        return self.fraction(layer.scores <= dormancy_threshold for layer in self.layers)

    @staticmethod
    def fraction(masks: Iterable[Tensor]) -> float:
        """Return the share of selected neurons, pooled over all masks, in [0, 1]."""
        pooled = torch.cat(list(masks))
        return float(pooled.sum()) / len(pooled)

    def to_frame(self) -> "pandas.DataFrame":
        """Tabulate layers: ``layer``, ``network``, ``neurons``, ``dormant``, ``dormant_fraction``, ``recyclable``."""
        with needs("plots", "to_frame()"):
            import pandas  # here, because only this is worth a second of import time

        columns = ["layer", "network", "neurons", "dormant", "dormant_fraction", "recyclable"]
        rows = [
            (each.name, each.network, each.neurons, int(each.dormant.sum()), each.dormant_fraction, each.recyclable)
            for each in self.layers
        ]
        return pandas.DataFrame(rows, columns=columns)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw each layer's dormant fraction as a bar, and its neurons' scores as a strip.

        :param ax: where to draw, shared between bars and strips. Default: a new figure.
        :return: the axes of the bars
        :raises MissingPackageError: without matplotlib
        """
        from sb3_redo.dormancy.plots import plot_layers  # here, because nothing else needs matplotlib

        return plot_layers(self.layers, self.dormancy_threshold, self.observations, ax)

    def _summary(self) -> str:
        dormant = sum(int(layer.dormant.sum()) for layer in self.layers)
        neurons = sum(layer.neurons for layer in self.layers)
        where = f"at threshold {self.dormancy_threshold:g}, on {self.observations} observations"
        return f"{dormant} of {neurons} neurons dormant ({dormant / neurons:.1%}) {where}"

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return a row per layer: layer, network, dormant of all neurons, dormant fraction, note."""
        rows = []
        for layer in self.layers:
            note = "" if layer.recyclable else "measured only"
            note = note if layer.is_finite else "activations are NaN or infinite"
            count = f"{int(layer.dormant.sum())}/{layer.neurons}"
            rows.append((layer.name, layer.network, count, f"{layer.dormant_fraction:.1%}", note))
        return rows

    def _repr_html_(self) -> str:
        table = html_table(("layer", "network", "dormant/neurons", "fraction", "note"), self._rows())
        return f"<p>{self._summary()}</p>{table}"

    def __repr__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [
            f"  {name:<{width}}  {count:>9}  {fraction:>6}  {note}".rstrip()
            for name, _, count, fraction, note in self._rows()
        ]
        return "\n".join([self._summary(), *lines])
