"""Dormancy scores, dormant neurons and their overlap (Sokar et al. 2023, section 3)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sb3_redo.functions import NON_NEGATIVE, FunctionWatcher
from sb3_redo.probe import evaluating
from sb3_redo.wiring import LayerWiring, Site, Wiring

if TYPE_CHECKING:
    import pandas


def dormancy_scores(mean_activations: Tensor) -> Tensor:
    """Each neuron's mean absolute activation over the mean of its layer (Sokar et al. 2023, eq. 1).

    The scores of a layer average 1; the paper's "sum to 1" is a slip (google/dopamine issue 209). A layer without
    any activation has score 0 throughout.

    :param mean_activations: mean \\|h\\| over the batch, and over space for a convolution, [neurons]
    :return: [neurons]

    >>> dormancy_scores(torch.tensor([0.0, 1.0, 3.0, 4.0]))
    tensor([0.0000, 0.5000, 1.5000, 2.0000])
    """
    mean = mean_activations.mean()
    return mean_activations / torch.where(mean == 0, 1.0, mean)


def overlap(one: Iterable[Tensor], other: Iterable[Tensor]) -> float | None:
    """Overlap coefficient of two sets of neurons, \\|X∩Y\\| / min(\\|X\\|, \\|Y\\|), or ``None`` if one is empty.

    :param one: a bool mask per layer
    :param other: a bool mask per layer, in the same order
    """
    both = smaller = larger = 0
    for x, y in zip(one, other, strict=True):
        both += int((x & y).sum())
        smaller += int(x.sum())
        larger += int(y.sum())
    return both / min(smaller, larger) if min(smaller, larger) else None


@dataclass(frozen=True)
class LayerDormancy:
    """Dormancy of one layer on one batch.

    :param name: module path below the policy
    :param network: the network it belongs to, for instance ``q_net`` or ``critic``
    :param scores: dormancy scores, [neurons]; NaN where the activations were not finite
    :param dormant: bool mask, [neurons]: score at most the threshold
    :param recyclable: whether its neurons can be recycled
    """

    name: str
    network: str
    scores: Tensor = field(repr=False)
    dormant: Tensor = field(repr=False)
    recyclable: bool

    @property
    def neurons(self) -> int:
        return len(self.dormant)

    @property
    def dormant_fraction(self) -> float:
        """In [0, 1]."""
        return float(self.dormant.sum()) / self.neurons

    @property
    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.scores).all())


@dataclass(frozen=True)
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
    def networks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer.network for layer in self.layers))

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Names of the layers with NaN or infinite activations; their neurons count as not dormant."""
        return tuple(layer.name for layer in self.layers if not layer.is_finite)

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
        import pandas  # SB3 needs it anyway, but only for this is it worth a second of import time

        rows = [
            (layer.name, layer.network, layer.neurons, int(layer.dormant.sum()), layer.dormant_fraction, layer.recyclable)
            for layer in self.layers
        ]
        columns = ["layer", "network", "neurons", "dormant", "dormant_fraction", "recyclable"]
        return pandas.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        dormant, neurons = (sum(counts) for counts in zip(*((int(x.dormant.sum()), x.neurons) for x in self.layers)))
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{dormant} of {neurons} neurons dormant ({dormant / neurons:.1%}) at threshold {self.dormancy_threshold:g}"]
        for layer in self.layers:
            count = f"{int(layer.dormant.sum())}/{layer.neurons}"
            note = "" if layer.recyclable else "  measured only"
            lines.append(f"  {layer.name:<{width}}  {count:>9}  {layer.dormant_fraction:>6.1%}{note}")
        return "\n".join(lines)


