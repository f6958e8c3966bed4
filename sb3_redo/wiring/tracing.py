"""Finds a network's neurons, with their incoming and outgoing weights.

Nothing is guessed from the order of modules. One layer at a time is driven while all others are frozen, so that only
parameter-free operations lie between it and the elements that it reaches (``prober.py``).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sb3_redo.forward.contexts import evaluating, everything_seeded, is_compiled, uncompiled
from sb3_redo.forward.layers import neuron_axis
from sb3_redo.forward.nested import map_tensors
from sb3_redo.forward.state import State, unchanged
from sb3_redo.wiring.default_forward import default_forward
from sb3_redo.wiring.gradient_reach import OUTPUT
from sb3_redo.wiring.input_variants import (
    extreme_inputs,
    first_row,
    first_two_rows,
    input_variants,
    read_observation,
    widened,
)
from sb3_redo.wiring.neuron_codes import NO_NEURON, SEVERAL_NEURONS, Reading, merged
from sb3_redo.wiring.normalisations import left_alone, mixing_modules, normalisations
from sb3_redo.wiring.ownership import Ownership
from sb3_redo.wiring.prober import Prober
from sb3_redo.wiring.sites import as_module_results, find_sites, is_exact, list_calls
from sb3_redo.wiring.structure import LayerWiring, Wiring
from sb3_redo.wiring.variations import numbers_taken, vary_outside_layers

OBSERVATION = "the observation"


def trace_wiring(
    policy: nn.Module,
    observations: Any,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    optimizers: Iterable[Optimizer] | None = None,
) -> Wiring:
    """Find the hidden layers of a policy, and the consumers of each of their neurons, by perturbation.

    Restores the policy's weights, modes and random generators. Reads linear layers and (transposed) convolutions that
    run in the forward pass. Any other module with parameters counts as an operation that mixes neurons.

    :param policy: any module. Layers are named by their path below it.
    :param observations: a batch for ``forward``, [observations, ...]. The first two are used.
    :param forward: runs every network of the policy in one pass and returns all outputs. Default: the policy
        itself, or its ``actor`` and ``critic`` if it has both, the critic on the actor's actions.
    :param optimizers: all that train the policy. Layers with weights in none of them are measured only. Not checked
        if ``None`` or empty.
    :return: the wiring
    :raises RuntimeError: when nothing in the policy can be measured

    >>> policy = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> wiring = trace_wiring(policy, torch.ones(1, 3))
    >>> wiring.layers[0].consumers["2"].tolist()
    [0, 1, 2, 3]
    """
    inputs = map_tensors(first_two_rows, observations)
    with everything_seeded(0), evaluating(policy.modules()), uncompiled(is_compiled(policy.modules())):
        # A pass as in training shows which modules it changes. Every later pass starts from their earlier state.
        stream = torch.get_rng_state()
        with unchanged(policy) as state, suppress(Exception):
            if forward is None:
                forward, inputs = default_forward(policy, inputs)
            forward(policy, inputs)
        draws = state.has_drawn or not torch.equal(stream, torch.get_rng_state())
        try:
            wiring = _trace(policy, inputs, forward, optimizers, state, draws)
        finally:
            state.put_back()
    return replace(wiring, stateful=tuple(state.moved))


def _trace(
    policy: nn.Module,
    inputs: Any,
    forward: Callable[[nn.Module, Any], Any] | None,
    optimizers: Iterable[Optimizer] | None,
    state: State,
    draws: bool,
) -> Wiring:
    # 1. Find the layers that run on one observation.
    if forward is None:  # errors in it belong to the caller
        forward, inputs = default_forward(policy, inputs)
    run_first = partial(forward, policy, map_tensors(first_row, inputs))
    prober = Prober(policy, run_first, partial(state.put_back, moved_only=True))
    prober.seed_own = state.seed
    # 2. Probe on variants of the input, because the observation itself may shut a gate.
    run = partial(forward, policy)
    inner_inputs = input_variants(prober, run, inputs)
    variants = [partial(run, variant) for variant in inner_inputs]
    extremes = [partial(run, extreme) for extreme in extreme_inputs(prober, run, inputs)]
    prober.prepare(variants[1:3] or variants)
    wide = [partial(run, variant) for variant in widened(prober, run, inner_inputs)]
    prober.widen(wide[1:3] or wide)
    # 3. A scale, gate or offset outside layers may be 0 only at the start.
    vary_outside_layers(prober)
    prober.find_rows()
    # 4. Every layer is driven while all others are frozen. Then all are frozen while the observation changes.
    activations, calls = list_calls(prober)
    readings = {name: prober.read(name) for name in prober.layers}
    fed_by_chance = prober.add_draws(readings) if draws else []
    sources = {**readings, OBSERVATION: read_observation(prober, variants, extremes, wide)}
    # 5. Now the connections and the owners of weights are known.
    feeders = _feeders(prober, sources)
    apart = prober.without_rows
    heads = {
        name: {place.call for place in reading if place.kind == "output"}
        for name, reading in readings.items()
        if name not in apart and not any(place.kind == "input" for place in reading)
    }
    ownership = Ownership(prober, heads, partial(forward, policy), inputs, optimizers)
    # 6. Torch's graph shows connections that were shut in every pass. A layer that feeds no other one is an output.
    #    Exceptions are layers that numbers outside torch may select, and layers with an activation that reaches the
    #    outputs only in products with other tensors.
    unseen = {name: ownership.unseen_feeders(name, feeders[name]) for name in prober.layers}
    idle = [name for name in heads if not any(place.kind in ("output", "module") for place in readings[name])]
    numbers = numbers_taken(prober)
    if numbers.are_whole or (numbers.any and idle):
        prober.other_way = prober.other_way or "numbers that forward takes from values"
    hidden = {name for name in heads if _is_mixed_into_outputs(prober, name, readings[name])}
    hidden |= {name for others in unseen.values() for name in others} | set(idle if prober.other_way else ())
    outputs = [name for name in heads if name not in hidden]
    returned = [name for name, reading in readings.items() if any(place.kind == "output" for place in reading)]
    unseen[OUTPUT] = ownership.unseen_feeders(OUTPUT, returned)
    layers = []
    for name, reading in readings.items():
        if name in outputs or name in apart:
            continue
        # 7. For every hidden layer, find its consumers, its sites, and any reason against recycling.
        others = [other for source, other in sources.items() if source != name]
        consumers = _consumers(prober, reading)
        sites = find_sites(prober, name, reading, consumers, others)
        normalised = normalisations(prober, reading, others)
        reason = _why_mixed(prober, name, consumers) or _why_not_its_positions(name, reading, consumers, feeders)
        reason = reason or _why_unseen(name, consumers, unseen) or ownership.why_not_writable(name, consumers)
        if name in fed_by_chance:
            reason = reason or "what it feeds depends on random numbers that forward draws"
        if prober.other_way is not None:
            reason = reason or f"what it feeds depends on {prober.other_way}: with other values, other operations run"
        layer = LayerWiring(
            name=name,
            neurons=prober.neurons(name),
            recyclable=reason is None,
            reason=reason,
            consumers={consumer: neurons.clamp(min=NO_NEURON).long() for consumer, neurons in consumers.items()},
            # An untrained normalisation may act as an identity. A trained one does not.
            exact=reason is None
            and prober.all_varied
            and name not in prober.not_varied
            and not normalised
            and is_exact(prober, name, reading, sites),
            sites=as_module_results(activations, sites),
            normalisations=ownership.writable(normalised),
        )
        layers.append(layer)
    if not layers:
        raise RuntimeError(
            f"nothing to measure in {type(policy).__name__}: it has only output layers, which feed no other "
            f"layer ({', '.join(outputs)})" + (f"; {', '.join(apart)} runs without a batch axis" if apart else "")
        )
    return Wiring(tuple(layers), tuple(outputs), calls, left_alone(prober, activations), prober.size)


def _why_unseen(name: str, consumers: Iterable[str], unseen: dict[str, list[str]]) -> str | None:
    """Return a message about a connection that no pass opened, of the layer or its consumers, or ``None``."""
    shut = "through what was shut in every pass (a gate, a choice or a hinge)"
    for consumer, others in unseen.items():
        if name in others:
            return f"it also feeds {consumer}, {shut}"
        if others and consumer in consumers:
            return f"what it feeds into {consumer} may also be fed by {', '.join(others)}, {shut}"
    return None


Feeders = dict[str, dict[str, Tensor]]
"""Layer name to source name to bool mask [input positions]."""


def _feeders(prober: Prober, sources: dict[str, Reading]) -> Feeders:
    """Return the input positions of every layer that each source feeds, over all calls."""
    feeders: Feeders = defaultdict(dict)
    for source, reading in sources.items():
        for place, neurons in reading.items():
            if place.kind == "input":
                fed = (_by_position(prober.layers[place.name], neurons) != NO_NEURON).any(1)
                known = feeders[place.name].get(source)
                feeders[place.name][source] = fed if known is None else known | fed
    return feeders


def _by_position(layer: nn.Module, neurons: Tensor) -> Tensor:
    """Rearrange a reading at a layer's input to [input positions, elements per position]."""
    positions = neurons.movedim(neuron_axis(layer), 0)
    return positions.reshape(len(positions), -1)


