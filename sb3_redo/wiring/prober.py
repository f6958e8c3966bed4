"""Which neurons reach which elements of a network: probed layer by layer, with all other layers frozen."""

from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.wiring.frozen_network import Choice, FrozenNetwork
from sb3_redo.wiring.neuron_codes import Group, Place, Reading, Spelling, Word, Words, add_to, letters_of, somewhere

# Small positive values pass every common activation, negative ones open the other half of a CReLU, and the wide
# pair crosses the steps and dead zones of shrinking and thresholding functions. All are exact in half precision.
# The wide pair comes first: it opens most of what frozen outputs added to it would shut, and what it shows is foretold
# for the others.
_LEVELS = ((-3.0, 3.0), (0.25, 0.75), (-0.75, -0.25))
# For what opens late, such as relu(x - 5): a layer that seems to reach no other is looked at once more.
_WIDE_LEVELS = (-64.0, 64.0)

# So few neurons are spelt in full at all levels: their coins may fall alike at every one, and what mixes two neurons
# for some values only would pass for one of them.
_FEW = 16

PASS_ERRORS = (RuntimeError, ValueError, IndexError, AssertionError, TypeError)
"""What a network may raise that cannot take the input it was given."""


class _RowsMixedError(RuntimeError):
    """A place whose first axis is not that of the rows."""