class Meter:
    """Measures the layers of a wiring; made once, used at every measurement.

    :param policy: the traced policy
    :param wiring: its wiring
    :param networks: layer name to network name, for the layers to be measured
    """

    def __init__(self, policy: nn.Module, wiring: Wiring, networks: dict[str, str]):
        self.policy = policy
        self.wiring = wiring
        self.networks = networks
        self.layers = [layer for layer in wiring if layer.name in networks]
        self._sites: dict[tuple[str, str, int], list[_SiteTotals]] = defaultdict(list)
        for layer in self.layers:
            for site in layer.sites:
                self._sites[site.kind, site.name, site.call].append(_SiteTotals(layer, site))

    def measure(self, forward: Callable[[Any], Any], batch: Any, dormancy_threshold: float) -> DormancyReport:
        """Run the networks once over a batch, in evaluation mode, and report their dormancy.

        :param forward: what the wiring was traced with
        :param batch: its argument
        :param dormancy_threshold: dormant at a score of at most this
        :raises RuntimeError: when the pass made other calls than when it was traced
        """
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}

        def add(site: "_SiteTotals", value: Tensor, is_non_negative: bool) -> None:
            name = site.layer.name
            total, count = site.totals(value, is_non_negative)
            sums[name] = sums[name] + total if name in sums else total
            counts[name] = counts[name] + count if name in counts else count

        watcher = _SiteWatcher(self._sites, add)
        with evaluating(self.policy), _layer_hooks(self.policy, self._sites, add), watcher:
            forward(batch)
        if watcher.activation_calls != self.wiring.activation_calls or len(sums) < len(self.layers):
            raise RuntimeError(
                f"the forward pass made {watcher.activation_calls} activation calls, but {self.wiring.activation_calls} "
                "when it was traced: a network whose operations change from call to call cannot be measured"
            )
        measured = (self._layer(layer, sums[layer.name] / counts[layer.name], dormancy_threshold) for layer in self.layers)
        return DormancyReport(tuple(measured), dormancy_threshold, self.wiring, batch)

    def _layer(self, layer: LayerWiring, mean_activations: Tensor, dormancy_threshold: float) -> LayerDormancy:
        scores = dormancy_scores(mean_activations)
        return LayerDormancy(layer.name, self.networks[layer.name], scores, scores <= dormancy_threshold, layer.recyclable)


class _SiteTotals:
    """Sums absolute activations per neuron at one site."""

    def __init__(self, layer: LayerWiring, site: Site):
        self.layer = layer
        self.axes = (0, *(axis + 1 for axis, size in enumerate(site.neurons.shape) if size == 1))
        self.elements = site.neurons.flatten()
        self.is_plain = torch.equal(self.elements, torch.arange(layer.neurons))

    def totals(self, value: Tensor, is_non_negative: bool) -> tuple[Tensor, Tensor]:
        """Sum of \\|h\\| and number of values per neuron, each [neurons]."""
        magnitude = value if is_non_negative else value.abs()
        # Summed in float32 at least: 25,600 half-precision values of one channel would not fit.
        sums = magnitude.sum(self.axes, dtype=None if value.dtype == torch.float64 else torch.float32).flatten()
        each = value.numel() / len(sums)
        if self.is_plain:
            return sums, torch.full_like(sums, each)
        elements = self.elements.to(sums.device)
        seen = elements >= 0
        total = sums.new_zeros(self.layer.neurons).index_add_(0, elements[seen], sums[seen])
        counts = torch.bincount(elements[seen], minlength=self.layer.neurons).to(sums) * each
        return total, counts


Add = Callable[[_SiteTotals, Tensor, bool], None]
Sites = dict[tuple[str, str, int], list[_SiteTotals]]


class _SiteWatcher(FunctionWatcher):
    """Adds up activations as they are computed, before an in-place operation can overwrite them."""

    def __init__(self, sites: Sites, add: Add):
        super().__init__()
        self.sites = sites
        self.add = add

    def on_activation(self, call: int, func: Any, output: Tensor) -> Tensor:
        for site in self.sites.get(("activation", str(call), call), ()):
            self.add(site, output, func in NON_NEGATIVE)
        return output


@contextmanager
def _layer_hooks(policy: nn.Module, sites: Sites, add: Add) -> Iterator[None]:
    """Hooks for the sites that are a layer's input or result, removed whatever happens."""
    calls: dict[tuple[str, str], int] = defaultdict(int)

    def see(kind: str, name: str, value: Tensor) -> None:
        for site in sites.get((kind, name, calls[kind, name]), ()):
            add(site, value, False)
        calls[kind, name] += 1

    handles = []
    try:
        for kind, name in {(kind, name) for kind, name, _ in sites if kind != "activation"}:
            layer = policy.get_submodule(name)
            if kind == "input":
                handles.append(layer.register_forward_pre_hook(lambda _, args, name=name: see("input", name, args[0])))
            else:
                handles.append(layer.register_forward_hook(lambda _, __, out, name=name: see("result", name, out)))
        yield
    finally:
        for handle in handles:
            handle.remove()
