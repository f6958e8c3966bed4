"""Identifies the neuron behind each tensor element: every neuron is driven low or high in a unique binary pattern.

Worked example. A layer of three neurons is driven at the level (low, high). The network makes four elements of it:
``h2``, ``h0``, ``max(h0, h1)`` and a constant. One row of the batch carries one assignment (0 low, 1 high)::

                        driven          seen
    row              h0  h1  h2     h2  h0  max  constant
    all low           0   0   0      0   0   0     same
    all high          1   1   1      1   1   1     same
    number bit 0      0   1   0      0   0   1     same
    number bit 1      0   0   1      1   0   0     same
    inverted bit 0    1   0   1      1   1   1     same
    inverted bit 1    1   1   0      0   1   1     same
    check bit 0       0   1   1      1   0   1     same
    check bit 1       0   1   0      0   0   1     same
    check bit 2       1   0   0      0   1   1     same
                                     |   |   |     |
    read back                        2   0  -2    -1

- ``h2``: the number bits say 2 (binary 10), and all other bits are those of neuron 2. The element shows neuron 2.
- ``max``: the number bits say 1. Inverted bit 0 is that of another neuron: several neurons reach this element (-2).
- constant: all low and all high are the same, so no neuron reaches this element (-1).

Number bits alone would take the maximum of neurons 0 and 1 for neuron 1. The inverted bits expose such mixtures. The
check bits are random, and the last one inverts the first. Every level starts with them. If they agree with an earlier
level's reading, the number bits need not be sent again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

NO_NEURON = -1
"""Marks an element that the driven layer does not reach."""
SEVERAL_NEURONS = -2
"""Marks an element that depends on more than one neuron of the driven layer."""

CHECK_BITS = 3
REFERENCE_ROWS = 2
"""Rows before the assignments of a batch: every neuron low, every neuron high."""

Level = tuple[float, float]
"""The value of a neuron driven low, and of one driven high."""


class Place(NamedTuple):
    """A value that can be seen during a pass.

    :param kind: ``input`` of a layer, output of an ``activation``, input of a ``normalisation``, input of another
        ``module`` with parameters, or ``output`` of the whole pass
    :param name: the module's path, or the number of the activation, normalisation or output
    :param call: number of the call of that name
    """

    kind: str
    name: str
    call: int


Recorder = Callable[[Place, Tensor], Any]
"""Receives the value at each place of a pass, before it can be overwritten."""

Reading = dict[Place, Tensor]
"""The neuron seen at each element of each place, NO_NEURON or SEVERAL_NEURONS.

A tensor has the shape of the value for one observation. Axes along which the neuron never changes take no memory.
"""


@dataclass(frozen=True)
class Assignments:
    """The neurons driven high in each row of a batch.

    :param level: the values of a low and of a high neuron
    :param is_high: bool [assignments, neurons]
    :param first_bit: the bit of the binary codes that the first assignment sends
    """

    level: Level
    is_high: Tensor
    first_bit: int = 0

    @property
    def rows(self) -> int:
        return REFERENCE_ROWS + len(self.is_high)

    def values(self) -> Tensor:
        """Return the layer's outputs, [2 + assignments, neurons]: both reference rows, then the assignments."""
        low, high = self.level
        reference = torch.tensor([[False], [True]]).expand(REFERENCE_ROWS, self.is_high.shape[1])
        return torch.where(torch.cat([reference, self.is_high]), high, low)


class ReceivedCode:
    """Collects the bits received at every element of one place. All tensors have the shape of one row."""

    def __init__(self, like: Tensor, neurons: int):
        dtype = torch.int32 if 2 * number_bits(neurons) + CHECK_BITS < 31 else torch.int64
        # Bit k is set if the element had the same value in assignment k as in the row all high.
        self.bits = torch.zeros(like.shape, dtype=dtype, device=like.device)
        self.is_reached = torch.zeros(like.shape, dtype=torch.bool, device=like.device)  # whether it ever changed
        self.is_mixed = torch.zeros_like(self.is_reached)  # whether it was ever neither low nor high

    def receive(self, low: Tensor, high: Tensor, rows: Tensor, first_bit: int) -> None:
        """Compare assignments with the reference rows.

        :param low: the row all low, [...]
        :param high: the row all high, [...]
        :param rows: [assignments, ...]; the first carries the bit ``first_bit``
        """
        # 1. An element is reached if all low and all high differ by more than rounding. Rounding differs between rows,
        #    because vectorised functions treat the last elements of a tensor differently.
        epsilon = max(1e-6, 2 * _epsilon(low))
        distance = (low - high).abs_()
        differs = distance != 0
        # Usually one bound for the whole tensor shows that no difference is so small.
        is_exact = not any_true(differs & (distance <= epsilon * _largest(low, high)))
        rounding: Tensor | None = None
        if not is_exact:
            rounding = torch.maximum(low.abs(), high.abs()).mul_(epsilon)
            differs = distance > rounding
        self.is_reached |= differs
        for bit, row in enumerate(rows, first_bit):
            # 2. Each element of an assignment's row is as high as all high, as low as all low, or neither.
            is_high, is_low = row == high, row == low
            if not is_exact or not all_true(is_high | is_low):
                if rounding is None:
                    rounding = torch.maximum(low.abs(), high.abs()).mul_(epsilon)
                is_high, is_low = (row - high).abs_() <= rounding, (row - low).abs_() <= rounding
            # 3. If it is neither or both, several neurons reach it.
            self.is_reached |= ~is_low
            self.is_mixed |= ~(is_high ^ is_low)
            self.bits.add_(is_high, alpha=1 << bit)

    def merge(self, other: "ReceivedCode") -> None:
        """Add the bits of another pass at the same place. Merging a code twice changes nothing."""
        # Not in place: torch forbids that for tensors made in inference mode.
        self.bits = self.bits | other.bits
        self.is_reached = self.is_reached | other.is_reached
        self.is_mixed = self.is_mixed | other.is_mixed


