"""Makes variants of a network's inputs, and finds the elements that depend on the input."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sb3_redo.forward.calls import ChangedCallsError
from sb3_redo.forward.nested import map_tensors, tensors_in
from sb3_redo.wiring.frozen_network import PassSettings
from sb3_redo.wiring.neuron_codes import Place, Reading, any_true, merge_reading
from sb3_redo.wiring.prober import Prober, finite


def first_two_rows(tensor: Tensor) -> Tensor:
    """Return the first two observations of a batch. Repeats the first if there is no other."""
    return tensor[:2] if len(tensor) > 1 else torch.cat([tensor, tensor])


def first_row(tensor: Tensor) -> Tensor:
    """Return the first observation of a batch, [1, ...]."""
    return tensor[:1]


def input_variants(prober: Prober, forward: Callable[[Any], Any], inputs: Any) -> list[Any]:
    """Return one observation and up to four variants of it, [1, ...] each, that the network accepts.

    The second and third are opposites, and so are the fourth and fifth.

    :param forward: runs the network on an input
    :param inputs: two observations, nested tensors [2, ...]
    :raises ChangedCallsError: when the network makes other calls on a variant
    """
    for change in (_with_noise, _rearranged):
        changed = [inputs, *(map_tensors(partial(change, attempt=attempt), inputs) for attempt in range(4))]
        variants = [map_tensors(first_row, variant) for variant in changed]
        try:
            # Other seeds show whether the network's draws decide which calls it makes.
            for seed, variant in enumerate(variants):
                with prober.drawing(seed):
                    prober.run(PassSettings(), forward=partial(forward, variant))
        except ChangedCallsError:
            raise
        except Exception:
            continue  # noise may be invalid, such as an index outside an embedding
        return variants
    return [map_tensors(first_row, inputs)]


def extreme_inputs(prober: Prober, forward: Callable[[Any], Any], inputs: Any) -> list[Any]:
    """Return the other observation, and all-low and all-high ones, if the network accepts them.

    A network such as ``a(x) if x.mean() > 1 else b(x)`` runs other layers on some of them.

    :param forward: runs the network on an input
    :param inputs: two observations, nested tensors [2, ...]
    :raises ChangedCallsError: when the network makes other calls on one of them
    """
    changes = (lambda tensor: tensor[1:], partial(_constant, sign=-1), partial(_constant, sign=1))
    accepted = []
    for extreme in [map_tensors(change, inputs) for change in changes]:
        try:
            prober.run(PassSettings(), forward=partial(forward, extreme))
            accepted.append(extreme)
        except ChangedCallsError:
            raise
        except Exception:
            continue
    return accepted


def widened(prober: Prober, forward: Callable[[Any], Any], variants: Sequence[Any]) -> Sequence[Any]:
    """Return the variants with large numbers, which exceed thresholds, if the network accepts them.

    :param forward: runs the network on an input
    :param variants: as :func:`input_variants` returns them
    """
    if not any(tensor.is_floating_point() for tensor in tensors_in(variants[0])):
        return variants
    wide = [map_tensors(lambda t: t * prober.wide if t.is_floating_point() else t, variant) for variant in variants]
    try:
        for variant in wide[1:3] or wide:  # the variants used to drive layers
            prober.run(PassSettings(), forward=partial(forward, variant))
    except Exception:
        return variants
    return wide


def _constant(tensor: Tensor, sign: int) -> Tensor:
    """Return one observation that is all low or all high: beyond its range, or the smallest or largest integer."""
    if tensor.is_floating_point():
        return torch.full_like(tensor[:1], sign * (float(tensor.abs().max()) + 1.0))
    return (tensor.amax() if sign > 0 else tensor.amin()).expand_as(tensor[:1]).clone()


def _with_noise(tensor: Tensor, attempt: int) -> Tensor:
    """Add noise to numbers, draw new bytes for pixels, rearrange other integers.

    Odd attempts subtract the noise that the previous attempt added, so that a gate for one sign opens in one of them.
    Noise is larger than the number itself, so that signs change.
    """
    if tensor.is_floating_point():
        generator = torch.Generator().manual_seed(attempt // 2)
        sizes = torch.rand(tensor.shape, generator=generator) + 1.0
        signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
        direction = 1 - 2 * (attempt % 2)
        return tensor + (sizes * signs * direction).to(tensor) * (tensor.abs() + 1)
    generator = torch.Generator().manual_seed(attempt)
    if tensor.dtype == torch.uint8:
        return torch.randint(0, 256, tensor.shape, generator=generator, dtype=torch.uint8).to(tensor)
    return _rearranged(tensor, attempt)


def _rearranged(tensor: Tensor, attempt: int) -> Tensor:
    """Swap the two rows in even attempts. Mirror each value within the range of all in odd attempts."""
    return tensor.flip(0) if attempt % 2 == 0 or tensor.dtype == torch.bool else tensor.max() + tensor.min() - tensor


def read_observation(
    prober: Prober,
    variants: Sequence[Callable[[], Any]],
    extremes: Sequence[Callable[[], Any]],
    wide: Sequence[Callable[[], Any]],
) -> Reading:
    """Return the elements that change with the network's input while every layer is frozen.

    :param variants: passes on the observation and on its variants, in the order of :func:`input_variants`
    :param extremes: passes on :func:`extreme_inputs`
    :param wide: the same as ``variants``, on inputs with large numbers
    :return: 0 at each of these elements, else NO_NEURON
    """
    reading: Reading = {}
    inner = [condition for condition in prober.conditions() if condition.variation in prober.inner_variations]
    for condition in (*inner, *prober.wide_conditions()):
        passes = variants if condition in inner else wide
        # Frozen outputs of one sign are combined with the first pair of opposites, those of the other sign with the
        # second.
        pair = passes[1:3] if condition.factor > 0 else passes[3:]
        settings = PassSettings(frozen_factors=(condition.factor,), variation=condition.variation)
        before: dict[Place, Tensor] = {}

        def record(place: Place, value: Tensor, before: dict[Place, Tensor] = before) -> None:
            value = finite(value)
            first = before.setdefault(place, value.clone() if place not in before else value)
            changed = value != first
            if any_true(changed):
                merge_reading(reading, {place: changed.cpu().to(torch.int32) - 1})

        def read(runs: Sequence[Callable[[], Any]], settings: PassSettings = settings, record: Any = record) -> None:
            for run in runs:
                prober.run(settings, record, run)

        if condition in inner and condition.variation == 0:
            read((*passes[:1], *pair, *extremes))
        else:  # a network may refuse such large values or parameters
            prober.accepts(partial(read, (*passes[:1], *pair) if condition in inner else pair), condition)
    return reading
