"""Where a layer's activations can be seen during a forward pass."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.forward.contexts import replaced_forward, seeded
from sb3_redo.forward.functions import NON_NEGATIVE, FunctionWatcher
from sb3_redo.forward.layers import neuron_axis
from sb3_redo.wiring.frozen_network import Choice
from sb3_redo.wiring.neuron_codes import MIXED, NOBODY, Place, Reading, shrunk
from sb3_redo.wiring.prober import Prober
from sb3_redo.wiring.structure import Site


def find_sites(
    prober: Prober, name: str, reading: Reading, consumers: dict[str, Tensor], others: Iterable[Reading]
) -> tuple[Site, ...]:
    """Where the layer's activations are seen: at its activation calls, else where they arrive, else where they leave.

    "Else" is where there is no activation call that is known, or a way around it: in ``x * sigmoid(x)`` the call is
    not the whole activation.

    Of several activation calls the first counts, and with it those that still follow the layer when the earlier
    ones are held constant, at elements that follow no other: both halves of a CReLU, but not the second of two
    activations in a row, nor the one behind a residual sum.

    :param others: what all else reaches
    """
    others = list(others)
    calls = sorted(place.call for place in reading if place.kind == "activation" and (reading[place] >= 0).any())
    sites: list[Site] = []
    for call in calls:
        place = Place("activation", str(call), call)
        codes = reading[place]
        if sites:
            own = prober.reaches(name, {site.call for site in sites}).get(place)
            codes = codes.where(own & ~_shared(place, codes, others), NOBODY) if own is not None else codes[:0]
        if (codes >= 0).any():
            sites.append(Site("activation", str(call), call, _one_sample(codes)))
    if sites and not _goes_around(prober, name, sites, others):
        return tuple(sites)
    if all((positions != MIXED).all() for positions in consumers.values()):
        arriving = [(place, codes) for place, codes in reading.items() if place.kind == "input"]
        return tuple(Site("input", place.name, place.call, _one_sample(codes)) for place, codes in arriving)
    numbers = torch.arange(prober.neurons(name))
    axis = neuron_axis(prober.layers[name])
    shapes = [[-1 if i == axis else 1 for i in range(1 - len(call.shape), 0)] for call in prober.calls[name]]
    return tuple(Site("result", name, call, numbers.view(shape)) for call, shape in enumerate(shapes))


def _goes_around(prober: Prober, name: str, sites: list[Site], others: list[Reading]) -> bool:
    """Whether the layer reaches another, at elements that follow it alone, while its activation calls are held."""
    held = prober.reaches(name, {site.call for site in sites})
    return any(
        bool((reached & ~_shared(place, reached, others)).any())
        for place, reached in held.items()
        if place.kind == "input"
    )


def _shared(place: Place, like: Tensor, others: list[Reading]) -> Tensor:
    """The elements of a place that something else reaches too."""
    shared = torch.zeros(like.shape, dtype=torch.bool)
    for other in others:
        if place in other:
            shared |= other[place] != NOBODY
    return shared


def _one_sample(codes: Tensor) -> Tensor:
    """Codes of the first sample, [...], with every axis along which they stay the same shrunk to size 1."""
    return shrunk(codes[0].clamp(min=NOBODY)).long()


def is_exact(prober: Prober, name: str, reading: Reading, sites: tuple[Site, ...]) -> bool:
    """Whether recycling a dead neuron of the layer changes no output of the network.

    It does where a normalisation ties it to other neurons, or where the consumers receive something other than 0
    from a neuron whose activation is 0.
    """
    if any(place.kind == "normalisation" for place in reading):
        return False
    seen_at = [Place("activation", site.name, site.call) for site in sites if site.kind == "activation"]
    silent = {place.call: reading[place] for place in seen_at}
    if not silent:
        return True
    arrives = False

    def record(place: Place, value: Tensor) -> None:
        nonlocal arrives
        if place.kind == "input" and place in reading:
            arrives |= bool((value * (reading[place] != NOBODY).to(value)).any())

    prober.run(Choice(name, torch.ones(1, prober.neurons(name)), silent=silent), record)
    return not arrives


@dataclass(frozen=True)
class ActivationCall:
    """An activation call of a pass, and the module whose result it is, if it is one's.

    :param module: path of the module
    :param module_call: which of the module's calls
    """

    is_non_negative: bool
    module: str | None = None
    module_call: int = 0


class _CallLister(FunctionWatcher):
    """Lists activation calls, and hears which modules return their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[ActivationCall] = []
        self.outputs: list[Tensor] = []  # all kept, so that no two have the same identity
        self.module_calls: dict[str, int] = defaultdict(int)

    def on_activation(self, call: int, func: Any, output: Tensor) -> Tensor:
        self.calls.append(ActivationCall(func in NON_NEGATIVE))
        self.outputs.append(output)
        return output

    def see(self, name: str, output: Any) -> None:
        for call, seen in enumerate(self.outputs):
            if seen is output and self.calls[call].module is None:
                self.calls[call] = replace(self.calls[call], module=name, module_call=self.module_calls[name])
        self.module_calls[name] += 1


def activation_calls(prober: Prober) -> list[ActivationCall]:
    """The activation calls of a pass, in order."""
    lister = _CallLister()
    modules = prober.module.named_modules()
    leaves = {name: leaf for name, leaf in modules if name not in prober.layers and not list(leaf.children())}

    def watching(name: str, leaf: nn.Module) -> Callable[..., Any]:
        real = leaf.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = real(*args, **kwargs)
            lister.see(name, output)
            return output

        return forward

    with seeded(0), replaced_forward(leaves, watching), lister:
        prober.forward()
    return lister.calls


def at_modules(calls: list[ActivationCall], sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """The same sites, seen as a module's result where a module makes the activation call.

    A hook on a few modules costs less than watching every function of a pass.
    """
    return tuple(_at_module(site, calls[site.call]) if site.kind == "activation" else site for site in sites)


def _at_module(site: Site, call: ActivationCall) -> Site:
    if call.module is None:
        return replace(site, is_non_negative=call.is_non_negative)
    return replace(site, kind="result", name=call.module, call=call.module_call, is_non_negative=call.is_non_negative)