ReceivedCodes = dict[Place, ReceivedCode]


def number_bits(neurons: int) -> int:
    """Return the number of bits of the largest neuron number."""
    return max(1, (neurons - 1).bit_length())


class BinaryCodes:
    """Gives every neuron of a layer a unique binary code, see the worked example above.

    :param neurons: number of neurons of the layer
    :param seed: of the check bits. Differs for each level, since two neurons may have equal check bits at one level.
    """

    def __init__(self, neurons: int, seed: int = 0):
        self.neurons = neurons
        self.number_bits = number_bits(neurons)
        numbers = torch.arange(neurons)
        of_number = (numbers >> torch.arange(self.number_bits)[:, None]) % 2 == 1
        random = torch.rand(CHECK_BITS - 1, neurons, generator=torch.Generator().manual_seed(seed)) < 0.5
        # Row k drives bit k of every neuron's code, [code length, neurons].
        self.assignments = torch.cat([of_number, ~of_number, random, ~random[:1]])
        self.codes = (self.assignments << torch.arange(len(self.assignments))[:, None]).sum(0)  # long [neurons]

    def check_assignments(self, level: Level) -> Assignments:
        """Return the assignments that send the check bits."""
        return Assignments(level, self.assignments[2 * self.number_bits :], 2 * self.number_bits)

    def number_assignments(self, level: Level, start: int, count: int) -> Assignments:
        """Return ``count`` assignments that send number bits and inverted bits, from bit ``start`` on."""
        return Assignments(level, self.assignments[start : min(start + count, 2 * self.number_bits)], start)

    def check_bits_confirm(self, reading: Reading, received: ReceivedCodes) -> bool:
        """Return whether the check bits received at every reached element agree with an earlier reading."""
        check_codes = self.codes >> 2 * self.number_bits
        for place, code in received.items():
            # 1. The earlier reading must include every element that is reached now.
            neuron = reading.get(place)
            if neuron is None:
                return False
            neuron = neuron.to(code.bits.device)
            if any_true(code.is_reached & (neuron == NO_NEURON)):
                return False
            # 2. An element of one neuron must have received exactly that neuron's check bits.
            expected = check_codes.to(code.bits)[neuron.clamp(min=0)] << 2 * self.number_bits
            if any_true(code.is_reached & (neuron >= 0) & (code.is_mixed | (code.bits != expected))):
                return False
        return True

    def decode(self, received: ReceivedCode) -> Tensor:
        """Return the neuron at each element, NO_NEURON or SEVERAL_NEURONS, as int32 on the CPU."""
        # 1. The lowest bits are a neuron's number, if such a neuron exists.
        neuron = received.bits & ((1 << self.number_bits) - 1)
        is_known = neuron < self.neurons
        neuron = torch.where(is_known, neuron, 0)
        # 2. The element shows this neuron only if all other bits are also this neuron's.
        is_known &= ~received.is_mixed & (self.codes.to(received.bits)[neuron] == received.bits)
        neuron = torch.where(is_known, neuron, SEVERAL_NEURONS).to(torch.int32)
        # 3. Elements that never changed depend on no neuron.
        return neuron.masked_fill_(~received.is_reached, NO_NEURON).cpu()


def merge_reading(reading: Reading, new: Mapping[Place, Tensor]) -> None:
    """Add the reading of another level, in place. An element with two neurons becomes SEVERAL_NEURONS."""
    for place, neuron in new.items():
        neuron = merged(reading[place], neuron) if place in reading else neuron
        reading[place] = without_repeats(neuron).clone().expand(neuron.shape)


def merged(known: Tensor, new: Tensor) -> Tensor:
    """Return the neuron that either tensor has at each element, SEVERAL_NEURONS where they disagree."""
    is_new, agrees = known == NO_NEURON, (new == NO_NEURON) | (new == known)
    return torch.where(is_new, new, torch.where(agrees, known, SEVERAL_NEURONS))


def without_repeats(neurons: Tensor) -> Tensor:
    """Shrink every axis along which the values never change to size 1."""
    for axis in range(neurons.ndim):
        first = neurons.narrow(axis, 0, 1)
        if torch.equal(neurons, first.expand_as(neurons)):
            neurons = first
    return neurons


def _largest(*values: Tensor) -> float:
    """Return the largest absolute value, or 0 without values."""
    ends = [float(end) for value in values if value.numel() for end in value.aminmax()]
    return max(map(abs, ends), default=0.0)


def all_true(mask: Tensor) -> bool:
    """Return whether all of a mask is true. On a CPU it is 50 times as fast as ``Tensor.all``."""
    return mask.numel() == 0 or bool(mask.view(torch.uint8).amin())


def any_true(mask: Tensor) -> bool:
    """Return whether any of a mask is true, see :func:`all_true`."""
    return mask.numel() > 0 and bool(mask.view(torch.uint8).amax())


def _epsilon(tensor: Tensor) -> float:
    return float(torch.finfo(tensor.dtype).eps) if tensor.is_floating_point() else 0.0
