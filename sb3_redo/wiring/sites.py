"""Finds the places where a layer's activations can be seen during a forward pass."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.forward.calls import Call
from sb3_redo.forward.contexts import replaced_forward
from sb3_redo.forward.functions import NON_NEGATIVE
from sb3_redo.forward.layers import neuron_axis
from sb3_redo.wiring.frozen_network import PassSettings
from sb3_redo.wiring.neuron_codes import NO_NEURON, SEVERAL_NEURONS, Place, Reading, without_repeats
from sb3_redo.wiring.prober import Prober, finite
from sb3_redo.wiring.structure import Site


def find_sites(
    prober: Prober, name: str, reading: Reading, consumers: dict[str, Tensor], others: Iterable[Reading]
) -> tuple[Site, ...]:
    """Return the places of a layer's activations.

    These are its activation calls. Without usable calls, the inputs of its consumers, or else its own outputs.

    :param reading: the elements that the layer reaches
    :param consumers: layer name to the neuron at each input position
    :param others: the elements that every other layer and the observation reach
    """
    others = list(others)
    # 1. The first activation call that shows the layer's neurons counts. A later call counts at elements that depend
    #    only on the layer, and still do while the earlier calls return constants. The second half of a CReLU does. A
    #    second activation in a row does not, nor does one behind a residual sum.
    calls = sorted(place.call for place in reading if place.kind == "activation" and (reading[place] >= 0).any())
    sites: list[Site] = []
    for call in calls:
        place = Place("activation", str(call), call)
        neurons = reading[place]
        if sites:
            own = prober.reaches(name, {site.call for site in sites}).get(place)
            if own is None:
                continue
            neurons = neurons.where(own & ~reached_by_others(place, neurons, others), NO_NEURON)
        if (neurons >= 0).any():
            sites.append(Site("activation", str(call), call, _of_one_observation(neurons)))
    # 2. They are the whole activation unless a path bypasses them: in x * sigmoid(x) the call is only a part.
    if sites and not _bypasses_activations(prober, name, sites, others):
        return tuple(sites)
    # 3. Otherwise the activations are the consumers' inputs, if every position there shows one neuron.
    if consumers and all((positions != SEVERAL_NEURONS).all() for positions in consumers.values()):
        arriving = [(place, neurons) for place, neurons in reading.items() if place.kind == "input"]
        return tuple(Site("input", place.name, place.call, _of_one_observation(neurons)) for place, neurons in arriving)
    # 4. Otherwise they are the layer's outputs.
    numbers = torch.arange(prober.neurons(name))
    axis = neuron_axis(prober.layers[name])
    shapes = [[-1 if i == axis else 1 for i in range(1 - len(call.shape), 0)] for call in prober.calls[name]]
    return tuple(Site("result", name, call, numbers.view(shape)) for call, shape in enumerate(shapes))


def _bypasses_activations(prober: Prober, name: str, sites: list[Site], others: list[Reading]) -> bool:
    """Return whether a layer alone reaches elements of another one while its activation calls are constant."""
    still_reached = prober.reaches(name, {site.call for site in sites})
    return any(
        bool((reached & ~reached_by_others(place, reached, others)).any())
        for place, reached in still_reached.items()
        if place.kind == "input"
    )


def reached_by_others(place: Place, like: Tensor, others: list[Reading]) -> Tensor:
    """Return a bool mask of a place's elements that another source reaches, in the shape of ``like``."""
    reached = torch.zeros(like.shape, dtype=torch.bool)
    for other in others:
        if place in other:
            reached |= other[place] != NO_NEURON
    return reached


def _of_one_observation(neurons: Tensor) -> Tensor:
    """Return the neurons at the elements of the first row, -1 for none or several, without repeats."""
    return without_repeats(neurons[0].clamp(min=NO_NEURON)).long()


