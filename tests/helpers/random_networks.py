"""Random networks that know their own wiring.

A plan is a list of small numbers. ``RandomNetwork`` makes a program of it and follows, element by element, which
neurons feed what (``Flow``), so that the wiring is known without asking anything of the network.
"""

import random
from collections.abc import Callable
from math import gcd

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.flows import WIDTH, Flow
from tests.helpers.programs import MAX_ELEMENTS, MAX_LAYERS, SHAPES, Plan, Program, Register, Step

# Without SiLU, ELU, Sigmoid, Softplus and Mish, which torch rounds differently at the end of a tensor: behind several
# operations such a position may read as one of several neurons, and its layer is then measured only.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], type[nn.Module]]] = {
    "relu": (functional.relu, torch.relu_, nn.ReLU),
    "tanh": (torch.tanh, torch.tanh_, nn.Tanh),
    "leaky_relu": (functional.leaky_relu, lambda x: functional.leaky_relu(x, inplace=True), nn.LeakyReLU),
    "gelu": (functional.gelu, functional.gelu, nn.GELU),
    "hardswish": (functional.hardswish, lambda x: functional.hardswish(x, inplace=True), nn.Hardswish),
    "hardsigmoid": (functional.hardsigmoid, lambda x: functional.hardsigmoid(x, inplace=True), nn.Hardsigmoid),
}


