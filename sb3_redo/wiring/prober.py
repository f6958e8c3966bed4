"""Finds which neurons reach which elements of a network: drives one layer at a time, with all others frozen."""

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sb3_redo.forward.calls import ChangedCallsError
from sb3_redo.wiring.frozen_network import ALONE, FrozenNetwork, PassSettings
from sb3_redo.wiring.neuron_codes import (
    CHECK_BITS,
    REFERENCE_ROWS,
    Assignments,
    BinaryCodes,
    Level,
    Place,
    Reading,
    ReceivedCode,
    ReceivedCodes,
    any_true,
    merge_reading,
)

# Positive values pass every common activation. Negative values open the other half of a CReLU. The wide level crosses
# the steps and dead zones of shrinking and thresholding functions. All are exact in half precision.
# The wide level comes first: it opens most gates, and then check bits suffice at the other levels.
_LEVELS: tuple[Level, ...] = ((-3.0, 3.0), (0.25, 0.75), (-0.75, -0.25))
# Exceeds thresholds as in relu(x - 1000). Low and high differ in size, so that even abs separates them.
_WIDE = 8192.0
_WIDE_LEVEL: Level = (-_WIDE, 0.75 * _WIDE)
# The same, for products of two such values to stay finite.
_WIDE_IN_HALF_PRECISION = 128.0

# Up to this number of neurons, all bits are sent at every level. Two of so few neurons may have equal check bits at
# every level by chance. An element that mixes them only at some values would then seem to show one of them.
_FEW_NEURONS = 16

_SEEDS = range(1, 8)
"""What a network draws is drawn anew with each of them."""


class Condition(NamedTuple):
    """The common settings of passes in which a driven layer sends its codes.

    :param factor: multiplies the outputs of frozen layers. Its sign also selects the input.
    :param variation: number of the variation of parameters and buffers outside layers
    """

    factor: float = 1.0
    variation: int = 0


_USUAL = Condition()


