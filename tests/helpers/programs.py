"""Programs that random networks run, with the layers that are called in them."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from tests.helpers.flows import Flow, Ledger


class Rectified(nn.Module):
    """A layer with an activation in its own forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(super().forward(x))


RECTIFIED = {
    kind: type(f"Rectified{kind.__name__}", (Rectified, kind), {}) for kind in (nn.Linear, nn.Conv1d, nn.Conv2d)
}


class Softened(nn.Module):
    """Computes weights of either sign with an activation."""

    def forward(self, weight: Tensor) -> Tensor:
        return functional.softplus(weight) - 0.7


MAX_LAYERS, MAX_ELEMENTS = 14, 300
SHAPES = {"vector": [(5,)], "sequence": [(2, 6)], "image": [(2, 6, 6)], "both": [(1, 5, 5), (3,)]}


class Step(NamedTuple):
    """One operation; every number is taken modulo what there is to choose from.

    :param source: the tensor it works on, counted from the latest
    """

    operation: str
    source: int = 0
    choice: int = 0
    size: int = 4


class Plan(NamedTuple):
    """All that a random network follows from."""

    steps: tuple[Step, ...]
    form: str = "vector"
    head: str = "plain"
    seed: int = 0


@dataclass
class Returned:
    """What half of the networks return."""

    first: Tensor
    others: list[Tensor]

    def __iter__(self) -> Iterator[Tensor]:
        yield from (self.first, *self.others)


class Register(NamedTuple):
    """A tensor of the program.

    :param positive: whether it rises and falls with the layers behind it: what does not may cancel what else comes
        from the same layer
    :param fresh: whether an in-place operation may overwrite it
    """

    number: int
    flow: Flow
    positive: bool
    fresh: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.flow.shape


