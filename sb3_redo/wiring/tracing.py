"""Which neurons a network has, where each one's weights come in and where they go out.

Nothing is guessed from the order of modules: the network is asked. One layer at a time is given chosen
outputs while all others are frozen, so that only parameter-free operations lie between it and whatever it
reaches (``probe.py``).
"""

from collections import defaultdict
from collections.abc import Callable, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sb3_redo.forward.contexts import evaluating, is_compiled, uncompiled
from sb3_redo.forward.layers import LAYER_TYPES, TRANSPOSED, neuron_axis
from sb3_redo.forward.nested import map_tensors
from sb3_redo.wiring.default_forward import default_forward
from sb3_redo.wiring.input_variants import first_row, one_row_variants, read_inputs, two_rows
from sb3_redo.wiring.neuron_codes import MIXED, NOBODY, Reading
from sb3_redo.wiring.normalisations import left_alone, normalisations
from sb3_redo.wiring.ownership import borrowed_weights
from sb3_redo.wiring.prober import Prober
from sb3_redo.wiring.sites import ActivationCall, activation_calls, at_modules, find_sites, is_exact
from sb3_redo.wiring.structure import LayerWiring, Wiring

OBSERVATION = "the observation"


def trace_wiring(
    policy: nn.Module, observations: Any, *, forward: Callable[[nn.Module, Any], Any] | None = None
) -> Wiring:
    """Find the hidden layers of a policy and what each of their neurons feeds, by perturbation.

    Leaves the policy as it was: weights, modes, random streams. Sees linear layers and (transposed) convolutions
    that run in the forward pass; whatever else has parameters counts as an operation that mixes neurons.

    :param policy: any module; layers are named by their path below it
    :param observations: a batch of what ``forward`` takes, at least one row; two are used
    :param forward: runs every network of the policy in one pass and returns all outputs. Default: the policy
        itself, or its ``actor`` and ``critic`` where it has both (the critic at the actor's actions).
    :return: the wiring
    :raises RuntimeError: when nothing in the policy can be measured

    >>> policy = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> wiring = trace_wiring(policy, torch.ones(1, 3))
    >>> wiring.layers[0].consumers["2"].tolist()
    [0, 1, 2, 3]
    """
    with evaluating(policy.modules()), uncompiled(is_compiled(policy.modules())):
        return _trace(policy, map_tensors(two_rows, observations), forward)


def _trace(policy: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any] | None) -> Wiring:
    if forward is None:
        forward, inputs = default_forward(policy, inputs)
    prober = Prober(policy, partial(forward, policy, map_tensors(first_row, inputs)))
    variants = [
        partial(forward, policy, variant) for variant in one_row_variants(prober, partial(forward, policy), inputs)
    ]
    # On values of our own choosing, because a gate that the observation holds shut would be overlooked.
    prober.prepare(variants[1:3] or variants)
    activations, borrowed = activation_calls(prober), borrowed_weights(prober)
    readings = {name: prober.read(name) for name in prober.layers}
    sources = {**readings, OBSERVATION: read_inputs(prober, variants)}
    feeders = _feeders(prober, sources)
    outputs = [name for name, reading in readings.items() if not any(place.kind == "input" for place in reading)]
    layers = [
        _layer_wiring(
            prober,
            name,
            reading,
            feeders,
            activations,
            borrowed,
            [other for key, other in sources.items() if key != name],
        )
        for name, reading in readings.items()
        if name not in outputs
    ]
    if not layers:
        raise RuntimeError(
            f"nothing to measure in {type(policy).__name__}: it has only output layers, which feed no other "
            f"layer ({', '.join(outputs)})"
        )
    calls, alone = len(activations), left_alone(prober, activations)
    return Wiring(tuple(layers), tuple(outputs), calls, alone, prober.size)


Feeders = dict[str, dict[str, Tensor]]
"""Consumer name to the name of what feeds it to bool mask [input positions]."""


def _feeders(prober: Prober, readings: dict[str, Reading]) -> Feeders:
    feeders: Feeders = defaultdict(dict)
    for source, reading in readings.items():
        for place, codes in reading.items():
            if place.kind == "input":
                fed = (_by_position(prober.layers[place.name], codes) != NOBODY).any(1)
                known = feeders[place.name].get(source)
                feeders[place.name][source] = fed if known is None else known | fed
    return feeders


