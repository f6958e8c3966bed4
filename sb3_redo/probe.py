"""Reading neuron numbers off a network: run it with one layer's outputs chosen and all others frozen."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sb3_redo.forward_pass import replaced_forward, seeded, tensors_in
from sb3_redo.functions import FunctionWatcher

LAYER_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

NOBODY = -1
"""A place that the probed layer does not reach."""
MIXED = -2
"""A place that the probed layer reaches, but not from one neuron alone."""

# Small positive values pass every common activation, negative ones open the other half of a CReLU, and the wide
# pair crosses the steps and dead zones of shrinking and thresholding functions. All are exact in half precision.
_LEVELS = ((0.25, 0.75), (-0.75, -0.25), (-3.0, 3.0))
# For what opens late, such as relu(x - 5): a layer that seems to reach no other is looked at once more.
_WIDE_LEVELS = (-64.0, 64.0)


class Place(NamedTuple):
    """Where a value can be seen during a pass: an ``input`` of a layer, an ``activation``'s output, a
    ``normalisation``'s input, or an ``output`` of the whole call. ``call`` counts the calls of that name."""

    kind: str
    name: str
    call: int


Reading = dict[Place, Tensor]
"""For each place a long tensor of the value's shape: the neuron seen at each element, NOBODY or MIXED."""