class Prober(FrozenNetwork):
    """Says what each layer of a network reaches, from passes on a single observation.

    The assignments of values to a layer's neurons lie in the rows of its output. Frozen layers return one row, which
    broadcasts, so only what the layer reaches is computed for more than one. Where rows do not stay apart, each
    assignment gets a pass of its own instead.
    """

    def __init__(self, module: nn.Module, forward: Callable[[], Any]):
        super().__init__(module, forward)
        self.opposite = forward
        self.shapes: dict[Place, torch.Size] = {}
        """What is seen at each place for one observation."""
        self._one_by_one: set[str] = set()

    def prepare(self, forwards: Sequence[Callable[[], Any]]) -> None:
        """Probe with these passes from now on, the last of them for frozen outputs of the other sign.

        After a look at whether rows stay apart in the first.
        """
        self.forward, self.opposite = forwards[0], forwards[-1]
        self._pooled.clear()
        self.shapes = {}
        self.run(Choice(), lambda place, value: self.shapes.setdefault(place, value.shape))
        self._one_by_one = {
            name
            for name, calls in self.calls.items()
            if any(len(call.shape) < 2 or call.shape[0] != 1 for call in calls)
        }
        if self._one_by_one or not self._rows_stay_apart():
            self._one_by_one = set(self.layers)

    def _rows_stay_apart(self) -> bool:
        """Whether a row comes out of a batch of two as it comes out alone, be it the first or the last.

        Only nearly, since arithmetic may depend on the size of a batch; another row's influence is not that small.
        """
        alone: dict[Place, Tensor] = {}
        self.run(Choice(), lambda place, value: alone.setdefault(place, value.detach().clone()))

        def compare(row: int, place: Place, value: Tensor) -> None:
            expected = alone[place]
            in_rows = len(value) == 2 * len(expected) if expected.ndim else False
            if place.kind == "output" and in_rows:
                return  # may hold sampled actions, which differ from row to row
            seen = value[row : row + 1] if in_rows else value
            if seen.shape != expected.shape or not _nearly_equal(seen, expected):
                raise _RowsMixedError(f"{place} depends on other rows")

        try:
            self.run(Choice(factors=(1.0, -2.0)), partial(compare, 0))
            self.run(Choice(factors=(-2.0, 1.0)), partial(compare, 1))
        except PASS_ERRORS:
            return False
        return True

    def look(
        self, name: str, groups: Sequence[Group], factor: float = 1.0, kept: Set[int] = frozenset()
    ) -> list[Words]:
        """What is spelt by each group of assignments at the places that layer ``name`` reaches.

        :param factor: of the frozen layers' outputs
        :param kept: activation calls that are held constant
        """
        letters = letters_of(self.neurons(name))
        if name not in self._one_by_one:
            rows = _Rows(self.shapes, groups, letters)
            values = torch.cat([group.values() for group in groups])
            try:
                self.run(Choice(name, values, (factor,), kept), rows.record, self._pass(factor))
                return rows.seen
            except PASS_ERRORS:
                self._one_by_one.add(name)
        return [self._look_one_by_one(name, group, factor, kept, letters) for group in groups]

    def _look_one_by_one(self, name: str, group: Group, factor: float, kept: Set[int], letters: int) -> Words:
        ends: dict[Place, list[Tensor]] = {}
        words: Words = {}
        for number, values in enumerate(torch.split(group.values(), 1), -2):

            def record(place: Place, value: Tensor, number: int = number) -> None:
                value = finite(value)
                if number == -2:
                    ends[place] = [value.clone()]
                    return
                low = ends[place][0]
                if number == -1:
                    ends[place].append(low if torch.equal(low, value) else value.clone())
                high = ends[place][1]
                if place in words or high is not low or not torch.equal(low, value):
                    rows = value[None] if number >= 0 else value[None][:0]
                    words.setdefault(place, Word(low, letters)).add(low, high, rows, group.first + max(number, 0))

            self.run(Choice(name, values, (factor,), kept), record, self._pass(factor))
        return {place: word for place, word in words.items() if somewhere(word.moved)}

    def read(self, name: str) -> Reading:
        """What layer ``name`` reaches directly, through parameter-free operations only."""
        reading: Reading = {}
        together = max(1, self.size // (6 * self._elements(name)))
        for factor in (1.0, -1.0):
            for start in range(0, len(_LEVELS), together):
                self._read_levels(name, _LEVELS[start : start + together], factor, reading)
        if not any(place.kind == "input" for place in reading):
            self._read_levels(name, [_WIDE_LEVELS], 1.0, reading)
        return reading

    def _pass(self, factor: float) -> Callable[[], Any]:
        return self.forward if factor > 0 else self.opposite

    def _elements(self, name: str) -> int:
        return sum(call.shape.numel() for call in self.calls[name])

    def _read_levels(self, name: str, levels: Sequence[tuple[float, float]], factor: float, reading: Reading) -> None:
        spellings = [Spelling(self.neurons(name), round(4 * factor * low)) for low, _ in levels]
        groups = [spelling.tosses(*pair) for spelling, pair in zip(spellings, levels, strict=True)]
        for spelling, (low, high), words in zip(spellings, levels, self.look(name, groups, factor), strict=True):
            if spelling.neurons > _FEW and spelling.foretells(reading, words):
                continue
            widest = max((word.moved.numel() for word in words.values()), default=0)
            # No fewer than were tossed, which had room.
            number = max(
                len(spelling.tosses(low, high).chosen), 4 * self.size // (5 * max(widest, self._elements(name))) - 2
            )
            for start in range(0, 2 * spelling.bits, number):
                (more,) = self.look(name, [spelling.digits(low, high, start, number)], factor)
                for place, word in more.items():
                    words.setdefault(place, word).join(word)
            add_to(reading, {place: spelling.read(word) for place, word in words.items()})

    def reaches(self, name: str, kept: Set[int]) -> dict[Place, Tensor]:
        """The elements of each place that layer ``name`` still reaches while some activation calls are held constant.

        Bool tensors of the shape that the value has for one observation.
        """
        nothing = torch.zeros(0, self.neurons(name), dtype=torch.bool)
        together = max(1, self.size // (2 * self._elements(name)))
        groups = [Group(low, high, nothing) for low, high in _LEVELS]
        reached: dict[Place, Tensor] = {}
        for start in range(0, len(groups), together):
            for words in self.look(name, groups[start : start + together], 1.0, kept):
                for place, word in words.items():
                    reached[place] = reached[place] | word.moved if place in reached else word.moved
        return {place: mask.cpu() for place, mask in reached.items()}


class _Rows:
    """Reads groups of assignments that lie in the rows of one pass."""

    def __init__(self, shapes: dict[Place, torch.Size], groups: Sequence[Group], letters: int):
        self.shapes = shapes
        self.groups = groups
        self.letters = letters
        self.sizes = [len(group.chosen) + 2 for group in groups]
        self.seen: list[Words] = [{} for _ in groups]
        self.last: tuple[Place, Tensor, int] | None = None

    def record(self, place: Place, value: Tensor) -> None:
        shape = self.shapes[place]
        if value.shape == shape:
            return  # not reached
        if len(shape) == 0 or shape[0] != 1 or value.shape != (sum(self.sizes), *shape[1:]):
            raise _RowsMixedError(f"{place} is {tuple(value.shape)} where it is {tuple(shape)} for one row")
        # The output of an activation and the input of the next layer are often one tensor, which is read once.
        if self.last is not None and self.last[1] is value and self.last[2] == value._version:
            for words in self.seen:
                if self.last[0] in words:
                    words[place] = words[self.last[0]]
        else:
            parts = torch.split(finite(value), self.sizes)
            for group, part, words in zip(self.groups, parts, self.seen, strict=True):
                word = Word(part[:1], self.letters)
                word.add(part[:1], part[1:2], part[2:, None], group.first)
                if somewhere(word.moved):
                    words[place] = word
        self.last = place, value, value._version


def finite(value: Tensor) -> Tensor:
    """Real numbers without NaN, which is unequal to itself."""
    value = value.detach()
    if not value.is_floating_point():
        return value.float()
    return value if torch.isfinite(value.sum()) else torch.nan_to_num(value)


def _nearly_equal(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.detach().float(), other.float(), rtol=1e-2, atol=1e-2, equal_nan=True)
