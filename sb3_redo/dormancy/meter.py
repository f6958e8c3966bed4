"""Measures every layer of a policy in one forward pass."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.dormancy.scores import LayerDormancy, dormancy_scores
from sb3_redo.forward.calls import Call, CallSequence, parametrisations
from sb3_redo.forward.contexts import (
    evaluating,
    everything_seeded,
    is_compiled,
    replaced_forward,
    seeded,
    uncompiled,
)
from sb3_redo.forward.functions import FunctionWatcher
from sb3_redo.forward.layers import LAYER_TYPES, is_plain
from sb3_redo.forward.nested import chunks, tensors_in
from sb3_redo.forward.state import State, draws_from_global_streams, unchanged
from sb3_redo.wiring.structure import LayerWiring, Site, Wiring


class Meter:
    """Measures the layers of a wiring. Build it once and use it for every measurement.

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
        # Follows every layer, and other modules that have sites.
        modules = dict(policy.named_modules())
        self._layers = {name: module for name, module in modules.items() if isinstance(module, LAYER_TYPES)}
        names = {name for kind, name, _ in self._sites if kind != "activation"} - self._layers.keys()
        self._modules_with_sites = {name: modules[name] for name in names}
        self._parametrisations = parametrisations(modules.items())
        # Watching every function takes time. Set it where other activation calls must be noticed, too.
        self.watches_functions = any(kind == "activation" for kind, _, _ in self._sites)
        self._stateful = dict.fromkeys(wiring.stateful)  # the parts that a pass has changed
        self._draws_elsewhere = draws_from_global_streams(wiring.stateful)
        self._runs = 0

    def measure(self, forward: Callable[[Any], Any], batch: Any, dormancy_threshold: float) -> DormancyReport:
        """Run the networks over a batch, in evaluation mode, and report their dormancy.

        A batch whose activations would take too much memory is run in several passes.

        :param forward: runs the policy on a batch, as it was traced
        :param batch: the argument of ``forward``, nested tensors [observations, ...]
        :param dormancy_threshold: a neuron is dormant when its score is at most this
        :raises RuntimeError: when a pass makes other calls than when the policy was traced
        """
        # 1. Each pass gives one tensor: the sums of |h| of all neurons, layer after layer.
        sums = [torch.cat(totals.comparable_sums()) for totals in self._run(forward, batch, LayerSite.magnitudes)]
        # 2. The sums of several passes are added in float64 on the CPU, since some devices lack float64.
        pooled = sums[0] if len(sums) == 1 else torch.stack([part.cpu().double() for part in sums]).sum(0).to(sums[0])
        # 3. Scores are relative to a layer's mean, so sums give the same scores as means.
        scores = dormancy_scores(pooled, self._sizes)
        dormant = torch.split(scores <= dormancy_threshold, self._sizes)
        layers = tuple(
            LayerDormancy(layer.name, self.networks[layer.name], score, mask, layer.recyclable)
            for layer, score, mask in zip(self.layers, torch.split(scores, self._sizes), dormant, strict=True)
        )
        return DormancyReport(layers, dormancy_threshold, self.wiring, batch)

    def deviations(self, forward: Callable[[Any], Any], batch: Any) -> dict[str, Tensor]:
        """Return mean \\|h - mean h\\| over a batch, and over space for a convolution, per layer, [neurons].

        Takes twice as many passes as :meth:`measure`.

        :param forward: runs the policy on a batch, as it was traced
        :param batch: the argument of ``forward``, nested tensors [observations, ...]
        :raises RuntimeError: when a pass makes other calls than when the policy was traced
        """
        means = _means(self._run(forward, batch, LayerSite.sums))
        parts = self._run(forward, batch, lambda site, value: site.deviations(value, means[site.number]))
        return {layer.name: deviation for layer, deviation in zip(self.layers, _means(parts), strict=True)}

    def totals(self, forward: Callable[[Any], Any], batch: Any, statistic: "Statistic") -> dict[str, Tensor]:
        """Return a statistic of every layer, summed over its sites and over all passes.

        :param forward: runs the policy on a batch, as it was traced
        :param batch: the argument of ``forward``, nested tensors [observations, ...]
        :param statistic: sums up the values at a site. Its sums may have any shape, the same for all sites of a layer.
        :raises RuntimeError: when a pass makes other calls than when the policy was traced
        """
        parts = [part.of_layers() for part in self._run(forward, batch, statistic)]
        by_layer = zip(self.layers, zip(*parts, strict=True), strict=True)
        return {layer.name: torch.stack([sums for sums, _ in found]).sum(0) for layer, found in by_layer}

    def _run(self, forward: Callable[[Any], Any], batch: Any, statistic: "Statistic") -> list["_Totals"]:
        """Run the networks over a batch, in parts if memory demands it, and sum up every site in each part."""
        # 1. Runs 1, 2, 4, 8 ... compare all state that a pass might change, which takes as long as several passes.
        #    Every run restores the state that was found to change.
        self._runs += 1
        is_looked_at = self._runs & (self._runs - 1) == 0
        seeds = (everything_seeded if is_looked_at or self._draws_elsewhere else seeded)(0)
        same_state: AbstractContextManager[State | None] = nullcontext()
        if is_looked_at or self._stateful:
            same_state = unchanged(self.policy, None if is_looked_at else self._stateful)
        # 2. One pass for each part of the batch.
        with seeds, evaluating(self._modules), uncompiled(self._is_compiled), same_state as state:
            parts = [self._run_pass(forward, part, statistic) for part in chunks(batch, self.wiring.rows_at_once)]
        if state is not None:
            self._stateful |= state.moved
            self._draws_elsewhere |= draws_from_global_streams(state.moved)
        return parts

    def _run_pass(self, forward: Callable[[Any], Any], batch: Any, statistic: "Statistic") -> "_Totals":
        # 1. Sites at modules are seen by replacing ``forward``. Functions are watched only if some site needs it.
        totals = _Totals(len(self.layers), len(next(tensors_in(batch))), statistic)
        calls = CallSequence(self._expected_calls(), "measured")
        watcher = _SiteWatcher(calls, self._sites, totals) if self.watches_functions else None
        modules = {**self._layers, **self._modules_with_sites, **self._parametrisations}
        with replaced_forward(modules, self._following(calls, totals)), watcher or nullcontext():
            forward(batch)
        # 2. The pass is over. If it missed a call, the wiring does not describe it.
        calls.end()
        return totals

    def _expected_calls(self) -> list[Call]:
        """Return the followed calls of a pass, as recorded when the policy was traced."""
        followed = {"layer": self._layers, "module": self._modules_with_sites}
        functions = self.watches_functions
        return [call for call in self.wiring.calls if call.name in followed.get(call.kind, [call.name] * functions)]

    def _following(self, calls: CallSequence, totals: "_Totals") -> Callable[[str, nn.Module], Callable[..., Any]]:
        """Return a function that builds a module's new ``forward``. Hooks take longer to register and remove."""

        def make(name: str, module: nn.Module) -> Callable[..., Any]:
            if name in self._parametrisations:
                return calls.inside(module.forward)
            kind = "layer" if name in self._layers else "module"
            numbers, real = count(), module.forward
            run = real if kind == "module" or is_plain(module) else calls.inside(real)

            def forward(*args: Any, **kwargs: Any) -> Any:
                # 1. What runs inside a layer is a part of it.
                if calls.is_inside:
                    return real(*args, **kwargs)
                number = next(numbers)
                # 2. A layer is counted when it begins, another module when it returns, as in tracing.
                if kind == "layer":
                    calls.add(kind, name)
                for site in self._sites.get(("input", name, number), ()):
                    totals.add(site, args[0] if args else kwargs["input"])
                result = run(*args, **kwargs)
                if kind == "module":
                    calls.add(kind, name)
                for site in self._sites.get(("result", name, number), ()):
                    totals.add(site, result)
                return result

            return forward

        return make


