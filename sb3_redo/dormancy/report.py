"""Dormancy scores, dormant neurons and their overlap (Sokar et al. 2023, section 3)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sb3_redo.dormancy.scores import LayerDormancy
from sb3_redo.forward.nested import tensors_in
from sb3_redo.wiring.structure import Wiring

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class DormancyReport:
    """Which neurons of a policy were dormant on one batch.

    :param layers: the measured layers, in the order in which they run
    :param dormancy_threshold: a neuron is dormant when its score is at most this
    :param wiring: what was measured, and why some layers cannot be recycled
    :param batch: what it was measured on
    """

    layers: tuple[LayerDormancy, ...]
    dormancy_threshold: float
    wiring: Wiring = field(repr=False)
    batch: Any = field(repr=False)

    @property
    def dormant_fraction(self) -> float:
        """Dormant neurons over neurons, pooled over all layers, in [0, 1]."""
        return self.fraction(layer.dormant for layer in self.layers)

    @property
    def observations(self) -> int:
        """How many observations it was measured on."""
        return len(next(tensors_in(self.batch)))

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer.network for layer in self.layers))

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Names of the layers with NaN or infinite activations; their neurons count as not dormant."""
        return tuple(layer.name for layer in self.layers if not layer.is_finite)

    def dormant_neurons(self) -> dict[str, Tensor]:
        """Return the dormant neurons that can be recycled; none where any activation was not finite.

        :return: layer name to long tensor of neurons, ascending; layers without any are left out
        """
        if self.not_finite:
            return {}
        dormant = {layer.name: layer.dormant.nonzero().flatten() for layer in self.layers if layer.recyclable}
        return {name: neurons for name, neurons in dormant.items() if len(neurons)}

    def network_fraction(self, network: str) -> float:
        """Dormant fraction pooled over the layers of one network, in [0, 1]."""
        return self.fraction(layer.dormant for layer in self.layers if layer.network == network)

    def fraction_at(self, dormancy_threshold: float) -> float:
        """Pooled dormant fraction at another threshold, in [0, 1]."""
        return self.fraction(layer.scores <= dormancy_threshold for layer in self.layers)

    @staticmethod
    def fraction(masks: Iterable[Tensor]) -> float:
        pooled = torch.cat(list(masks))
        return float(pooled.sum()) / len(pooled)

    def to_frame(self) -> "pandas.DataFrame":
        """One row per layer: ``layer``, ``network``, ``neurons``, ``dormant``, ``dormant_fraction``, ``recyclable``."""
        import pandas  # here, because only this is worth a second of import time

        rows = [
            {
                "layer": layer.name,
                "network": layer.network,
                "neurons": layer.neurons,
                "dormant": int(layer.dormant.sum()),
                "dormant_fraction": layer.dormant_fraction,
                "recyclable": layer.recyclable,
            }
            for layer in self.layers
        ]
        return pandas.DataFrame(rows)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw a bar per layer, its dormant fraction, and beside it the scores of its neurons as a strip.

        :param ax: where to draw, shared between bars and strips; a figure of its own if not given
        :return: the axes of the bars
        :raises ImportError: without matplotlib
        """
        from sb3_redo.dormancy.plots import plot_dormancy  # here, because nothing else needs matplotlib

        return plot_dormancy(self, ax)

    def __repr__(self) -> str:
        dormant = sum(int(layer.dormant.sum()) for layer in self.layers)
        neurons = sum(layer.neurons for layer in self.layers)
        width = max(len(layer.name) for layer in self.layers)
        where = f"at threshold {self.dormancy_threshold:g}, on {self.observations} observations"
        lines = [f"{dormant} of {neurons} neurons dormant ({dormant / neurons:.1%}) {where}"]
        for layer in self.layers:
            count = f"{int(layer.dormant.sum())}/{layer.neurons}"
            note = "" if layer.recyclable else "  measured only"
            note = note if layer.is_finite else "  activations are NaN or infinite"
            lines.append(f"  {layer.name:<{width}}  {count:>9}  {layer.dormant_fraction:>6.1%}{note}")
        return "\n".join(lines)
