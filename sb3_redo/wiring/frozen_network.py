"""A network all of whose layers are frozen: passes in which only parameter-free operations are real."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.forward.contexts import replaced_forward, seeded
from sb3_redo.forward.functions import MAX_POOLS_OF_IMAGES, POOLS, FunctionWatcher
from sb3_redo.forward.layers import LAYER_TYPES, neuron_axis
from sb3_redo.forward.nested import tensors_in
from sb3_redo.wiring.neuron_codes import Place, Record


@dataclass(frozen=True)
class Call:
    """A call of a frozen layer: what its output looks like, and where that begins in the pool of random numbers."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    offset: int


@dataclass(frozen=True)
class Choice:
    """What one pass differs in.

    :param layer: the layer whose outputs are chosen; every other layer is frozen
    :param values: output values of that layer's neurons for each row of its output, [rows, neurons]
    :param factors: by which frozen outputs are multiplied, one per row of them; a gate such as ``relu(-x)`` opens
        for one sign only
    :param kept: activation calls that return a constant, as if they were frozen layers
    :param silent: activation call to the neurons seen there; those elements return 0 and normalisations act
    """

    layer: str | None = None
    values: Tensor | None = None
    factors: tuple[float, ...] = (1.0,)
    kept: Set[int] = frozenset()
    silent: Mapping[int, Tensor] | None = None