class LayerSite:
    """Sums up the values at one site of a measured layer, neuron by neuron.

    :param number: of the layer, in the meter's order
    :param layer: its wiring
    :param site: one of the layer's sites
    """

    def __init__(self, number: int, layer: LayerWiring, site: Site):
        self.number = number
        self.layer = layer.name
        self.kind = site.kind
        self.neurons = layer.neurons
        self.is_non_negative = site.is_non_negative
        self.shape = site.neurons.shape
        # Sums go over the axes of size 1, which hold one neuron, and over the batch, axis 0 of a value.
        self.summed_axes = tuple(axis + 1 for axis, size in enumerate(self.shape) if size == 1)
        self.owners = site.neurons.flatten()  # the neuron at each element that remains, -1 for none
        self.is_one_each = torch.equal(self.owners, torch.arange(layer.neurons))
        self.owned = (self.owners >= 0).nonzero().flatten()
        self.elements_per_neuron = torch.bincount(self.owners[self.owned], minlength=layer.neurons).float()

    def magnitudes(self, value: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the sum of \\|h\\| per neuron, [neurons], and the number of values: one for all, or [neurons].

        :param value: the activations h at this site, [observations, ...]
        """
        return self.sums(value if self.is_non_negative else value.abs())

    def deviations(self, value: Tensor, mean: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the same for \\|h - mean h\\|.

        :param mean: each neuron's mean h, [neurons]
        """
        owners = self.owners.clamp(min=0).to(mean.device)
        return self.sums((value - mean[owners].view(self.shape)).abs())

    def sums(self, value: Tensor) -> tuple[Tensor, Tensor | float]:
        """Sum the raw values per neuron. Returns the sums and the number of values summed."""
        # 1. Half precision becomes float32: the sum of 25,600 values of one channel would not fit.
        if value.dtype not in (torch.float32, torch.float64):
            value = value.float()
        # 2. Space is summed first, then the batch. Both at once would take up to four times as long.
        sums = (value.sum(self.summed_axes) if self.summed_axes else value).sum(0)
        sums = sums if sums.ndim == 1 else sums.flatten()
        if len(sums) != len(self.owners):
            raise RuntimeError(
                f"the activations of {self.layer} have another shape than when traced, {tuple(value.shape)}: a network "
                "that changes from pass to pass cannot be measured"
            )
        values_per_sum = value.numel() / len(sums)
        # 3. One sum per element remains, usually one per neuron, in order.
        if self.is_one_each:
            return sums, values_per_sum
        # 4. Otherwise, sums of a neuron's elements are added. Elements of no neuron are dropped.
        owners, owned = self.owners[self.owned].to(sums.device), self.owned.to(sums.device)
        per_neuron = sums.new_zeros(self.neurons).index_add_(0, owners, sums[owned])
        return per_neuron, self.elements_per_neuron.to(sums) * values_per_sum


Statistic = Callable[[LayerSite, Tensor], tuple[Tensor, Tensor | float]]
"""Sums up the values at a site for each neuron, [neurons], and counts the values: one number for all, or [neurons]."""


class _Totals:
    """Sums a statistic during a pass of ``rows`` observations, before activations can be overwritten."""

    def __init__(self, layers: int, rows: int, statistic: Statistic):
        self.rows = rows
        self.statistic = statistic
        self.sums: list[Tensor | None] = [None] * layers
        self.counts: list[Tensor | float] = [0.0] * layers

    def add(self, site: LayerSite, value: Tensor) -> None:
        total, number = self.statistic(site, value)
        before = self.sums[site.number]
        self.sums[site.number] = total if before is None else before + total
        self.counts[site.number] = self.counts[site.number] + number

    def of_layers(self) -> list[tuple[Tensor, Tensor | float]]:
        """Return, per layer, the neurons' sums and the number of values in them, at least 1."""
        sums = [total for total in self.sums if total is not None]
        # A neuron dropped before its activation has no values. Its sum is 0.
        counts = [number.clamp(min=1) if isinstance(number, Tensor) else number for number in self.counts]
        return list(zip(sums, counts, strict=True))

    def comparable_sums(self) -> list[Tensor]:
        """Return, per layer, sums proportional to its neurons' means and to the number of rows."""
        pairs = self.of_layers()
        return [total * (self.rows / number) if isinstance(number, Tensor) else total for total, number in pairs]


def _means(parts: list[_Totals]) -> list[Tensor]:
    """Return each layer's means per neuron over all parts of a batch, [neurons]."""
    means = []
    for layer in zip(*(part.of_layers() for part in parts), strict=True):
        sums, counts = zip(*layer, strict=True)
        means.append(torch.stack(sums).sum(0) / sum(counts))
    return means


Sites = dict[tuple[str, str, int], list[LayerSite]]
"""Kind, name and call to the sites there."""


class _SiteWatcher(FunctionWatcher):
    """Sums the values at outputs of activation calls."""

    def __init__(self, calls: CallSequence, sites: Sites, totals: _Totals):
        super().__init__(calls)
        self.sites = sites
        self.totals = totals

    def on_activation(self, call: int, output: Tensor) -> Tensor:
        for site in self.sites.get(("activation", str(call), call), ()):
            self.totals.add(site, output)
        return output