def neuron_axis(layer: nn.Module, value: Tensor) -> int:
    """The axis of a layer's input or output on which its positions or neurons lie, counted from the end."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return -1 - (weight.ndim - 2)


@dataclass
class Choice:
    """What one pass differs in.

    :param layer: the layer whose outputs are chosen; every other layer is frozen
    :param values: one output value per neuron of that layer, [neurons]
    :param sign: of the frozen layers' outputs; a gate such as ``relu(-x)`` opens for one sign only
    :param kept: activation calls that return a constant, as if they were frozen layers
    :param silent: activation call to the neurons seen there; those elements return 0 and normalisations act
    """

    layer: str | None = None
    values: Tensor | None = None
    sign: int = 1
    kept: frozenset[int] = frozenset()
    silent: Mapping[int, Tensor] | None = None


class _Recorder(FunctionWatcher):
    """Copies what passes the places of a network."""

    def __init__(self, choice: Choice):
        super().__init__()
        self.choice = choice
        self.seen: dict[Place, Tensor] = {}

    def record(self, kind: str, name: str, call: int, value: Tensor) -> None:
        # A copy, because in-place activations overwrite; NaN compares unequal to itself, so it must go.
        exact = value.detach() if value.is_floating_point() else value.detach().float()
        self.seen[Place(kind, name, call)] = torch.nan_to_num(exact.clone())

    def on_activation(self, call: int, func: Any, output: Tensor) -> Tensor:
        if call in self.choice.kept:
            return torch.full_like(output, 0.5)
        if self.choice.silent is not None and call in self.choice.silent:
            output = output.masked_fill((self.choice.silent[call] >= 0).to(output.device), 0.0)
        self.record("activation", str(call), call, output)
        return output

    def on_normalisation(self, call: int, func: Any, args: Any, kwargs: Any) -> Any:
        value = args[0] if args else kwargs["input"]
        self.record("normalisation", str(call), call, value)
        # A normalisation would mix the neurons it only rescales, so a probe passes it by.
        return value if self.choice.silent is None else func(*args, **kwargs)


class Prober:
    """Runs a network with all ``Linear`` and ``Conv`` layers frozen but one, and says what that one reaches.

    Inside ``evaluating(module.modules())``; nothing in the network changes and no random stream moves.

    :param module: the network
    :param forward: called without arguments, runs everything that is to be probed in one pass
    :raises RuntimeError: when no ``Linear`` or ``Conv`` layer runs in the pass
    """

    def __init__(self, module: nn.Module, forward: Callable[[], Any]):
        self.module = module
        self.forward = forward
        layers = {name: child for name, child in module.named_modules() if isinstance(child, LAYER_TYPES)}
        self.calls: dict[str, list[Tensor]] = {}
        """Layer name to its frozen output for each call; layers in the order they first run."""

        def recording(name: str, layer: nn.Module) -> Callable[..., Tensor]:
            real = layer.forward

            def forward(*args: Any, **kwargs: Any) -> Tensor:
                output: Tensor = real(*args, **kwargs)
                # Random rather than recorded, since a product with a recorded 0 would hide what it multiplies.
                self.calls.setdefault(name, []).append(torch.rand_like(output) + 0.5)
                return output

            return forward

        with seeded(0), replaced_forward(layers, recording):
            self.forward()
        self.layers = {name: layers[name] for name in self.calls}
        if not self.layers:
            raise RuntimeError(
                f"no Linear or Conv layer of {type(module).__name__} runs in its forward pass; "
                f"it holds {', '.join(layers) or 'none at all'}"
            )

    def neurons(self, name: str) -> int:
        """Outputs of a linear layer, output channels of a convolution."""
        weight = self.layers[name].weight
        assert isinstance(weight, Tensor)
        return weight.shape[0]

    def run(self, choice: Choice, forward: Callable[[], Any] | None = None) -> dict[Place, Tensor]:
        """One pass under ``choice``: what was seen at every place."""
        recorder = _Recorder(choice)

        def make(name: str, layer: nn.Module) -> Callable[..., Tensor]:
            calls = iter(enumerate(self.calls[name]))

            def forward(*args: Any, **kwargs: Any) -> Tensor:
                call, frozen = next(calls)
                recorder.record("input", name, call, args[0] if args else kwargs["input"])
                if name != choice.layer:
                    return frozen * choice.sign
                assert choice.values is not None
                shape = [1] * frozen.ndim
                shape[neuron_axis(layer, frozen)] = -1
                return choice.values.to(frozen).view(shape).expand_as(frozen).clone()

            return forward

        with seeded(0), replaced_forward(self.layers, make), recorder:
            outputs = (forward or self.forward)()
        for index, output in enumerate(tensors_in(outputs)):
            recorder.record("output", str(index), index, output)
        return recorder.seen

    def read(self, name: str) -> Reading:
        """What layer ``name`` reaches directly, through parameter-free operations only."""
        reading: Reading = {}
        for sign in (1, -1):
            for low, high in _LEVELS:
                self._read_levels(_Levels(self, name, low, high, sign), reading)
        if not any(place.kind == "input" for place in reading):
            self._read_levels(_Levels(self, name, *_WIDE_LEVELS, 1), reading)
        return reading

    def reaches(self, name: str, kept: Set[int]) -> set[Place]:
        """The places where layer ``name`` is seen while some activation calls are held constant."""
        reached = set()
        for levels in _LEVELS:
            values = (torch.full((self.neurons(name),), level) for level in levels)
            low, high = (self.run(Choice(name, value, kept=frozenset(kept))) for value in values)
            reached |= {place for place, value in low.items() if not torch.equal(value, high[place])}
        return reached

    def _read_levels(self, levels: "_Levels", reading: Reading) -> None:
        neurons = self.neurons(levels.name)
        coin = torch.rand(neurons, generator=torch.Generator().manual_seed(1)) < 0.5
        low, high = levels.run(torch.zeros_like(coin)), levels.run(torch.ones_like(coin))
        tosses = [(toss, levels.run(toss)) for toss in (coin, ~coin)]
        moved = {
            place: (value != high[place]) | (value != tosses[0][1][place]) | (value != tosses[1][1][place])
            for place, value in low.items()
        }
        moved = {place: mask for place, mask in moved.items() if mask.any()}
        if all(_explained(reading.get(place), mask, place, low, high, tosses) for place, mask in moved.items()):
            return
        codes = self._decode(levels, moved, low, high)
        for place, code in codes.items():
            known = reading.get(place)
            if known is not None:
                code = torch.where(known == NOBODY, code, torch.where((code == NOBODY) | (code == known), known, MIXED))
            reading[place] = code

    def _decode(
        self, levels: "_Levels", moved: dict[Place, Tensor], low: dict[Place, Tensor], high: dict[Place, Tensor]
    ) -> Reading:
        """Give neuron i the high level by bit b of i, for each b; each element then spells its neuron's number.

        Every number is spelt twice, the second time with all bits flipped: the larger of two neurons, as a
        maxout gives it, spells i|j the first time and i&j the second, and so does not pass for a third neuron.
        """
        numbers = torch.arange(self.neurons(levels.name))
        bits = max(1, int(numbers[-1]).bit_length())
        codes = {place: torch.zeros(mask.shape, dtype=torch.long) for place, mask in moved.items()}
        mixed = {place: torch.zeros(mask.shape, dtype=torch.bool) for place, mask in moved.items()}
        for bit in range(bits):
            chosen = (numbers >> bit) % 2 == 1
            spelt, flipped = levels.run(chosen), levels.run(~chosen)
            for place, code in codes.items():
                is_one, is_zero = (spelt[place] == high[place]).cpu(), (spelt[place] == low[place]).cpu()
                was_one, was_zero = (flipped[place] == high[place]).cpu(), (flipped[place] == low[place]).cpu()
                code += is_one.long() << bit
                mixed[place] |= (is_one == is_zero) | (is_one != was_zero) | (is_zero != was_one)
        for place, code in codes.items():
            code[mixed[place] | (code >= len(numbers))] = MIXED
            code[~moved[place].cpu()] = NOBODY
        return codes


@dataclass
class _Levels:
    """One pair of output levels for one layer."""

    prober: Prober
    name: str
    low: float
    high: float
    sign: int

    def run(self, chosen: Tensor) -> dict[Place, Tensor]:
        values = torch.where(chosen, self.high, self.low)
        return self.prober.run(Choice(self.name, values, self.sign))


def _explained(
    code: Tensor | None,
    moved: Tensor,
    place: Place,
    low: dict[Place, Tensor],
    high: dict[Place, Tensor],
    tosses: list[tuple[Tensor, dict[Place, Tensor]]],
) -> bool:
    """Whether what was read before foretells every element that moved now."""
    if code is None:
        return False
    moved = moved.cpu()
    if (code[moved] == NOBODY).any():
        return False
    readable = moved & (code >= 0)
    for toss, seen in tosses:
        expected = torch.where(toss[code[readable]], high[place].cpu()[readable], low[place].cpu()[readable])
        if not torch.equal(expected, seen[place].cpu()[readable]):
            return False
    return True