class _PassWatcher(FunctionWatcher):
    """Applies a choice to activations and normalisations and tells what passes them."""

    def __init__(self, choice: Choice, record: Record, pooled: dict[int, tuple[Tensor, Any]] | None = None):
        super().__init__()
        self.choice = choice
        self.record = record
        self.pooled = pooled
        """What each pooling of one row was given last, and what it gave."""
        self.pools = 0

    def on_activation(self, call: int, func: Any, output: Tensor) -> Tensor:
        if call in self.choice.kept:
            return torch.full_like(output, 0.5)
        if self.choice.silent is not None and call in self.choice.silent:
            output = output.masked_fill((self.choice.silent[call] >= 0).to(output.device), 0.0)
        self.record(Place("activation", str(call), call), output)
        return output

    def on_normalisation(self, call: int, func: Any, args: Any, kwargs: Any) -> Any:
        value = args[0] if args else kwargs["input"]
        self.record(Place("normalisation", str(call), call), value)
        # A normalisation would mix the neurons it only rescales, so a probe passes it by.
        return value if self.choice.silent is None else func(*args, **kwargs)

    def on_other(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func not in POOLS:
            return func(*args, **kwargs)
        # Two thirds of a pass through a large convolutional network. One row is most often what the frozen layers feed,
        # the same in pass after pass.
        self.pools += 1
        value = args[0] if args else kwargs["input"]
        if len(value) != 1 or self.pooled is None:
            return _pooled(func, args, kwargs)
        known = self.pooled.get(self.pools)
        if known is None or not torch.equal(known[0], value):
            known = self.pooled[self.pools] = value.clone(), _pooled(func, args, kwargs)
        return known[1].clone() if isinstance(known[1], Tensor) else _pooled(func, args, kwargs)

    def on_join(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except RuntimeError:  # it does not broadcast, as sums and products do
            parts = list(args[0] if args else kwargs["tensors"])
            rows = max(len(part) for part in parts)
            parts = [part.expand(rows, *part.shape[1:]) if len(part) == 1 else part for part in parts]
            return func(parts, *args[1:], **{key: value for key, value in kwargs.items() if key != "tensors"})


def _pooled(func: Any, args: Any, kwargs: Any) -> Any:
    """The same as the function gives, sooner: on a CPU maxima are taken four times as fast with channels last."""
    if func not in MAX_POOLS_OF_IMAGES or not args or args[0].ndim != 4 or args[0].device.type != "cpu":
        return func(*args, **kwargs)
    maxima = func(args[0].contiguous(memory_format=torch.channels_last), *args[1:], **kwargs)
    return maxima.contiguous() if isinstance(maxima, Tensor) else maxima


class FrozenNetwork:
    """Runs a network with chosen numbers in place of what its layers compute, and tells what passes between them.

    Inside ``evaluating(module.modules())``; nothing in the network changes and no random stream moves.

    :param module: the network
    :param forward: called without arguments, runs everything that is to be probed in one pass
    :raises RuntimeError: when no ``Linear`` or ``Conv`` layer runs in the pass, or one on nothing
    """

    def __init__(self, module: nn.Module, forward: Callable[[], Any]):
        self.module = module
        self.forward = forward
        self.calls: dict[str, list[Call]] = {}
        """Layer name to its calls; layers in the order they first run."""
        self._pooled: dict[int, tuple[Tensor, Any]] = {}
        self.size = 0
        """Elements of the outputs of all layers and activations."""
        running = self._record_calls()
        modules = dict(module.named_modules())
        self.layers = {name: modules[name] for name in self.calls}
        if not self.layers:
            held = [name for name, child in modules.items() if isinstance(child, LAYER_TYPES)]
            raise RuntimeError(
                f"no Linear or Conv layer of {type(module).__name__} runs in its forward pass; "
                f"it holds {', '.join(held) or 'none at all'}"
            )
        idle = [name for name in self.layers if not any(call.shape.numel() for call in self.calls[name])]
        if idle:
            raise RuntimeError(
                f"{idle[0]} runs on none of the observations: a network that sends them different ways by what they "
                "are cannot be read"
            )
        self.others = {
            name: modules[name]
            for name in running
            if name not in self.layers
            and not any(other.startswith(f"{name}." if name else "") for other in running if other != name)
            and not any(name.startswith(f"{layer}.") for layer in self.layers)
            and (modules[name]._parameters or modules[name]._buffers)
        }
        """Other modules that run and have parameters or buffers of their own, none of whose children runs."""
        calls = [call for calls in self.calls.values() for call in calls]
        with seeded(0):
            # Random rather than recorded, since a product with a recorded 0 would hide what it multiplies. One pool
            # for all, since an output for each layer would take as much memory as all layers together.
            size = max(call.offset + call.shape.numel() for call in calls)
            # Of both signs, since a gate such as relu(-x) opens for one of them only, and another beside it perhaps
            # for the other.
            signs = torch.randint(0, 2, (size,), device=calls[0].device) * 2 - 1
            self._pool = (torch.rand(size, device=calls[0].device) + 0.5) * signs

    def _record_calls(self) -> list[str]:
        """One untouched pass: the names of the modules that run."""
        running: dict[str, None] = {}

        def recording(name: str, module: nn.Module) -> Callable[..., Any]:
            real = module.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                running[name] = None
                output = real(*args, **kwargs)
                if isinstance(module, LAYER_TYPES):
                    offset = 61 * sum(map(len, self.calls.values()))  # no two are to return the same numbers
                    call = Call(output.shape, output.dtype, output.device, offset)
                    self.calls.setdefault(name, []).append(call)
                    self.size += output.numel()
                return output

            return forward

        def count_activation(place: Place, value: Tensor) -> None:
            self.size += value.numel() if place.kind == "activation" else 0

        modules = dict(self.module.named_modules())
        # With nobody silent, which changes nothing but that normalisations act.
        with seeded(0), replaced_forward(modules, recording), _PassWatcher(Choice(silent={}), count_activation):
            self.forward()
        return list(running)

    def neurons(self, name: str) -> int:
        """Outputs of a linear layer, output channels of a convolution."""
        return self.calls[name][0].shape[neuron_axis(self.layers[name])]

    def run(self, choice: Choice, record: Record, forward: Callable[[], Any] | None = None) -> None:
        """One pass under ``choice``; ``record`` is told what is seen at every place."""

        def make(name: str, module: nn.Module) -> Callable[..., Any]:
            calls = count()
            real = module.forward

            def frozen(*args: Any, **kwargs: Any) -> Tensor:
                with torch._C.DisableTorchFunction():
                    call = next(calls)
                    record(Place("input", name, call), args[0] if args else kwargs["input"])
                    return self._output(choice, name, self.calls[name][call])

            def other(*args: Any, **kwargs: Any) -> Any:
                inputs = list(tensors_in((args, kwargs)))
                call = next(calls)
                if len(inputs) == 1:
                    with torch._C.DisableTorchFunction():
                        record(Place("module", name, call), inputs[0])
                return real(*args, **kwargs)

            return frozen if name in self.layers else other

        watcher = _PassWatcher(choice, record, self._pooled)
        with seeded(0), replaced_forward({**self.layers, **self.others}, make), watcher:
            outputs = (forward or self.forward)()
        for index, output in enumerate(tensors_in(outputs)):
            record(Place("output", str(index), index), output)

    def _output(self, choice: Choice, name: str, call: Call) -> Tensor:
        """What a layer returns instead of its real output."""
        pattern = self._pool[call.offset : call.offset + call.shape.numel()].view(call.shape).to(call.device)
        if name != choice.layer:
            shape = [-1] + [1] * (len(call.shape) - 1)
            one, *more = choice.factors
            factors = torch.tensor(choice.factors, device=call.device).view(shape) if more else one
            return (pattern * factors).to(call.dtype)
        assert choice.values is not None
        axis = neuron_axis(self.layers[name]) + len(call.shape)
        # Times a pattern, so that differences of neurons or of pixels, which equal values would hide, can be seen; and
        # its opposite for the other sign, where those that were negative are positive.
        pattern = pattern.abs() if choice.factors[0] > 0 else 2 - pattern.abs()
        values = choice.values.to(call.device)
        if axis == 0:
            return (values[0] * pattern).to(call.dtype)
        shape = [len(values)] + [1] * (len(call.shape) - 1)
        shape[axis] = -1
        return (values.view(shape) * pattern).to(call.dtype)