class Wavering(nn.Module):
    """A factor that changes from pass to pass: by a counter, a buffer, a list and generators of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.calls, self.rows = 0, []
        self.generators = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.calls += 1
        self.rows.append(len(x))
        noise = torch.rand((), generator=self.generators[0]) + self.generators[1].random()
        return x * (1 + 0.1 * noise + 0.1 / (self.calls + float(self.passes) + len(self.rows)))


class RandomNetwork(Program):
    """The network of a plan, and the operations it is made of."""

    def _activation(self, source: Register, choice: int, size: int) -> Register:
        names = ["leaky_relu", "tanh"] if self._may_stay_shut(source) else list(ACTIVATIONS)
        name, style = names[choice % len(names)], ("function", "inplace", "module", "method")[size % 4]
        function, in_place, module = ACTIVATIONS[name]
        flow = self.ledger.activates(self.inputs + len(self.program), source.flow, "sigmoid" in name)
        number = source.number
        if style == "inplace" and source.fresh and number not in self.used:
            run = lambda _, r: in_place(r[number])  # noqa: E731
        elif style == "module":
            shared = f"shared_{name}"
            if not hasattr(self, shared):
                self.add_module(shared, module())
            run = lambda net, r: net.get_submodule(shared)(r[number])  # noqa: E731
        elif style == "method" and hasattr(Tensor, name):
            run = lambda _, r: getattr(r[number], name)()  # noqa: E731
        else:
            style, run = "function", lambda _, r: function(r[number])
        made = self._emit(f"{name} as {style}", run, flow, (source,))
        if style == "inplace":
            self.pool.remove(source)
        return made

    def _dent(self, source: Register, choice: int, size: int) -> Register | None:
        """An activation, and a change in place of what it returned. Of those whose gradient does not need it."""
        made = self._activation(source, 0 if self._may_stay_shut(source) else 2 + choice % 4, 2 * (size % 2))
        self.pool.remove(made)
        if choice % 3:
            flow = made.flow._replace(loud=made.flow.feeds)
            return self._emit("dent", lambda _, r: r[made.number].sub_(0.4), flow, (made,))
        turned = self._emit("turn", lambda _, r: r[made.number].mul_(-1.5), made.flow, (made,), False)
        self.turned.add(turned.number)
        return turned

    def _crelu(self, source: Register, choice: int, size: int) -> Register | None:
        # Of a layer of its own, since relu(-x) is nothing at all behind an activation that is never negative.
        made = self._layer(source, choice, size)
        if made is None:
            return None
        negative = self._emit("minus", lambda _, r: -r[made.number], made.flow, (made,), False)
        return self._join(self._activation(made, 0, 0), self._activation(negative, 0, 0))

    def _may_stay_shut(self, source: Register) -> bool:
        """Whether the observation reaches it, or it was turned. Nothing that shuts may follow: no relu, no maximum.

        What the observation reaches is looked for with six values of it, in which relu(x + layer(x)) may stay shut at
        some positions, so that they look as if fed by the layer alone. What relu(-relu(x)) lets through is nothing.
        """
        return bool(source.flow.feeds[0].any()) or source.number in self.turned

    def _swish(self, source: Register, choice: int, size: int) -> Register:
        return self._product(source, self._activation(source, 5, 0))

    def _square(self, source: Register, choice: int, size: int) -> Register | None:
        if self._may_stay_shut(source):
            return None
        return self._moved_by_value("clamp(0)**2", source, lambda x: x.clamp(min=0) ** 2)

    def _dropout(self, source: Register, choice: int, size: int) -> Register | None:
        name = self._add_module("dropout", nn.Dropout(0.3))
        run = lambda net, r: net.get_submodule(name)(r[source.number])  # noqa: E731
        return self._emit("dropout", run, source.flow, (source,))

    def _stateful(self, source: Register, choice: int, size: int) -> Register | None:
        name = self._add_module("stateful", Wavering())
        run = lambda net, r: net.get_submodule(name)(r[source.number])  # noqa: E731
        return self._emit("stateful", run, source.flow, (source,))

    def _noise(self, source: Register, choice: int, size: int) -> Register | None:
        draw = np.random.random if choice % 2 else random.random
        return self._moved_by_value(f"noise of {draw}", source, lambda x: x * (0.9 + 0.2 * draw()))

    def _moved_by_value(self, text: str, source: Register, function: Callable[[Tensor], Tensor]) -> Register:
        return self._emit(text, lambda _, r: function(r[source.number]), source.flow, (source,))

    def _offset(self, source: Register, choice: int, size: int) -> Register:
        name = f"offset{len(self.program)}"
        # Other at every element, since differences would cancel what is the same; small, so that nothing saturates.
        offset = torch.linspace(0.3, 0.6, source.flow.feeds[0].numel()).reshape(source.shape)
        self.register_parameter(name, nn.Parameter(offset))
        flow = source.flow._replace(loud=source.flow.feeds)
        return self._emit("offset", lambda net, r: r[source.number] + getattr(net, name), flow, (source,))

    def _shut_offset(self, source: Register, choice: int, size: int) -> Register:
        name = self._add_number("offset", source.shape if choice % 2 else ())
        flow = source.flow._replace(loud=source.flow.feeds)
        run = lambda net, r: r[source.number] + getattr(net, name)  # noqa: E731
        return self._emit("shut offset", run, flow, (source,))

    def _shut_scale(self, source: Register, choice: int, size: int) -> Register:
        name = self._add_number("scale", source.shape if choice % 2 else ())
        run = lambda net, r: r[source.number] * getattr(net, name)  # noqa: E731
        return self._emit("shut scale", run, source.flow, (source,), False)

    def _rezero(self, source: Register, choice: int, size: int) -> Register | None:
        """A residual block that is shut, or a skip around a layer that is."""
        made = self._layer(source, 0, source.shape[0]) if source.shape[0] <= WIDTH else None
        if made is None or made.shape != source.shape:
            return None
        numbers = (source.number, made.number) if choice % 2 else (made.number, source.number)
        name = self._add_number("skip", ())
        run = lambda net, r: r[numbers[0]] + getattr(net, name) * r[numbers[1]]  # noqa: E731
        return self._emit(f"rezero{numbers}", run, source.flow.joined(made.flow), (source, made), False)

    def _add_number(self, kind: str, shape: tuple[int, ...]) -> str:
        """A parameter of zeros, or a buffer."""
        name = f"{kind}{len(self.program)}"
        if len(self.program) % 3:
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        else:
            self.register_buffer(name, torch.zeros(shape))
        return name

    def _hinge(self, source: Register, choice: int, size: int) -> Register | None:
        """Of a layer of its own, since none opens behind a sigmoid; divided, so that no sigmoid saturates behind it."""
        made = self._layer(source, choice, size)
        return made and self._moved_by_value("hinge", made, lambda x: (x - 100).clamp(min=0) / 1e4)

    def _norm(self, source: Register, choice: int, size: int) -> Register | None:
        channels, rank = source.shape[0], len(source.shape)
        makers: list[Callable[[], nn.Module]] = [
            lambda: nn.LayerNorm(source.shape[-1] if choice % 2 else source.shape),
            lambda: (nn.BatchNorm2d if rank == 3 else nn.BatchNorm1d)(channels),
            lambda: nn.GroupNorm(gcd(channels, 1 + choice % 4), channels),
        ]
        module = makers[size % 3]()
        # A single entry is not taken for a neuron's even where it is, and torch refuses one value per group.
        if module.weight.numel() == 1 or getattr(module, "num_groups", 0) == source.flow.feeds[0].numel():
            return None
        name = self._add_module("norm", module)
        self.ledger.normalises(name, self.get_submodule(name), source.flow)
        run = lambda net, r: net.get_submodule(name)(r[source.number])  # noqa: E731
        return self._emit(f"{name}:{self.get_submodule(name)}", run, source.flow, (source,))

    def _pool(self, source: Register, choice: int, size: int) -> Register | None:
        rank, window = len(source.shape), 1 + choice % 3
        if rank == 1 or min(source.shape[1:]) < window:
            return None
        if choice % 5 == 4:
            pool = functional.adaptive_avg_pool2d if rank == 3 else functional.adaptive_avg_pool1d
            return self._moved("global average", source, lambda x: pool(x, 1))
        kind = "max" if size % 2 and not self._may_stay_shut(source) else "avg"
        pool = getattr(functional, f"{kind}_pool{rank - 1}d")
        # Side by side, since the difference of two maxima that overlap may be 0 wherever the wiring is read.
        stride = window if kind == "max" else 1 + size % 3 // 2
        return self._moved(f"{kind} pool {window}", source, lambda x: pool(x, window, stride))

    def _reshape(self, source: Register, choice: int, size: int) -> Register | None:
        rank, shape = len(source.shape), source.shape
        if rank == 1:
            rows = gcd(shape[0], size)
            return self._moved(f"view {rows} rows", source, lambda x: x.reshape(len(x), rows, -1))
        forms: list[tuple[str, Callable[[Tensor], Tensor]]] = [
            ("flatten", lambda x: x.flatten(1)),
            ("flatten channels last", lambda x: x.movedim(1, -1).reshape(len(x), -1)),
            ("transpose", lambda x: x.transpose(1, 2).contiguous()),
            ("pixel shuffle", lambda x: functional.pixel_shuffle(x, 2)),
            ("rows as a sequence", lambda x: x.flatten(2)),
        ]
        if rank == 2 or shape[0] % 4:
            del forms[3]
        text, function = forms[choice % len(forms)]
        return self._moved(text, source, function)

    def _slice(self, source: Register, choice: int, size: int) -> Register | None:
        length = source.shape[0]
        start, step = choice % length, 1 + size % 2
        return self._moved(f"slice {start}::{step}", source, lambda x: x[:, start::step].contiguous())

    def _permute(self, source: Register, choice: int, size: int) -> Register | None:
        if choice % 2:
            return self._moved("flip", source, lambda x: x.flip(1 + size % len(source.shape)))
        order = torch.randperm(source.shape[0], generator=torch.Generator().manual_seed(size))
        return self._moved(f"take {order.tolist()}", source, lambda x: x[:, order])

    def _pad(self, source: Register, choice: int, size: int) -> Register | None:
        return self._moved("pad", source, lambda x: functional.pad(x, (choice % 2, size % 2)), positive=False)

    def _partner(self, source: Register, choice: int, axes: int = 0) -> Register | None:
        """Another tensor of the same shape, but for some first axes."""
        fitting = [other for other in self.pool if other is not source and len(other.shape) == len(source.shape)]
        fitting = [other for other in fitting if other.shape[axes:] == source.shape[axes:]]
        return fitting[-1 - choice % len(fitting)] if fitting else None

    def _join(self, one: Register, other: Register) -> Register | None:
        flow = Flow(*(torch.cat(pair, 1) for pair in zip(one.flow, other.flow, strict=True)))
        if flow.feeds[0].numel() > MAX_ELEMENTS:
            return None
        run = lambda _, r: torch.cat([r[one.number], r[other.number]], 1)  # noqa: E731
        return self._emit("cat", run, flow, (one, other), fresh=True)

    def _cat(self, source: Register, choice: int, size: int) -> Register | None:
        other = self._partner(source, choice, 1)
        return other and self._join(source, other)

    def _sum(self, source: Register, choice: int, size: int) -> Register | None:
        other = self._partner(source, choice)
        if other is None or self._cancel(source, other):
            return None
        run = lambda _, r: r[source.number] + r[other.number]  # noqa: E731
        return self._emit("sum", run, source.flow.joined(other.flow), (source, other), fresh=True)

    @staticmethod
    def _cancel(one: Register, other: Register) -> bool:
        """Whether two tensors may leave nothing of one layer, as x - x, relu(x) * relu(-x) and x * 0 do."""
        if not (one.flow.feeds.any(0) & other.flow.feeds.any(0)).all():
            return True
        return bool(one.flow.sources() & other.flow.sources()) and not (one.positive and other.positive)

    def _residual(self, source: Register, choice: int, size: int) -> Register | None:
        made = self._layer(source, 0, source.shape[0]) if source.shape[0] <= WIDTH else None
        if made is None:
            return None
        if made.shape != source.shape:
            return None
        made = self._activation(made, choice, size) if choice % 2 else made
        run = lambda _, r: r[source.number] + r[made.number]  # noqa: E731
        return self._emit("residual", run, source.flow.joined(made.flow), (source, made), fresh=True)

    def _gate(self, source: Register, choice: int, size: int) -> Register | None:
        other = self._partner(source, choice)
        return self._product(source, other) if other and not self._cancel(source, other) else None

    def _pick(self, source: Register, choice: int, size: int) -> Register | None:
        """The position of each row that its observation names."""
        observation = next((register for register in self.pool if register.number < self.inputs), None)
        if observation is None or len(source.shape) == 1:
            return None
        feeds, bare, loud = (part.flatten(2) for part in source.flow)
        if feeds.shape[2] < 2 or not feeds.any() or not torch.equal(feeds, feeds[:, :, :1].expand_as(feeds)):
            return None

        def run(_: Program, r: list[Tensor]) -> Tensor:
            x, named = r[source.number].flatten(2), r[observation.number].flatten(1).argmax(1)
            return x[torch.arange(len(named)), :, named % x.shape[2]]

        observed = torch.zeros_like(feeds[:, :, 0])
        observed[0] = True
        flow = Flow(*(part.any(2) | observed for part in (feeds, bare, loud)))
        return self._emit("pick", run, flow, (source, observation), False)

    def _route(self, source: Register, choice: int, size: int) -> Register | None:
        """One of two experts for each row, by the larger of two gates."""
        if len(source.shape) > 1 or len(self.ledger.names) + 3 > MAX_LAYERS:
            return None
        gates = self._layer(source, 0, 2)
        one, other = (self._activation(self._layer(source, 0, size), choice, 0) for _ in range(2))

        def run(_: Program, r: list[Tensor]) -> Tensor:
            chosen = r[gates.number].argmax(1)
            return torch.stack([r[one.number], r[other.number]], 1)[torch.arange(len(chosen)), chosen]

        spread = Flow(*(part[:, :1].expand(-1, size) for part in gates.flow.mixed()))
        flow = one.flow.joined(other.flow).joined(spread)
        return self._emit("route", run, flow, (gates, one, other), False)

    def _masked(self, source: Register, choice: int, size: int) -> Register | None:
        """A layer times what it takes, which is an observation."""
        observation = next((register for register in self.pool if register.number < self.inputs), None)
        made = observation and self._layer(observation, 0, observation.shape[0])
        return self._product(made, observation) if made and made.shape == observation.shape else None

    def _glu(self, source: Register, choice: int, size: int) -> Register | None:
        if source.shape[0] % 2 or not source.positive or not source.flow.feeds.any(0).all():
            return None
        halves = [self._moved("half", source, lambda x, i=i: x.chunk(2, 1)[i].contiguous()) for i in range(2)]
        return self._product(halves[0], self._activation(halves[1], 5, choice))

    def _product(self, one: Register, other: Register) -> Register:
        run = lambda _, r: r[one.number] * r[other.number]  # noqa: E731
        positive = one.positive and other.positive
        return self._emit("product", run, one.flow.multiplied(other.flow), (one, other), positive)

    def _maxout(self, source: Register, choice: int, size: int) -> Register | None:
        if source.shape[0] % 2 or self._may_stay_shut(source):
            return None
        halves = source.flow.halves()
        run = lambda _, r: torch.maximum(*r[source.number].chunk(2, 1))  # noqa: E731
        return self._emit("maxout", run, halves[0].joined(halves[1]), (source,))

    def _difference(self, source: Register, choice: int, size: int) -> Register | None:
        """Of halves of the features, or of neighbours in space."""
        if choice % 2 and len(source.shape) > 1 and source.shape[-1] > 1:
            neighbours = source.flow.feeds[..., 1:] & source.flow.feeds[..., :-1]
            if neighbours.any() and not source.flow.is_one_to_one:
                return None  # such as x - x
            flow = source.flow.map(lambda x: x[..., 1:]).joined(source.flow.map(lambda x: x[..., :-1]))
            run = lambda _, r: r[source.number][..., 1:] - r[source.number][..., :-1]  # noqa: E731
            return self._emit("difference in space", run, flow, (source,), False)
        if source.shape[0] % 2 or not source.flow.is_one_to_one:
            return None
        halves = source.flow.halves()
        run = lambda _, r: torch.sub(*r[source.number].chunk(2, 1))  # noqa: E731
        return self._emit("difference", run, halves[0].joined(halves[1]), (source,), False)

    def _softmax(self, source: Register, choice: int, size: int) -> Register | None:
        if source.shape[0] == 1 or not source.flow.is_one_to_one:
            return None
        flow = source.flow.mixed()
        return self._emit("softmax", lambda _, r: r[source.number].softmax(1), flow, (source,))

    def _return(self, source: Register, choice: int, size: int) -> Register | None:
        if self.ledger.names and source.number not in self.returned:
            self.returned.append(source.number)
            self.used.add(source.number)
            self.operations.append("return")
        return None

    def _finish(self) -> None:
        """Everything that nothing took goes into the heads."""
        if not self.ledger.names:
            self._block(self.pool[-1], 0, 4)
        loose = [register for register in self.pool[self.inputs :] if register.number not in self.used]
        loose = loose or self.pool[-1:]
        flat = [self._moved("flatten", r, lambda x: x.flatten(1)) if len(r.shape) > 1 else r for r in loose]
        last = flat[0]
        for register in flat[1:]:
            last = self._join(last, register) or last
        heads = []
        for size in {"plain": (2,), "two": (2, 1), "dueling": (3, 1)}[self.plan.head]:
            name = self._add_module("head", nn.Linear(last.shape[0], size))
            self.ledger.names.append(name)
            heads.append(self._call(name, last))
        if self.plan.head == "dueling":
            advantage, value = (head.number for head in heads)
            run = lambda _, r: r[value] + r[advantage] - r[advantage].mean(1, keepdim=True)  # noqa: E731
            mean = heads[0].flow.mixed()
            spread = Flow(*(part.expand_as(mean.feeds) for part in heads[1].flow))
            heads = [self._emit("dueling", run, mean.joined(spread), tuple(heads))]
        self.returned += [head.number for head in heads]


COMMON = ("block", "layer", "activation", "norm", "cat", "sum", "residual", "reshape")
RARE = (
    *("again", "tied", "freeze", "crelu", "swish", "square", "dropout", "offset", "pool", "slice", "permute", "pad"),
    *("dent", "dent", "pick", "pick", "route", "route", "gate", "masked", "glu", "maxout", "difference", "softmax"),
    *("return", "stateful", "noise", "shut_offset", "shut_scale", "rezero", "hinge"),
)
operations = st.sampled_from(["block", *COMMON * 3, *RARE])
steps = st.builds(Step, operations, st.integers(0, 3), st.integers(0, 15), st.sampled_from((4, 1, 8, 6, 4, 2, 3, 5, 7)))
plans = st.builds(
    Plan,
    st.integers(3, 16).flatmap(lambda n: st.lists(steps, min_size=n, max_size=n).map(tuple)),
    st.sampled_from(list(SHAPES)),
    st.sampled_from(["plain", "two", "dueling"]),
    st.integers(0, 3),
)
