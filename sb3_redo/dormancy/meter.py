"""Measuring every layer of a policy in one forward pass."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.dormancy.scores import LayerDormancy, dormancy_scores
from sb3_redo.forward.contexts import evaluating, is_compiled, replaced_forward, seeded, uncompiled
from sb3_redo.forward.functions import FunctionWatcher
from sb3_redo.forward.nested import chunks, tensors_in
from sb3_redo.wiring.structure import LayerWiring, Site, Wiring


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
        self._sizes = [layer.neurons for layer in self.layers]
        self._modules = list(policy.modules())
        self._is_compiled = is_compiled(self._modules)
        self._sites: Sites = defaultdict(list)
        for number, layer in enumerate(self.layers):
            for site in layer.sites:
                self._sites[site.kind, site.name, site.call].append(LayerSite(number, layer, site))
        names = {name for kind, name, _ in self._sites if kind != "activation"}
        self._watched = {name: policy.get_submodule(name) for name in names}
        self._number_of_sites = sum(map(len, self._sites.values()))

    def measure(self, forward: Callable[[Any], Any], batch: Any, dormancy_threshold: float) -> DormancyReport:
        """Run the networks over a batch, in evaluation mode, and report their dormancy.

        In one pass, or in several where the activations would take too much memory otherwise.

        :param forward: what the wiring was traced with
        :param batch: its argument
        :param dormancy_threshold: dormant at a score of at most this
        :raises RuntimeError: when the pass made other calls than when it was traced
        """
        sums = [torch.cat(totals.per_neuron()) for totals in self._watch(forward, batch, LayerSite.magnitudes)]
        # Many parts of float32 precision each; added up where there is float64, which some devices lack.
        pooled = sums[0] if len(sums) == 1 else torch.stack([part.cpu().double() for part in sums]).sum(0).to(sums[0])
        scores = dormancy_scores(pooled, self._sizes)
        layers = self._layers(scores, scores <= dormancy_threshold)
        return DormancyReport(layers, dormancy_threshold, self.wiring, batch)

    def deviations(self, forward: Callable[[Any], Any], batch: Any) -> dict[str, Tensor]:
        """Mean \\|h - mean h\\| over a batch, and over space for a convolution, by layer, [neurons].

        In two passes, or twice as many as :meth:`measure` takes.

        :param forward: what the wiring was traced with
        :param batch: its argument
        :raises RuntimeError: when the pass made other calls than when it was traced
        """
        means = _means(self._watch(forward, batch, LayerSite.sums))
        parts = self._watch(forward, batch, lambda site, value: site.deviations(value, means[site.number]))
        return {layer.name: deviation for layer, deviation in zip(self.layers, _means(parts), strict=True)}

    def _watch(self, forward: Callable[[Any], Any], batch: Any, look: "Look") -> list["_Totals"]:
        """Run the networks over a batch, in parts where they must be, and look at every site."""
        with seeded(0), evaluating(self._modules), uncompiled(self._is_compiled):
            return [self._watch_pass(forward, part, look) for part in chunks(batch, self.wiring.rows_at_once)]

    def _watch_pass(self, forward: Callable[[Any], Any], batch: Any, look: "Look") -> "_Totals":
        totals = _Totals(len(self.layers), len(next(tensors_in(batch))), look)
        watches_functions = any(kind == "activation" for kind, _, _ in self._sites)
        watcher = _SiteWatcher(self._sites, totals) if watches_functions else None
        with replaced_forward(self._watched, self._watching(totals)), watcher or nullcontext():
            forward(batch)
        calls = watcher.activation_calls if watcher else self.wiring.activation_calls
        if totals.sites_seen != self._number_of_sites or calls != self.wiring.activation_calls:
            raise RuntimeError(
                f"the forward pass made {calls} activation calls and reached {totals.sites_seen} places to measure, "
                f"but {self.wiring.activation_calls} and {self._number_of_sites} when it was traced: a network that "
                "changes from pass to pass cannot be measured"
            )
        return totals

    def _watching(self, totals: "_Totals") -> Callable[[str, nn.Module], Callable[..., Any]]:
        """Stand-ins for the ``forward`` of the modules that have sites; hooks take longer to put on and take off."""

        def make(name: str, module: nn.Module) -> Callable[..., Any]:
            calls = count()
            real = module.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                call = next(calls)
                for site in self._sites.get(("input", name, call), ()):
                    totals.add(site, args[0] if args else kwargs["input"])
                result = real(*args, **kwargs)
                for site in self._sites.get(("result", name, call), ()):
                    totals.add(site, result)
                return result

            return forward

        return make

    def _layers(self, scores: Tensor, dormant: Tensor) -> tuple[LayerDormancy, ...]:
        apart = zip(self.layers, torch.split(scores, self._sizes), torch.split(dormant, self._sizes), strict=True)
        return tuple(
            LayerDormancy(layer.name, self.networks[layer.name], score, mask, layer.recyclable)
            for layer, score, mask in apart
        )


class LayerSite:
    """One site of a measured layer.

    :param number: of the layer, in the meter's order
    """

    def __init__(self, number: int, layer: LayerWiring, site: Site):
        self.number = number
        self.neurons = layer.neurons
        self.is_non_negative = site.is_non_negative
        self.space = tuple(axis + 1 for axis, size in enumerate(site.neurons.shape) if size == 1)
        self.shape = site.neurons.shape
        self.elements = site.neurons.flatten()
        self.is_plain = torch.equal(self.elements, torch.arange(layer.neurons))
        self.seen = (self.elements >= 0).nonzero().flatten()
        self.per_neuron = torch.bincount(self.elements[self.seen], minlength=layer.neurons).float()

    def magnitudes(self, value: Tensor) -> tuple[Tensor, Tensor | float]:
        """Sum of \\|h\\| for each neuron, [neurons], and how many values that is: for all, or for each."""
        return self.sums(value if self.is_non_negative else value.abs())

    def deviations(self, value: Tensor, mean: Tensor) -> tuple[Tensor, Tensor | float]:
        """The same of \\|h - mean h\\|, given the means, [neurons]."""
        owners = self.elements.clamp(min=0).to(mean.device)
        return self.sums((value - mean[owners].view(self.shape)).abs())

    def sums(self, value: Tensor) -> tuple[Tensor, Tensor | float]:
        """The same of the values as they are."""
        # Summed in float32 at least: 25,600 half-precision values of one channel would not fit.
        if value.dtype not in (torch.float32, torch.float64):
            value = value.float()
        # Space first: that reads memory in order, and over both at once takes up to four times as long.
        sums = (value.sum(self.space) if self.space else value).sum(0)
        sums = sums if sums.ndim == 1 else sums.flatten()
        each = value.numel() / len(sums)
        if self.is_plain:
            return sums, each
        owners, seen = self.elements[self.seen].to(sums.device), self.seen.to(sums.device)
        return sums.new_zeros(self.neurons).index_add_(0, owners, sums[seen]), self.per_neuron.to(sums) * each


Look = Callable[[LayerSite, Tensor], tuple[Tensor, Tensor | float]]
"""What is summed up of a site's values for each neuron, and how many values that is."""