def _consumers(prober: Prober, reading: Reading) -> dict[str, Tensor]:
    """Return layer name to the neuron at each input position, NO_NEURON or SEVERAL_NEURONS, [input positions]."""
    consumers: dict[str, Tensor] = {}
    for place, neurons in reading.items():
        if place.kind != "input":
            continue
        # 1. In one call, a position belongs to a neuron if no element of it shows another neuron.
        elements = _by_position(prober.layers[place.name], neurons)
        lowest = elements.masked_fill(elements == NO_NEURON, torch.iinfo(neurons.dtype).max).amin(1)
        highest = elements.amax(1)
        is_mixed = (elements == SEVERAL_NEURONS).any(1) | (lowest != highest)
        positions = torch.where(is_mixed, SEVERAL_NEURONS, highest)
        positions[(elements == NO_NEURON).all(1)] = NO_NEURON
        # 2. Over several calls, the calls that show a neuron must agree.
        known = consumers.get(place.name)
        consumers[place.name] = positions if known is None else merged(known, positions)
    return consumers


def _why_mixed(prober: Prober, name: str, consumers: dict[str, Tensor]) -> str | None:
    """Return the module with parameters that mixes a layer's neurons before a consumer, in words, or ``None``."""
    mixed = [consumer for consumer, positions in consumers.items() if (positions == SEVERAL_NEURONS).any()]
    mixing = mixing_modules(prober, name) if mixed else []
    if not mixing:
        return None
    modules = " and ".join(f"{path} ({type(prober.other_modules[path]).__name__})" for path in mixing)
    return f"input positions of {mixed[0]} depend on several of its neurons, since it feeds {modules}"