def is_exact(prober: Prober, name: str, reading: Reading, sites: tuple[Site, ...]) -> bool:
    """Return whether recycling a dead neuron of a layer changes no output of the network."""
    # 1. In a normalisation, the neuron affects others.
    if any(place.kind == "normalisation" for place in reading):
        return False
    # 2. Without activation calls, the consumers receive the activations themselves: a dead neuron's are 0.
    seen_at = [Place("activation", site.name, site.call) for site in sites if site.kind == "activation"]
    zeroed = {place.call: reading[place] for place in seen_at}
    if not zeroed:
        return True
    # 3. Otherwise set all activations to 0. Everything that the layer feeds must then be 0.
    arrives = False

    def record(place: Place, value: Tensor) -> None:
        nonlocal arrives
        if place.kind == "input" and place in reading:
            arrives |= bool(value[(reading[place] != NO_NEURON).expand_as(value).to(value.device)].any())

    # 4. This must hold for all values of scales and offsets outside layers.
    settings = PassSettings(name, torch.ones(1, prober.neurons(name)), zeroed=zeroed)
    for variation in prober.variations_of(name):
        prober.run(replace(settings, variation=variation), record)
    return not arrives


@dataclass(frozen=True)
class ActivationCall:
    """An activation call of a pass.

    :param is_non_negative: whether its output is never negative
    :param module: path of the module that returns this output, if there is one
    :param module_call: number of the module's call
    """

    is_non_negative: bool
    module: str | None = None
    module_call: int = 0


class _CallLister:
    """Lists the calls of a pass, and finds the modules that return the outputs of activations."""

    def __init__(self, sequence: Iterable[Call]) -> None:
        self.sequence = iter(sequence)
        self.calls: list[Call] = []
        self.activations: list[ActivationCall] = []
        # Outputs are kept until the end, so that no two have the same id.
        self.outputs: list[tuple[Any, ...]] = []  # and their states, to notice changes in place
        self.module_calls: dict[str, int] = defaultdict(int)

    def record(self, place: Place, value: Tensor) -> None:
        if place.kind not in ("input", "activation", "normalisation"):
            return
        call = next(self.sequence)
        self.calls.append(call)
        if call.kind == "activation":
            self.activations.append(ActivationCall(call.name in NON_NEGATIVE))
            self.outputs.append((value, *_state(value)))

    def module_returned(self, name: str, output: Any) -> None:
        for number, (seen, *state) in enumerate(self.outputs):
            # A module may change the output of an activation before it returns it.
            is_result = seen is output and state == _state(output) and not output.is_inference()
            if is_result and self.activations[number].module is None:
                known = self.activations[number]
                self.activations[number] = replace(known, module=name, module_call=self.module_calls[name])
        self.calls.append(Call("module", name))
        self.module_calls[name] += 1


def _state(tensor: Tensor) -> list[float]:
    """Return a tensor's version and sum, which show changes in place."""
    # Changes through ``data`` do not count as versions, and tensors of inference mode have none.
    return [0 if tensor.is_inference() else tensor._version, float(finite(tensor).sum())]


def list_calls(prober: Prober) -> tuple[list[ActivationCall], tuple[Call, ...]]:
    """Run a pass with frozen layers, and return its activation calls and all of its calls, both in order.

    A module's call is included if it returns the output of an activation.
    """
    lister = _CallLister(prober.sequence)
    modules = prober.module.named_modules()
    leaves = {name: leaf for name, leaf in modules if name not in prober.layers and not list(leaf.children())}

    def watching(name: str, leaf: nn.Module) -> Callable[..., Any]:
        real = leaf.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = real(*args, **kwargs)
            lister.module_returned(name, output)
            return output

        return forward

    # Normalisations are computed: a skipped one would seem to return the output of an activation.
    with replaced_forward(leaves, watching):
        prober.run(PassSettings(zeroed={}), lister.record)
    known = {call.module for call in lister.activations}
    return lister.activations, tuple(call for call in lister.calls if call.kind != "module" or call.name in known)


def as_module_results(calls: list[ActivationCall], sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """Replace sites at activation calls by the results of the modules that make these calls.

    Replacing the ``forward`` of a few modules costs less than watching every function of a pass.

    :param calls: the activation calls of a pass, in order
    """
    return tuple(_as_module_result(site, calls[site.call]) if site.kind == "activation" else site for site in sites)


def _as_module_result(site: Site, call: ActivationCall) -> Site:
    if call.module is None:
        return replace(site, is_non_negative=call.is_non_negative)
    return replace(site, kind="result", name=call.module, call=call.module_call, is_non_negative=call.is_non_negative)