class _Totals:
    """Adds up activations as they are computed, before an in-place operation can overwrite them."""

    def __init__(self, layers: int, rows: int, look: Look):
        self.rows = rows
        self.look = look
        self.sums: list[Tensor | None] = [None] * layers
        self.counts: list[Tensor | float] = [0.0] * layers
        self.sites_seen = 0

    def add(self, site: LayerSite, value: Tensor) -> None:
        total, number = self.look(site, value)
        before = self.sums[site.number]
        self.sums[site.number] = total if before is None else before + total
        self.counts[site.number] = self.counts[site.number] + number
        self.sites_seen += 1

    def of_layers(self) -> list[tuple[Tensor, Tensor | float]]:
        """For each layer the sums of its neurons and how many values they are of, at least 1."""
        sums = [total for total in self.sums if total is not None]
        # A neuron that is dropped before its activation has none: 0 of 0 values.
        counts = [number.clamp(min=1) if isinstance(number, Tensor) else number for number in self.counts]
        return list(zip(sums, counts, strict=True))

    def per_neuron(self) -> list[Tensor]:
        """For each layer what is proportional to its neurons' means and to the number of rows."""
        pairs = self.of_layers()
        return [total * (self.rows / number) if isinstance(number, Tensor) else total for total, number in pairs]


def _means(parts: list[_Totals]) -> list[Tensor]:
    """For each layer its neurons' means over all parts of a batch, [neurons]."""
    means = []
    for layer in zip(*(part.of_layers() for part in parts), strict=True):
        sums, counts = zip(*layer, strict=True)
        means.append(torch.stack(sums).sum(0) / sum(counts))
    return means


Sites = dict[tuple[str, str, int], list[LayerSite]]


class _SiteWatcher(FunctionWatcher):
    """Sees the sites that are the output of an activation call."""

    def __init__(self, sites: Sites, totals: _Totals):
        super().__init__()
        self.sites = sites
        self.totals = totals

    def on_activation(self, call: int, func: Any, output: Tensor) -> Tensor:
        for site in self.sites.get(("activation", str(call), call), ()):
            self.totals.add(site, output)
        return output