def _why_not_its_positions(name: str, reading: Reading, consumers: dict[str, Tensor], feeders: Feeders) -> str | None:
    """Return the reason why a position that a layer feeds does not belong to a single neuron, or ``None``."""
    for consumer, positions in consumers.items():
        fed = positions != NO_NEURON
        others = sorted(other for other, mask in feeders[consumer].items() if other != name and (mask & fed).any())
        if others:
            return f"what it feeds into {consumer} is also fed by {', '.join(others)} (a sum, a product or a skip)"
        if (positions == SEVERAL_NEURONS).any():
            return f"input positions of {consumer} depend on several of its neurons"
    if any(place.kind == "output" for place in reading):
        return f"it {'also ' if consumers else ''}reaches an output of the policy without passing another layer"
    return None


def _is_mixed_into_outputs(prober: Prober, name: str, reading: Reading) -> bool:
    """Return whether a layer's activations reach the outputs only combined with another tensor.

    Examples are bilinear forms, products with a matrix outside layers, and similarities.
    """
    if name not in prober.not_alone or not any(place.kind == "activation" for place in reading):
        return False
    each = prober.values_per_row(name) // prober.neurons(name)
    outputs = [neurons for place, neurons in reading.items() if place.kind == "output"]
    return bool(outputs) and all(
        (neurons == SEVERAL_NEURONS).any() or neurons[neurons >= 0].bincount().max() > each for neurons in outputs
    )
