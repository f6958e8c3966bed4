"""Runs a network with frozen layers: only its parameter-free operations are computed."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.forward.calls import Call, CallSequence, ChangedCallsError, parametrisations
from sb3_redo.forward.contexts import everything_seeded, replaced_forward, replaced_values, seeded
from sb3_redo.forward.functions import MAX_POOLS_OF_IMAGES, NORMALISATIONS, POOLS, FunctionWatcher
from sb3_redo.forward.layers import LAYER_TYPES, neuron_axis, own_tensors
from sb3_redo.forward.nested import outputs_in, tensors_in
from sb3_redo.wiring.neuron_codes import Place, Recorder

# Offset of the random numbers between a layer's calls, so that no two calls return the same values.
_OFFSET_BETWEEN_CALLS = 61

_NO_SCRIPT = "; layers in TorchScript cannot be seen: use the modules that were scripted"

ALONE = "_depends_on_the_driven_layer_alone"
"""Marks tensors that functions computed from the driven layer's outputs and no other tensor."""


def ignore(place: Place, value: Tensor) -> None:
    """Record nothing."""


@dataclass(frozen=True)
class LayerCall:
    """Describes the output of a layer's call, and its offset in the network's random numbers."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    offset: int


@dataclass(frozen=True)
class PassSettings:
    """Holds the changes of one pass.

    :param driven_layer: the layer whose outputs are chosen; every other layer is frozen
    :param values: its neurons' values, [rows, neurons]
    :param frozen_factors: multiply the outputs of frozen layers, one factor per row
    :param constant_activations: numbers of activation calls that return a constant
    :param zeroed: number of an activation call to the neuron at each element, [1, ...]. Elements that show a neuron
        return 0. If given, even empty, normalisations are computed; else they return their input.
    :param variation: number of a variation of parameters and buffers outside layers; 0 for their own values
    """

    driven_layer: str | None = None
    values: Tensor | None = None
    frozen_factors: tuple[float, ...] = (1.0,)
    constant_activations: Set[int] = frozenset()
    zeroed: Mapping[int, Tensor] | None = None
    variation: int = 0


class _PassWatcher(FunctionWatcher):
    """Applies settings to activations and normalisations, and passes their values to a recorder.

    :param pool_cache: number of a pooling call to its last input of one row and the output
    """

    def __init__(
        self,
        calls: CallSequence,
        settings: PassSettings,
        record: Recorder,
        pool_cache: dict[int, tuple[Tensor, Any]] | None = None,
    ):
        super().__init__(calls)
        self.settings = settings
        self.record = record
        self.pool_cache = pool_cache
        self.pool_calls = 0
        self.meets_others = False  # whether a function combined the driven layer's outputs with another tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if self.settings.driven_layer is not None:
            are_alone = {hasattr(value, ALONE) for value in tensors_in((args, kwargs))}
            if False not in are_alone:
                for made in tensors_in(result):
                    setattr(made, ALONE, True)
            elif True in are_alone:
                self.meets_others |= func not in NORMALISATIONS
        return result

    def on_activation(self, call: int, output: Tensor) -> Tensor:
        # Changed in place, because the network may have called the function in place and ignore its result.
        if call in self.settings.constant_activations:
            return output.fill_(0.5)
        if self.settings.zeroed is not None and call in self.settings.zeroed:
            output.masked_fill_((self.settings.zeroed[call] >= 0).to(output.device), 0.0)
        self.record(Place("activation", str(call), call), output)
        return output

    def on_normalisation(self, call: int, func: Any, args: Any, kwargs: Any) -> Any:
        value = args[0] if args else kwargs["input"]
        self.record(Place("normalisation", str(call), call), value)
        # Its statistics would mix neurons that it only rescales.
        return value if self.settings.zeroed is None else func(*args, **kwargs)

    def on_other(self, func: Any, args: Any, kwargs: Any) -> Any:
        # 1. Poolings take two thirds of a pass through a large convolutional network.
        if func not in POOLS:
            return func(*args, **kwargs)
        self.pool_calls += 1
        value = args[0] if args else kwargs["input"]
        # 2. A batch depends on the driven layer and is computed.
        if len(value) != 1 or self.pool_cache is None:
            return _pool(func, args, kwargs)
        # 3. A single row usually comes from frozen layers and is the same in every pass.
        known = self.pool_cache.get(self.pool_calls)
        if known is None or not torch.equal(known[0], value):
            known = self.pool_cache[self.pool_calls] = value.clone(), _pool(func, args, kwargs)
        # 4. A copy is returned, because the network may change it in place.
        return known[1].clone() if isinstance(known[1], Tensor) else _pool(func, args, kwargs)

    def on_join(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except RuntimeError:  # joins do not broadcast one row to many, unlike sums and products
            parts = list(args[0] if args else kwargs["tensors"])
            rows = max(len(part) for part in parts)
            parts = [part.expand(rows, *part.shape[1:]) if len(part) == 1 else part for part in parts]
            return func(parts, *args[1:], **{key: value for key, value in kwargs.items() if key != "tensors"})


def _ordinary(record: Recorder) -> Recorder:
    """Return a recorder of ordinary tensors, because tensors of inference mode cannot be changed later."""

    def recorded(place: Place, value: Tensor) -> Any:
        if not (torch.is_inference_mode_enabled() or value.is_inference()):
            return record(place, value)
        with torch.inference_mode(False):
            return record(place, value.clone())

    return recorded


def _refuse_wrapped(name: str, value: Any) -> None:
    """Refuse a wrapped tensor of ``vmap``, because it must not be kept."""
    if isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise RuntimeError(f"what runs under torch.func.vmap cannot be read ({name}): run it on a batch instead")


def _pool(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute a pooling. On a CPU, maxima over images take a quarter of the time with channels last."""
    if func not in MAX_POOLS_OF_IMAGES or not args or args[0].ndim != 4 or args[0].device.type != "cpu":
        return func(*args, **kwargs)
    maxima = func(args[0].contiguous(memory_format=torch.channels_last), *args[1:], **kwargs)
    return maxima.contiguous() if isinstance(maxima, Tensor) else maxima


