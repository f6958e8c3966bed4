"""Measuring every layer of a policy in one forward pass."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.dormancy import DormancyReport, LayerDormancy, dormancy_scores
from sb3_redo.forward_pass import evaluating
from sb3_redo.functions import NON_NEGATIVE, FunctionWatcher
from sb3_redo.sites import Site
from sb3_redo.wiring import LayerWiring, Wiring


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
        counts: dict[str, Tensor | float] = {}

        def add(site: "_SiteTotals", value: Tensor, is_non_negative: bool) -> None:
            name = site.layer.name
            total, count = site.totals(value, is_non_negative)
            sums[name] = sums[name] + total if name in sums else total
            counts[name] = counts.get(name, 0.0) + count

        watcher = _SiteWatcher(self._sites, add)
        with evaluating(self.policy), _layer_hooks(self.policy, self._sites, add), watcher:
            forward(batch)
        if watcher.activation_calls != self.wiring.activation_calls or len(sums) < len(self.layers):
            raise RuntimeError(
                f"the forward pass made {watcher.activation_calls} activation calls, and when it was traced "
                f"{self.wiring.activation_calls}: a network that changes from pass to pass cannot be measured"
            )
        measured = (
            self._layer(layer, sums[layer.name] / counts[layer.name], dormancy_threshold) for layer in self.layers
        )
        return DormancyReport(tuple(measured), dormancy_threshold, self.wiring, batch)

    def _layer(self, layer: LayerWiring, mean_activations: Tensor, dormancy_threshold: float) -> LayerDormancy:
        scores = dormancy_scores(mean_activations)
        return LayerDormancy(
            layer.name, self.networks[layer.name], scores, scores <= dormancy_threshold, layer.recyclable
        )


class _SiteTotals:
    """Sums absolute activations per neuron at one site."""

    def __init__(self, layer: LayerWiring, site: Site):
        self.layer = layer
        self.axes = (0, *(axis + 1 for axis, size in enumerate(site.neurons.shape) if size == 1))
        self.elements = site.neurons.flatten()
        self.is_plain = torch.equal(self.elements, torch.arange(layer.neurons))
        self.seen = (self.elements >= 0).nonzero().flatten()
        self.per_neuron = torch.bincount(self.elements[self.seen], minlength=layer.neurons).float()

    def totals(self, value: Tensor, is_non_negative: bool) -> tuple[Tensor, Tensor | float]:
        """Sum of \\|h\\| for each neuron, [neurons], and how many values that is: for all, or for each."""
        magnitude = value if is_non_negative else value.abs()
        # Summed in float32 at least: 25,600 half-precision values of one channel would not fit.
        sums = magnitude.sum(self.axes, dtype=None if value.dtype == torch.float64 else torch.float32).flatten()
        each = value.numel() / len(sums)
        if self.is_plain:
            return sums, each
        owners, seen = self.elements[self.seen].to(sums.device), self.seen.to(sums.device)
        total = sums.new_zeros(self.layer.neurons).index_add_(0, owners, sums[seen])
        return total, self.per_neuron.to(sums) * each


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
