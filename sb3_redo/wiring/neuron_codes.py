"""Which neuron an element shows: each neuron spells a word of its own in low and high outputs, one per assignment."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

NOBODY = -1
"""An element that the probed layer does not reach."""
MIXED = -2
"""An element that the probed layer reaches, but not from one neuron alone."""


class Place(NamedTuple):
    """Where a value can be seen during a pass: an ``input`` of a layer, an ``activation``'s output, a
    ``normalisation``'s input, the input of another ``module`` with parameters, or an ``output`` of the whole call.
    ``call`` counts the calls of that name."""

    kind: str
    name: str
    call: int


Record = Callable[[Place, Tensor], Any]
"""Told what is seen at each place of a pass, before anything can overwrite it."""

Reading = dict[Place, Tensor]
"""For each place a tensor of the shape that the value has for one observation: the neuron seen at each element,
NOBODY or MIXED. Axes along which it never changes take no memory."""


@dataclass(frozen=True)
class Group:
    """Rows of a batch that are compared: all neurons low, all high, and then each assignment.

    :param chosen: bool [assignments, neurons], the neurons that are high
    :param first: number of the first assignment, which is its bit in a word
    """

    low: float
    high: float
    chosen: Tensor
    first: int = 0

    def values(self) -> Tensor:
        """The layer's outputs, [2 + assignments, neurons]."""
        ends = torch.tensor([[False], [True]]).expand(2, self.chosen.shape[1])
        return torch.where(torch.cat([ends, self.chosen]), self.high, self.low)


class Word:
    """What the elements of one place have spelt so far; all tensors of the shape of one row.

    :param letters: bit k is whether the element was as high in assignment k as when all neurons are
    :param moved: whether it ever changed
    :param mixed: whether it was ever neither low nor high
    """

    def __init__(self, like: Tensor, letters: int):
        self.letters = torch.zeros(like.shape, dtype=torch.int32 if letters < 31 else torch.int64, device=like.device)
        self.moved = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
        self.mixed = torch.zeros_like(self.moved)

    def add(self, low: Tensor, high: Tensor, rows: Tensor, first: int) -> None:
        """Read further assignments, [assignments, ...], against the rows all low and all high."""
        # Some functions round the last elements of a tensor otherwise than the rest, and so one row than another.
        epsilon = max(1e-6, 2 * _epsilon(low))
        distance = (low - high).abs_()
        differs = distance != 0
        # Most often nothing differs by so little, which shows without a bound for every element.
        is_exact = not somewhere(differs & (distance <= epsilon * _largest(low, high)))
        rounding: Tensor | None = None
        if not is_exact:
            rounding = torch.maximum(low.abs(), high.abs()).mul_(epsilon)
            differs = distance > rounding
        self.moved |= differs
        for bit, row in enumerate(rows, first):
            is_high, is_low = row == high, row == low
            if not is_exact or not everywhere(is_high | is_low):
                if rounding is None:
                    rounding = torch.maximum(low.abs(), high.abs()).mul_(epsilon)
                is_high, is_low = (row - high).abs_() <= rounding, (row - low).abs_() <= rounding
            self.moved |= ~is_low
            self.mixed |= ~(is_high ^ is_low)
            self.letters.add_(is_high, alpha=1 << bit)

    def join(self, other: "Word") -> None:
        """Take in letters that the same place has spelt in another pass; no harm where two places share a word."""
        self.letters |= other.letters
        self.moved |= other.moved
        self.mixed |= other.mixed


Words = dict[Place, Word]


def letters_of(neurons: int) -> int:
    """How many letters the words of that many neurons have: two for each bit of a number, and three tosses."""
    return 2 * max(1, (neurons - 1).bit_length()) + 3


class Spelling:
    """The words of a layer's neurons.

    Neuron i spells its number in binary and then the number with all bits flipped, so that the larger of two
    neurons, as a maxout gives it, spells i|j the first time and i&j the second and does not pass for a third one.
    Last come tosses of a coin for each neuron: these alone tell whether what is known about an element is still true.
    Other coins at other levels, since two neurons whose coins fall alike pass for each other.
    """

    def __init__(self, neurons: int, seed: int = 0):
        self.neurons = neurons
        self.bits = max(1, (neurons - 1).bit_length())
        numbers = torch.arange(neurons)
        digits = (numbers >> torch.arange(self.bits)[:, None]) % 2 == 1
        coins = torch.rand(2, neurons, generator=torch.Generator().manual_seed(seed)) < 0.5
        self.assignments = torch.cat([digits, ~digits, coins, ~coins[:1]])
        self.words = (self.assignments << torch.arange(len(self.assignments))[:, None]).sum(0)

    def tosses(self, low: float, high: float) -> Group:
        return Group(low, high, self.assignments[2 * self.bits :], 2 * self.bits)

    def digits(self, low: float, high: float, start: int, number: int) -> Group:
        """Some of the assignments that spell numbers."""
        return Group(low, high, self.assignments[start : min(start + number, 2 * self.bits)], start)

    def foretells(self, reading: Reading, words: Words) -> bool:
        """Whether what was read before foretells every element that moved when the coins were tossed."""
        tosses = self.words >> 2 * self.bits
        for place, word in words.items():
            moved, code = word.moved, reading.get(place)
            if code is None or somewhere(moved & ((code := code.to(moved.device)) == NOBODY)):
                return False
            expected = tosses.to(word.letters)[code.clamp(min=0)] << 2 * self.bits
            if somewhere(moved & (code >= 0) & (word.mixed | (word.letters != expected))):
                return False
        return True

    def read(self, word: Word) -> Tensor:
        """The neuron at each element, NOBODY or MIXED."""
        code = word.letters & ((1 << self.bits) - 1)
        known = code < self.neurons
        code = torch.where(known, code, 0)
        known &= ~word.mixed & (self.words.to(word.letters)[code] == word.letters)
        code = torch.where(known, code, MIXED).to(torch.int32)
        return code.masked_fill_(~word.moved, NOBODY).cpu()


def add_to(reading: Reading, codes: Mapping[Place, Tensor]) -> None:
    """Note what was read at other levels: two neurons at one element make it MIXED."""
    for place, code in codes.items():
        known = reading.get(place)
        if known is not None:
            code = torch.where(known == NOBODY, code, torch.where((code == NOBODY) | (code == known), known, MIXED))
        reading[place] = shrunk(code).clone().expand(code.shape)


def shrunk(codes: Tensor) -> Tensor:
    """The same codes, with every axis along which they never change shrunk to size 1."""
    for axis in range(codes.ndim):
        first = codes.narrow(axis, 0, 1)
        if torch.equal(codes, first.expand_as(codes)):
            codes = first
    return codes


def _largest(*values: Tensor) -> float:
    """The largest absolute value; 0 if there is none."""
    ends = [float(end) for value in values if value.numel() for end in value.aminmax()]
    return max(map(abs, ends), default=0.0)


def everywhere(mask: Tensor) -> bool:
    """Whether all of a mask is true. Torch's own ``all`` takes fifty times as long on a CPU."""
    return mask.numel() == 0 or bool(mask.view(torch.uint8).amin())


def somewhere(mask: Tensor) -> bool:
    """Whether any of a mask is true; see :func:`everywhere`."""
    return mask.numel() > 0 and bool(mask.view(torch.uint8).amax())


def _epsilon(tensor: Tensor) -> float:
    return float(torch.finfo(tensor.dtype).eps) if tensor.is_floating_point() else 0.0