def _by_position(layer: nn.Module, codes: Tensor) -> Tensor:
    """A reading of a layer's input as [input positions, elements of each]."""
    return codes.movedim(neuron_axis(layer), 0).flatten(1)


def _layer_wiring(
    prober: Prober,
    name: str,
    reading: Reading,
    feeders: Feeders,
    activations: list[ActivationCall],
    borrowed: Set[str],
    others: list[Reading],
) -> LayerWiring:
    consumers = _consumers(prober, reading)
    sites = find_sites(prober, name, reading, consumers, others)
    normalised = normalisations(prober, reading, others)
    reason = _why_not(prober, name, reading, consumers, feeders, borrowed)
    return LayerWiring(
        name=name,
        neurons=prober.neurons(name),
        recyclable=reason is None,
        reason=reason,
        consumers={consumer: positions.clamp(min=NOBODY).long() for consumer, positions in consumers.items()},
        # What a normalisation has learned is nothing yet when training starts, and would seem to do nothing.
        exact=not normalised and is_exact(prober, name, reading, sites),
        sites=at_modules(activations, sites),
        normalisations=normalised,
    )


def _consumers(prober: Prober, reading: Reading) -> dict[str, Tensor]:
    """Layer name to the neuron at each input position over all calls: NOBODY, a number, or MIXED."""
    consumers: dict[str, Tensor] = {}
    for place, codes in reading.items():
        if place.kind != "input":
            continue
        elements = _by_position(prober.layers[place.name], codes)
        lowest = elements.masked_fill(elements == NOBODY, torch.iinfo(codes.dtype).max).amin(1)
        highest = elements.amax(1)
        positions = torch.where((elements == MIXED).any(1) | (lowest != highest), MIXED, highest)
        positions[(elements == NOBODY).all(1)] = NOBODY
        known = consumers.get(place.name)
        if known is not None:
            agreed = torch.where((known == positions) | (positions == NOBODY), known, MIXED)
            positions = torch.where(known == NOBODY, positions, agreed)
        consumers[place.name] = positions
    return consumers


def _why_not(
    prober: Prober,
    name: str,
    reading: Reading,
    consumers: dict[str, Tensor],
    feeders: Feeders,
    borrowed: Set[str],
) -> str | None:
    """The reason why a layer is measured but not recycled, if there is one."""
    for consumer, positions in consumers.items():
        fed = positions != NOBODY
        others = sorted(other for other, mask in feeders[consumer].items() if other != name and (mask & fed).any())
        if others:
            return f"what it feeds into {consumer} is also fed by {', '.join(others)} (a sum, a product or a skip)"
        if (positions == MIXED).any():
            return f"input positions of {consumer} depend on several of its neurons"
    if any(place.kind == "output" for place in reading):
        return "it also reaches an output of the policy without passing another layer"
    for layer, whose in ((name, "its"), *((consumer, f"{consumer}'s") for consumer in consumers)):
        if layer in borrowed:
            return f"{whose} weights are also used without calling it"
        why = _why_not_writable(prober, layer, whose)
        if why is not None:
            return why
    return None


def _why_not_writable(prober: Prober, name: str, whose: str) -> str | None:
    layer = prober.layers[name]
    if not any(type(layer).forward is kind.forward for kind in LAYER_TYPES) or len(layer._parameters) > 2:
        return f"{whose} forward pass is not that of a plain layer"
    if isinstance(layer, TRANSPOSED):
        return f"{whose} weights are those of a transposed convolution, which are laid out the other way round"
    if parametrize.is_parametrized(layer) or not isinstance(layer.weight, nn.Parameter):
        return f"{whose} weights are computed from other parameters"
    if not layer.weight.requires_grad:
        return f"{whose} weights are frozen"
    holders = [
        path or "the policy itself"
        for path, module in prober.module.named_modules()
        if module is not layer and any(parameter is layer.weight for parameter in module._parameters.values())
    ]
    return f"{whose} weights are shared with {', '.join(holders)}" if holders else None