def _other_shape(place: Place, calls: CallSequence, known: torch.Size | None, shape: torch.Size) -> str:
    """Return an error message for a pass with a new place, or with a place of another shape."""
    what = f"what {place.name} receives" if place.kind in ("input", "module") else f"what is computed {calls.after()}"
    return (
        f"{what} is {tuple(shape)} in some passes and {tuple(known) if known is not None else 'missing'} in others: a "
        "network that chooses by values what runs on which rows cannot be read"
    )


class FrozenNetwork:
    """Runs a network with chosen numbers instead of its layers' outputs, and records the values between them.

    Use it inside ``evaluating(module.modules())``. Changes nothing in the network, and no random generator.

    :param module: the network
    :param forward: called without arguments, runs the whole network in one pass
    :param put_back: called after every pass, restores its changes, so that all passes start from the same state
    :raises RuntimeError: when no ``Linear`` or ``Conv`` layer runs in the pass, or when one runs on no observation
    """

    def __init__(self, module: nn.Module, forward: Callable[[], Any], put_back: Callable[[], None] = lambda: None):
        self.module = module
        self.forward = forward
        self.put_back = put_back
        self.seed = 0  # of what the network draws in a pass; with 0, its own generators draw what they would
        self.seed_own: Callable[[int], None] = lambda seed: None  # seeds its own generators
        self.calls: dict[str, list[LayerCall]] = {}  # by layer name, in the order in which the layers first run
        self.inner: dict[str, str] = {}  # layers that run inside another one to the other's name
        self.shapes: dict[Place, torch.Size] = {}  # shape of the value at each place for one observation, once known
        self.size = 0  # number of values of all layers and activations in the pass
        self.variations: dict[int, dict[Tensor, Tensor]] = {0: {}}  # number to tensor to its values in such a pass
        self._pool_cache: dict[int, tuple[Tensor, Any]] = {}
        # 1. One pass without changes shows which modules run, and the outputs of the layers.
        modules = dict(module.named_modules())
        self._parametrisations = parametrisations(modules.items())
        self.running, self.sequence = self._record_calls()
        self.layers = {name: modules[name] for name in self.calls}
        self._all_layers = {name: child for name, child in modules.items() if isinstance(child, LAYER_TYPES)}
        if not self.layers:
            is_scripted = any(isinstance(child, torch.jit.ScriptModule) for child in modules.values())
            raise RuntimeError(
                f"no Linear or Conv layer of {type(module).__name__} runs in its forward pass; "
                f"it holds {', '.join(self._all_layers) or 'none at all'}{_NO_SCRIPT if is_scripted else ''}"
            )
        idle = [name for name in self.layers if not any(call.shape.numel() for call in self.calls[name])]
        if idle:
            raise RuntimeError(
                f"{idle[0]} runs on none of the observations: a network that sends them different ways by what they "
                "are cannot be read"
            )
        # 2. Every other innermost module that runs counts if it has parameters or buffers.
        self.other_modules = {
            name: modules[name]
            for name in self.running
            if name not in self.layers
            and not any(other.startswith(f"{name}." if name else "") for other in self.running if other != name)
            and not any(name.startswith(f"{layer}.") for layer in self.layers)
            and any(True for _ in own_tensors(modules[name]))
        }
        # 3. Frozen outputs are random numbers, because recorded outputs may be 0 and hide their factors. All calls
        #    share one tensor. Separate outputs would take as much memory as all layers together.
        calls = [call for calls in self.calls.values() for call in calls]
        size = max(call.offset + call.shape.numel() for call in calls)
        with seeded(0):
            # Both signs occur, because a gate such as relu(-x) opens for only one of them.
            signs = torch.randint(0, 2, (size,), device=calls[0].device) * 2 - 1
            self._random_outputs = (torch.rand(size, device=calls[0].device) + 0.5) * signs

    def _record_calls(self) -> tuple[list[str], list[Call]]:
        """Run a pass without changes, and record the layers' calls.

        :return: the names of the modules that run outside of layers, and the calls of the pass
        """
        running: dict[str, None] = {}
        calls = CallSequence()

        def recording(name: str, module: nn.Module) -> Callable[..., Any]:
            real = module.forward
            inside = calls.inside(real)

            def forward(*args: Any, **kwargs: Any) -> Any:
                if calls.is_inside and isinstance(module, LAYER_TYPES):
                    self.inner[name] = calls.made[-1].name
                if calls.is_inside or name in self._parametrisations:
                    return inside(*args, **kwargs)
                running[name] = None
                if isinstance(module, LAYER_TYPES):
                    calls.add("layer", name)
                output = (inside if isinstance(module, LAYER_TYPES) else real)(*args, **kwargs)
                _refuse_wrapped(name, output)
                if isinstance(module, LAYER_TYPES):
                    offset = _OFFSET_BETWEEN_CALLS * sum(map(len, self.calls.values()))
                    call = LayerCall(output.shape, output.dtype, output.device, offset)
                    self.calls.setdefault(name, []).append(call)
                    self.size += output.numel()
                return output

            return forward

        def count_activation(place: Place, value: Tensor) -> None:
            _refuse_wrapped(f"{place.kind} {place.name}", value)
            self.size += value.numel() if place.kind == "activation" else 0

        modules = dict(self.module.named_modules())
        # No element is set to 0, and normalisations are computed.
        watcher = _PassWatcher(calls, PassSettings(zeroed={}), count_activation)
        try:
            outputs = self.run_with(modules, recording, watcher)
        except Exception as error:
            raise RuntimeError(
                f"{type(self.module).__name__} cannot be read: it fails {calls.after()} when it runs on one "
                f"observation ({type(error).__name__}: {error})"
            ) from error
        outputs_in(outputs)  # otherwise raise an error with the reason
        return list(running), calls.made

    @property
    def without_rows(self) -> list[str]:
        """Return the names of layers that run on inputs without a batch axis, such as a learned vector."""
        axes = {name: neuron_axis(layer) for name, layer in self.layers.items()}
        return [name for name, calls in self.calls.items() if any(axes[name] + len(call.shape) < 1 for call in calls)]

    def run_with(
        self,
        modules: Mapping[str, nn.Module],
        make: Callable[[str, nn.Module], Any],
        watcher: FunctionWatcher,
        forward: Callable[[], Any] | None = None,
        values: Mapping[Tensor, Tensor] | None = None,
    ) -> Any:
        """Run a pass with replaced modules, from the same state as every other. Returns the pass's result.

        :param modules: name to module
        :param make: called with a name and its module, returns the new ``forward``
        :param watcher: sees the functions of the pass
        :param forward: the pass to run, if not the usual one
        :param values: tensor to its values in this pass, if not its own
        """
        try:
            # Other seeds reveal random draws, from any generator.
            stream = (everything_seeded if self.seed else seeded)(self.seed)
            with stream, replaced_values(values or {}), replaced_forward(modules, make), watcher:
                if self.seed:
                    self.seed_own(self.seed)
                return (forward or self.forward)()
        except SystemExit as error:  # a network may end the program where numbers grow too large
            raise RuntimeError(f"it calls sys.exit({error})") from error
        finally:
            with torch._C.DisableTorchFunction():  # outer watchers of the pass must not see this
                self.put_back()

    def neurons(self, name: str) -> int:
        """Return the number of outputs of a linear layer, or of output channels of a convolution."""
        return self.calls[name][0].shape[neuron_axis(self.layers[name])]

    def run(
        self,
        settings: PassSettings,
        record: Recorder = ignore,
        forward: Callable[[], Any] | None = None,
    ) -> bool:
        """Run one pass. Returns whether the driven layer's outputs are combined with another tensor.

        :param settings: the changes of the pass
        :param record: receives the value at every place
        :param forward: the pass to run, if not the usual one
        :raises ChangedCallsError: when the network makes other calls than without changes, or on other shapes
        :raises RuntimeError: when the network fails on the chosen numbers
        """
        calls = CallSequence(self.sequence)
        rows = max(len(settings.frozen_factors), 1 if settings.values is None else len(settings.values))

        def check(place: Place, value: Tensor) -> None:
            known = self.shapes.get(place)
            if self.shapes and (known is None or (rows == 1 and value.shape != known)):
                raise ChangedCallsError(_other_shape(place, calls, known, value.shape))
            record(place, value)

        record = _ordinary(record)

        def make(name: str, module: nn.Module) -> Callable[..., Any]:
            numbers = count()
            real = module.forward
            if name in self._parametrisations:
                return calls.inside(real)

            def frozen(*args: Any, **kwargs: Any) -> Tensor:
                with torch._C.DisableTorchFunction():
                    calls.add("layer", name)
                    call = next(numbers)
                    check(Place("input", name, call), args[0] if args else kwargs["input"])
                    return self._output(settings, name, self.calls[name][call])

            def recorded(*args: Any, **kwargs: Any) -> Any:
                inputs = list(tensors_in((args, kwargs)))
                call = next(numbers)
                if len(inputs) == 1:
                    with torch._C.DisableTorchFunction():
                        check(Place("module", name, call), inputs[0])
                return real(*args, **kwargs)

            return recorded if name in self.other_modules else frozen

        # 1. Layers return chosen numbers. Other modules with parameters run as they are. Functions go to the watcher.
        watcher = _PassWatcher(calls, settings, check, self._pool_cache)
        modules = {**self._all_layers, **self.other_modules, **self._parametrisations}
        try:
            outputs = self.run_with(modules, make, watcher, forward, self.variations[settings.variation])
        except ChangedCallsError:
            raise
        except Exception as error:
            raise RuntimeError(
                f"{type(self.module).__name__} cannot be read: it fails {calls.after()} when layers return numbers of "
                f"our own ({type(error).__name__}: {error})"
            ) from error
        calls.end()
        # 2. The pass is over. Its outputs are places like all others.
        for index, output in enumerate(outputs_in(outputs)):
            check(Place("output", str(index), index), output)
        return watcher.meets_others

    def _output(self, settings: PassSettings, name: str, call: LayerCall) -> Tensor:
        """Return a layer's chosen output."""
        # 1. Every call has its own random numbers, in the shape of its output.
        numbers = self._random_outputs[call.offset : call.offset + call.shape.numel()]
        pattern = numbers.view(call.shape).to(call.device)
        # 2. A frozen layer returns them, for each row times that row's factor.
        if name != settings.driven_layer:
            shape = [-1] + [1] * (len(call.shape) - 1)
            one, *more = settings.frozen_factors
            factors = torch.tensor(settings.frozen_factors, device=call.device).view(shape) if more else one
            return (pattern * factors).to(call.dtype)
        # 3. The driven layer returns its neurons' values times a positive pattern, because equal values would hide
        #    differences between neurons or pixels. Numbers and pattern are 0.5 to 1.5 in size. For the other sign the
        #    pattern is mirrored at 1, so that every difference changes sign.
        assert settings.values is not None
        axis = neuron_axis(self.layers[name]) + len(call.shape)
        pattern = pattern.abs() if settings.frozen_factors[0] > 0 else 2 - pattern.abs()
        values = settings.values.to(call.device)
        # 4. Neurons lie on their axis, assignments on the first. An output without rows takes one assignment.
        shape = [len(values)] + [1] * (len(call.shape) - 1)
        shape[axis] = -1
        output = (values[0] * pattern if axis == 0 else values.view(shape) * pattern).to(call.dtype)
        setattr(output, ALONE, True)
        return output
