"""A network's input and others of the same form, to see what depends on it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sb3_redo.forward.nested import map_tensors
from sb3_redo.wiring.frozen_network import Choice
from sb3_redo.wiring.neuron_codes import Place, Reading, add_to, somewhere
from sb3_redo.wiring.prober import PASS_ERRORS, Prober, finite


def two_rows(tensor: Tensor) -> Tensor:
    """The first two observations, or the only one twice."""
    return tensor[:2] if len(tensor) > 1 else torch.cat([tensor, tensor])


def first_row(tensor: Tensor) -> Tensor:
    """The first observation, as a batch."""
    return tensor[:1]


def one_row_variants(prober: Prober, forward: Callable[[Any], Any], inputs: Any) -> list[Any]:
    """One observation and four others of the same form, pairs of opposites, as different as the network bears.

    :param inputs: two observations
    """
    for change in (_noisy, _turned):
        changed = [inputs, *(map_tensors(partial(change, attempt=attempt), inputs) for attempt in range(4))]
        variants = [map_tensors(first_row, variant) for variant in changed]
        try:
            for variant in variants:
                prober.run(Choice(), _ignore, partial(forward, variant))
        except PASS_ERRORS:
            continue  # noise can be no input at all, such as the number of an embedding that does not exist
        return variants
    return [map_tensors(first_row, inputs)]


def _ignore(place: Place, value: Tensor) -> None:
    pass


def _noisy(tensor: Tensor, attempt: int) -> Tensor:
    """Noise on numbers, any byte for a pixel, another of the values seen for an integer.

    Every second attempt adds what the one before takes away: a gate that is open for one sign only is open in one of
    them. Noise is larger than the number it is added to, so that signs change.
    """
    if tensor.is_floating_point():
        generator = torch.Generator().manual_seed(attempt // 2)
        sizes = torch.rand(tensor.shape, generator=generator) + 1.0
        signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
        return tensor + (sizes * signs * (1 - 2 * (attempt % 2))).to(tensor) * (tensor.abs() + 1)
    generator = torch.Generator().manual_seed(attempt)
    if tensor.dtype == torch.uint8:
        return torch.randint(0, 256, tensor.shape, generator=generator, dtype=torch.uint8).to(tensor)
    return _turned(tensor, attempt)


def _turned(tensor: Tensor, attempt: int) -> Tensor:
    """The two rows exchanged, or each value mirrored within the range of those seen."""
    return tensor.flip(0) if attempt % 2 == 0 or tensor.dtype == torch.bool else tensor.max() + tensor.min() - tensor


def read_inputs(prober: Prober, variants: Sequence[Callable[[], Any]]) -> Reading:
    """The places that change with the network's own input while every layer is frozen."""
    codes: Reading = {}
    # Beside frozen outputs of either sign another pair of opposites.
    for factor, pair in ((1.0, variants[1:3]), (-1.0, variants[3:])):
        before: dict[Place, Tensor] = {}

        def record(place: Place, value: Tensor, before: dict[Place, Tensor] = before) -> None:
            value = finite(value)
            first = before.setdefault(place, value.clone() if place not in before else value)
            moved = value != first
            if somewhere(moved):
                add_to(codes, {place: moved.cpu().to(torch.int32) - 1})  # 0 where it moved, else NOBODY

        for variant in (variants[0], *pair):
            prober.run(Choice(factors=(factor,)), record, variant)
    return codes