class Prober(FrozenNetwork):
    """Finds what each layer of a network reaches, from passes on a single observation.

    The rows of a driven layer's output carry the assignments. Frozen layers return one row, which broadcasts, so that
    only what the layer reaches is computed for all rows. If rows influence each other, every assignment gets
    its own pass.

    :param module: the network
    :param forward: called without arguments, runs the whole network in one pass
    :param put_back: called after every pass, restores its changes
    """

    def __init__(self, module: nn.Module, forward: Callable[[], Any], put_back: Callable[[], None] = lambda: None):
        super().__init__(module, forward, put_back)
        self.forwards = {1.0: forward}  # factor of frozen outputs to its pass
        self.inner_variations: tuple[int, ...] = (0,)  # variations that change more than the network's outputs
        self.not_alone: set[str] = set()  # layers whose values a function combines with another tensor
        self.all_varied = True  # whether all relevant tensors outside layers vary
        self.other_way: str | None = None  # a tensor outside layers whose values decide which calls run
        self.not_varied: set[str] = set()  # layers that could not be read in the variations
        self._one_by_one: set[str] = set()  # layers with one pass per assignment
        self._checked: set[tuple[str, Condition, bool]] = set()  # layer, condition and wideness of compared rows

    def prepare(self, forwards: Sequence[Callable[[], Any]]) -> None:
        """Set the passes to probe with, and record the shape of every value.

        :param forwards: like the constructor's ``forward``. The last one is used for frozen outputs of opposite sign.
        """
        # 1. From here on, the network runs on these inputs. Cached poolings of earlier inputs are dropped.
        self.forward = forwards[0]
        self.forwards = {1.0: forwards[0], -1.0: forwards[-1]}
        self._pool_cache.clear()
        self._checked.clear()
        # 2. One pass gives the shape of every value for one observation.
        shapes: dict[Place, torch.Size] = {}
        self.shapes = {}
        self.run(PassSettings(), lambda place, value: shapes.setdefault(place, value.shape))
        self.shapes = shapes

    def widen(self, forwards: Sequence[Callable[[], Any]]) -> None:
        """Set the passes for large frozen outputs, which exceed thresholds, see :meth:`prepare`."""
        self.forwards |= {self.wide: forwards[0], -self.wide: forwards[-1]}

    @contextmanager
    def drawing(self, seed: int) -> Iterator[None]:
        """Let the network draw other random numbers."""
        try:
            self.seed = seed
            yield
        finally:
            self.seed = 0

    def add_draws(self, readings: dict[str, Reading]) -> list[str]:
        """Add to readings what the layers reach if the network draws other random numbers, such as those of a dropout.

        :return: names of the layers that reach something else then
        """
        drawn = {place for variation in self.inner_variations for place in self._drawn_places(variation)}
        changed = []
        for name, reading in readings.items():
            # 1. Only layers that reach a place whose value depends on the draws are read again.
            more, differs = dict(reading), False
            for seed in _SEEDS if drawn & reading.keys() else ():
                with self.drawing(seed):
                    other = self.read(name)
                merge_reading(more, other)
                differs |= not _are_equal(other, reading)
                # 2. Draws that shut single connections differ between three seeds already.
                if seed == 2 and not differs:
                    break
            # 3. A reading is in the order of the pass.
            if differs:
                changed.append(name)
                readings[name] = {place: more[place] for place in self.shapes if place in more}
        return changed

    def _drawn_places(self, variation: int) -> set[Place]:
        settings, drawn = PassSettings(variation=variation), set()
        usual = self.values_of(settings)
        for seed in _SEEDS:
            with self.drawing(seed):
                values = self.values_of(settings)
            drawn |= {place for place, value in values.items() if not torch.equal(value, usual[place])}
        return {place for place in drawn if place.kind != "output"}  # sampled actions

    def find_rows(self) -> None:
        """Find whether the rows of a batch can carry assignments, in all variations."""
        # They can if every layer's output is [1, ...] for one observation, and no row of a batch influences another.
        calls = [call for calls in self.calls.values() for call in calls]
        has_rows = all(len(call.shape) >= 2 and call.shape[0] == 1 for call in calls)
        self._one_by_one = set() if has_rows and self._rows_are_independent() else set(self.layers)

    def _rows_are_independent(self) -> bool:
        return all(self._rows_are_independent_in(variation) for variation in self.inner_variations)

    def _rows_are_independent_in(self, variation: int) -> bool:
        """Return whether a row has the same values alone and as first or last row of two.

        Small deviations are accepted: arithmetic may depend on the batch size. The influence of another row is larger.
        """
        # 1. The values of the row alone.
        sign = -1.0 if variation < 0 else 1.0
        settings = PassSettings(frozen_factors=(sign,), variation=variation)
        alone = self.values_of(settings)

        def compare(row: int, place: Place, value: Tensor) -> None:
            expected = alone[place]
            is_batch = len(value) == 2 * len(expected) if expected.ndim else False
            if place.kind == "output" and is_batch:
                return  # may be sampled actions, which differ between rows
            seen = value[row : row + 1] if is_batch else value
            if seen.shape != expected.shape or not _nearly_equal(seen, expected):
                raise RuntimeError(f"{place} depends on other rows")

        # 2. The same row as the first of two, then as the last; the other row's frozen outputs are -2 times as large.
        try:
            for row, factors in enumerate(((sign, -2 * sign), (-2 * sign, sign))):
                self.run(replace(settings, frozen_factors=factors), partial(compare, row), self.forwards[sign])
        except Exception:
            return False
        return True

    def drive(
        self,
        name: str,
        batches: Sequence[Assignments],
        condition: Condition,
        constant_activations: Set[int] = frozenset(),
    ) -> list[ReceivedCodes]:
        """Drive a layer. Returns the codes received at the places it reaches, for each batch of assignments.

        :param condition: of the passes
        :param constant_activations: numbers of activation calls that return a constant
        """
        factor, variation = condition
        settings = PassSettings(name, None, (factor,), constant_activations, variation=variation)
        # 1. If rows are independent, one pass carries all assignments of all batches in its rows.
        if name not in self._one_by_one:
            # 2. The widest level comes first: one of its two rows exceeds most thresholds, the other does not.
            order = sorted(range(len(batches)), key=lambda number: -batches[number].level[1])
            widest = [batches[number] for number in order]
            values = torch.cat([batch.values() for batch in widest])
            check = name, condition, widest[0].level[1] > 3
            is_checked = check in self._checked or bool(constant_activations)
            try:
                alone = {} if is_checked else self.values_of(replace(settings, values=values[1:2]))
                reader = _RowReader(self.shapes, widest, alone)
                meets_others = self.run(replace(settings, values=values), reader.record, self.forwards[factor])
                self._checked |= {check, (name, condition, False)}
                if meets_others or not reader.is_alone:
                    self.not_alone.add(name)
                return [reader.received[order.index(number)] for number in range(len(batches))]
            except Exception:
                self._one_by_one.add(name)
        # 3. Otherwise, or if the network refuses so many rows, every assignment gets its own pass.
        self.not_alone.add(name)
        return [self._drive_one_by_one(settings, batch) for batch in batches]

    def _drive_one_by_one(self, settings: PassSettings, batch: Assignments) -> ReceivedCodes:
        references: dict[Place, list[Tensor]] = {}
        received: ReceivedCodes = {}
        for number, values in enumerate(torch.split(batch.values(), 1), -REFERENCE_ROWS):

            def record(place: Place, value: Tensor, number: int = number) -> None:
                value = finite(value)
                # 1. Passes -2 and -1 are the references, all low and all high. Equal values share memory.
                if number == -2:
                    references[place] = [value.clone()]
                    return
                low = references[place][0]
                if number == -1:
                    references[place].append(low if torch.equal(low, value) else value.clone())
                high = references[place][1]
                # 2. Each pass from 0 on carries one bit. A place that never changes gets no code.
                if place in received or high is not low or not torch.equal(low, value):
                    rows = value[None] if number >= 0 else value[None][:0]
                    code = received.setdefault(place, ReceivedCode(low, batch.is_high.shape[1]))
                    code.receive(low, high, rows, batch.first_bit + max(number, 0))

            self.run(replace(settings, values=values), record, self.forwards[settings.frozen_factors[0]])
        return {place: code for place, code in received.items() if any_true(code.is_reached)}

    def read(self, name: str) -> Reading:
        """Return the neuron of a layer behind every element that it reaches through parameter-free operations."""
        reading: Reading = {}
        read = partial(self._read_under, name, reading)
        # 1. Frozen outputs of either sign: a gate such as relu(-x) on a frozen output opens for only one of them. The
        #    wide level exceeds thresholds, unless the network refuses such large values.
        if not self.accepts(partial(read, _USUAL, (*_LEVELS, _WIDE_LEVEL))):
            read(_USUAL, _LEVELS)
        read(Condition(-1.0), _LEVELS)
        # 2. If no function combines the layer's values with another tensor, nothing else can block them.
        if name in self.not_alone:
            # 3. Parameters and buffers outside layers take other values of either sign.
            for condition in self.conditions()[2:]:
                levels = _LEVELS if condition.factor == condition.variation else _LEVELS[:1]
                if not self.accepts(partial(read, condition, levels), condition):
                    self.not_varied.add(name)
            # 4. Frozen outputs and inputs are large.
            for condition in self.wide_conditions():
                self.accepts(partial(read, condition, [(-self.wide, 0.75 * self.wide)]), condition)
        # 5. Sorted by the order of the pass, which does not depend on the gates that opened first.
        return {place: reading[place] for place in self.shapes if place in reading}

    def accepts(self, read: Callable[[], Any], condition: Condition = _USUAL) -> bool:
        """Run passes. Returns whether the network accepts their values, instead of raising an error."""
        one_by_one = set(self._one_by_one)
        try:
            read()
        except Exception as error:
            self._one_by_one = one_by_one
            # It may run other layers on large values. With other values outside layers, training may lead there.
            if isinstance(error, ChangedCallsError) and condition.variation and abs(condition.factor) == 1:
                self.other_way = self.other_way or "parameters or buffers outside layers"
            return False
        return True

    def _read_under(self, name: str, reading: Reading, condition: Condition, levels: Sequence[Level]) -> None:
        """Read a layer at some levels, several per pass if memory allows, and add the result to ``reading``."""
        # A level needs the reference rows and the check bits, and one more row of memory for intermediate values.
        together = self._levels_per_pass(name, REFERENCE_ROWS + CHECK_BITS + 1)
        for start in range(0, len(levels), together):
            self._read_levels(name, levels[start : start + together], condition, reading)

    def _read_levels(self, name: str, levels: Sequence[Level], condition: Condition, reading: Reading) -> None:
        """Read a layer at some levels in one pass. Further passes follow if this one shows anything new."""
        # 1. Every level and sign has its own check bits. The seeds differ, since lows are multiples of 1/4.
        factor, variation = condition
        codes = [BinaryCodes(self.neurons(name), seed=round(4 * factor * low) + 7 * variation) for low, _ in levels]
        # 2. The check bits of all levels are sent in one pass.
        checks = [code.check_assignments(level) for code, level in zip(codes, levels, strict=True)]
        for code, level, check, received in zip(
            codes, levels, checks, self.drive(name, checks, condition), strict=True
        ):
            # 3. If they confirm the earlier reading, this level shows nothing new.
            if code.neurons > _FEW_NEURONS and code.check_bits_confirm(reading, received):
                continue
            # 4. Otherwise number bits and inverted bits follow, as many per pass as memory allows. At least the number
            #    of check bits fits, because those just did.
            count = max(len(check.is_high), self._rows_per_pass(name, received) - REFERENCE_ROWS)
            for start in range(0, 2 * code.number_bits, count):
                (more,) = self.drive(name, [code.number_assignments(level, start, count)], condition)
                for place, part in more.items():
                    received.setdefault(place, part).merge(part)
            # 5. Every place that this level reaches has received all bits.
            merge_reading(reading, {place: code.decode(bits) for place, bits in received.items()})

    def reaches(self, name: str, constant_activations: Set[int]) -> dict[Place, Tensor]:
        """Return the elements that a layer still reaches while some activation calls return a constant.

        :return: place to bool tensor, in the shape of its value for one observation
        """
        # Reference rows are enough: they show whether an element is reached, not by which neuron.
        no_rows = torch.zeros(0, self.neurons(name), dtype=torch.bool)
        together = self._levels_per_pass(name, REFERENCE_ROWS)
        reached: dict[Place, Tensor] = {}

        def add(levels: Sequence[Level], variation: int) -> None:
            for start in range(0, len(levels), together):
                batches = [Assignments(level, no_rows) for level in levels[start : start + together]]
                driven = self.drive(name, batches, Condition(1.0, variation), constant_activations)
                # Sums that nearly cancel are rounded differently in each row, but not in passes of one row.
                if any(driven) and name not in self._one_by_one:
                    settings = PassSettings(name, None, (1.0,), constant_activations, variation=variation)
                    driven = [self._drive_one_by_one(settings, batch) for batch in batches]
                for received in driven:
                    for place, code in received.items():
                        reached[place] = reached[place] | code.is_reached if place in reached else code.is_reached

        for variation in self.variations_of(name):
            if not self.accepts(partial(add, (*_LEVELS, _WIDE_LEVEL), variation)):
                add(_LEVELS, variation)
        return {place: mask.cpu() for place, mask in reached.items()}

    def values_of(self, settings: PassSettings) -> dict[Place, Tensor]:
        """Return the values at all places of a pass."""
        values: dict[Place, Tensor] = {}
        kept = torch.empty(0)

        def keep(place: Place, value: Tensor) -> None:
            nonlocal kept
            # An activation's output is often the next layer's input: both share one copy.
            is_alike = value.dtype == kept.dtype and value.device == kept.device
            if not is_alike or not torch.equal(value, kept):
                kept = value.detach().clone()
            values.setdefault(place, kept)

        self.run(settings, keep, self.forwards[settings.frozen_factors[0]])
        return values

    @property
    def wide(self) -> float:
        """Return the factor of large frozen outputs, which exceed thresholds."""
        is_half = any(call.dtype == torch.float16 for calls in self.calls.values() for call in calls)
        return _WIDE_IN_HALF_PRECISION if is_half else _WIDE

    def conditions(self) -> list[Condition]:
        """Return the usual conditions of passes, those with unchanged parameters first."""
        return [Condition(sign, variation) for variation in self.variations for sign in (1.0, -1.0)]

    def wide_conditions(self) -> list[Condition]:
        """Return the conditions with large frozen outputs and inputs, which exceed thresholds."""
        return [Condition(sign * self.wide, sign if sign in self.variations else 0) for sign in (1, -1)]

    def variations_of(self, name: str) -> tuple[int, ...]:
        """Return the numbers of the variations that may change a layer's connections."""
        return (0,) if name in self.not_varied else self.inner_variations

    def values_per_row(self, name: str) -> int:
        """Return a layer's number of output values for one row, over all its calls."""
        return sum(call.shape.numel() for call in self.calls[name])

    def _levels_per_pass(self, name: str, rows_per_level: int) -> int:
        """Return how many levels fit into a pass whose driven outputs hold at most ``self.size`` values."""
        return max(1, self.size // (rows_per_level * self.values_per_row(name)))

    def _rows_per_pass(self, name: str, received: ReceivedCodes) -> int:
        """Return the number of rows per pass. A pass's largest tensor may have four fifths of ``self.size`` values.

        Then a trace never keeps more than two copies of the activations of two observations. A test checks this.
        """
        widest_reached = max((code.bits.numel() for code in received.values()), default=0)
        return 4 * self.size // 5 // max(widest_reached, self.values_per_row(name))


class _RowReader:
    """Reads the codes from one pass whose rows hold batches of assignments.

    :param shapes: of the value at each place for one observation
    :param batches: the assignments
    :param alone: the second row's value alone at each place, to compare. Empty to compare nothing.
    """

    def __init__(self, shapes: dict[Place, torch.Size], batches: Sequence[Assignments], alone: dict[Place, Tensor]):
        self.shapes = shapes
        self.batches = batches
        self.alone = alone
        self.rows = [batch.rows for batch in batches]
        self.received: list[ReceivedCodes] = [{} for _ in batches]
        self.is_alone = True  # whether only the driven layer's outputs determine all values with these rows
        self.last: tuple[Place, Tensor, int] | None = None  # place, value, and the value's version

    def record(self, place: Place, value: Tensor) -> None:
        shape = self.shapes[place]
        # 1. A network may index rows by another tensor's length: ``h[torch.arange(len(x))]`` is only the first row,
        #    which then broadcasts. So the second row must have the same values as alone. Rows of outputs may
        #    differ if they are sampled actions.
        expected, is_single = self.alone.pop(place, None), value.shape == shape  # free its memory
        if expected is not None and (is_single or place.kind != "output"):
            seen = value if is_single else value[1:2]
            if not torch.equal(seen, expected) and not _nearly_equal(seen, expected):
                raise RuntimeError(f"{place} depends on other rows")
        # 2. A value of one row does not depend on the driven layer. Every other value has one row per assignment
        #    instead of one row per observation.
        if is_single:
            return
        if len(shape) == 0 or shape[0] != 1 or value.shape != (sum(self.rows), *shape[1:]):
            raise RuntimeError(f"{place} is {tuple(value.shape)} where it is {tuple(shape)} for one row")
        self.is_alone &= hasattr(value, ALONE) or place.kind == "activation"  # recorded before it can be marked
        # 3. An activation's output is often the next layer's input. An unchanged tensor is read once.
        if self.last is not None and self.last[1] is value and self.last[2] == value._version:
            for received in self.received:
                if self.last[0] in received:
                    received[place] = received[self.last[0]]
        else:
            # 4. The rows of each batch are its reference rows, then its assignments.
            parts = torch.split(finite(value), self.rows)
            for batch, part, received in zip(self.batches, parts, self.received, strict=True):
                code = ReceivedCode(part[:1], batch.is_high.shape[1])
                code.receive(part[:1], part[1:2], part[2:, None], batch.first_bit)
                if any_true(code.is_reached):
                    received[place] = code
        self.last = place, value, value._version


def finite(value: Tensor) -> Tensor:
    """Return real numbers without NaN, because NaN differs from itself."""
    value = value.detach()
    if not value.is_floating_point():
        return value.float()
    return value if torch.isfinite(value.sum()) else torch.nan_to_num(value)


def _are_equal(one: Reading, other: Reading) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[place], other[place]) for place in one)


def _nearly_equal(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.detach().float(), other.float(), rtol=1e-2, atol=1e-2, equal_nan=True)