class Program(nn.Module):
    """The network of a plan, and what is known of it in ``ledger``."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.program: list[Callable[[Program, list[Tensor]], Tensor]] = []
        self.recipe: list[str] = []
        self.ledger = Ledger()
        self.operations: list[str] = []
        self.used: set[int] = set()
        self.turned: set[int] = set()  # registers that may never be positive
        self.returned: list[int] = []
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.pool = [Register(i, Flow.observed(shape), False, False) for i, shape in enumerate(SHAPES[plan.form])]
        self.inputs = len(self.pool)
        with torch.random.fork_rng():
            torch.manual_seed(plan.seed)
            for step in plan.steps:
                source = self.pool[-1 - step.source % len(self.pool)]
                if getattr(self, f"_{step.operation}")(source, step.choice, step.size) is not None:
                    self.operations.append(step.operation)
            self._finish()
        for number in self.returned:
            self.ledger.returns(self.registers[number].flow)
        self.known = self.ledger.known(self)
        self.notes: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
        for name, known in self.known.items():
            for number, owners in known.seen:
                self.notes[number].append((name, owners))

    def __str__(self) -> str:
        return "\n".join([f"{self.plan.form}, seed {self.plan.seed}", *self.recipe, f"return {self.returned}"])

    def observations(self, batch: int, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        parts = [torch.rand(batch, *shape, generator=generator) * 2 - 1 for shape in SHAPES[self.plan.form]]
        return {f"part {i}": part for i, part in enumerate(parts)} if len(parts) > 1 else parts[0]

    def forward(self, x: Any) -> "list[Tensor] | Returned":
        values = list(x.values()) if isinstance(x, dict) else [x]
        for run in self.program:
            values.append(run(self, values))
            for name, owners in self.notes[len(values) - 1]:
                self.seen.setdefault(name, []).append((owners, values[-1].detach().clone()))
        returned = [values[number] for number in self.returned]
        return Returned(*returned[:1], returned[1:]) if self.plan.seed % 2 else returned

    # Building: every operation returns the register it adds, or None where it does not apply.

    @property
    def registers(self) -> dict[int, Register]:
        return {register.number: register for register in self.pool}

    def _emit(
        self,
        text: str,
        run: Callable[["Program", list[Tensor]], Tensor],
        flow: Flow,
        sources: tuple[Register, ...],
        positive: bool | None = None,
        fresh: bool = False,
    ) -> Register:
        self.used |= {source.number for source in sources}
        positive = all(source.positive for source in sources) if positive is None else positive
        register = Register(self.inputs + len(self.program), flow, positive, fresh)
        names = ", ".join(str(source.number) for source in sources)
        self.recipe.append(f"{register.number} = {text}({names}) {tuple(flow.shape)}")
        if not positive and any(source.number in self.turned for source in sources):
            self.turned.add(register.number)
        self.program.append(run)
        self.pool.append(register)
        return register

    def _moved(
        self, text: str, source: Register, function: Callable[[Tensor], Tensor], **flags: Any
    ) -> Register | None:
        """An operation that only moves, drops or pools elements."""
        flow = source.flow.map(function)
        if not 0 < flow.feeds[0].numel() <= max(MAX_ELEMENTS, source.flow.feeds[0].numel()):
            return None
        return self._emit(text, lambda _, r: function(r[source.number]), flow, (source,), **flags)

    def _add_module(self, kind: str, module: nn.Module) -> str:
        name = f"{kind}{sum(1 for _ in self.children())}"
        self.add_module(name, module)
        return name

    def _call(self, name: str, source: Register) -> Register:
        layer = self.get_submodule(name)
        axis = -1 if isinstance(layer, nn.Linear) else -len(source.shape)
        self.ledger.calls(name, source.number, source.flow, axis)
        with torch.no_grad():
            shape = layer.eval()(torch.zeros(2, *source.shape)).shape[1:]
        layer.train()
        flow = Flow.of_layer(self.ledger.names.index(name), shape, axis)
        self.ledger.results[name].append((self.inputs + len(self.program), flow))
        text = f"{name}:{type(layer).__name__} {layer.extra_repr()}"
        # The gradient of a rectified layer needs its output: nothing may overwrite it.
        fresh = not isinstance(layer, Rectified)
        run = lambda net, r: net.get_submodule(name)(r[source.number])  # noqa: E731
        return self._emit(text, run, flow, (source,), True, fresh)

    def _layer(self, source: Register, choice: int, size: int) -> Register | None:
        if len(self.ledger.names) == MAX_LAYERS:
            return None
        rank, bias, layer = len(source.shape), choice % 5 != 4, None
        if rank == 1 or (rank == 2 and choice % 2):
            layer = nn.Linear(source.shape[-1], size, bias=bias)
        else:
            channels, room = source.shape[0], min(source.shape[1:])
            groups = gcd(channels, size) if choice % 3 == 1 else 1
            kernel, padding, stride = min(1 + choice % 3, room), choice % 4 // 3, 1 + choice % 7 // 5
            convolution = nn.Conv1d if rank == 2 else nn.Conv2d
            layer = convolution(channels, size, kernel, stride, padding, groups=groups, bias=bias)
        if choice == 13:
            layer = parametrizations.weight_norm(layer)
        elif choice == 14:
            parametrize.register_parametrization(layer, "weight", Softened())
        elif choice == 12:
            layer.__class__ = RECTIFIED[type(layer)]
        name = self._add_module("layer", layer)
        self.ledger.names.append(name)
        return self._call(name, source)

    def _block(self, source: Register, choice: int, size: int) -> Register | None:
        made = self._layer(source, choice, size)
        return made and self._activation(made, choice * 7 + size, size)

    def _again(self, source: Register, choice: int, size: int) -> Register | None:
        fitting = [name for name in self.ledger.names if self._takes(self.get_submodule(name), source.shape)]
        return self._call(fitting[choice % len(fitting)], source) if fitting else None

    @staticmethod
    def _takes(layer: nn.Module, shape: tuple[int, ...]) -> bool:
        if isinstance(layer, nn.Linear):
            return len(shape) < 3 and layer.in_features == shape[-1]
        room = all(n + 2 * layer.padding[0] >= layer.kernel_size[0] for n in shape[1:])
        return len(shape) == layer.weight.ndim - 1 and layer.in_channels == shape[0] and room

    def _tied(self, source: Register, choice: int, size: int) -> Register | None:
        """A layer of its own with the weight of another."""
        fitting = [name for name in self.ledger.names if self._takes(self.get_submodule(name), source.shape)]
        fitting = [name for name in fitting if isinstance(self.get_submodule(name).weight, nn.Parameter)]
        if not fitting or len(self.ledger.names) == MAX_LAYERS:
            return None
        twin = self.get_submodule(fitting[choice % len(fitting)])
        layer = copy.deepcopy(twin)
        layer.weight = twin.weight
        name = self._add_module("layer", layer)
        self.ledger.names.append(name)
        made = self._call(name, source)
        self.recipe[-1] += f" tied to {fitting[choice % len(fitting)]}"
        return made

    def _freeze(self, source: Register, choice: int, size: int) -> Register | None:
        if self.ledger.names:
            name = self.ledger.names[choice % len(self.ledger.names)]
            self.get_submodule(name).requires_grad_(False)
            self.recipe.append(f"freeze {name}")
        return None
