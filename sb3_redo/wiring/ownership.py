"""Finds weights that may be changed: trained weights that are not shared, computed, frozen or used elsewhere."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from sb3_redo.forward.layers import LAYER_TYPES, TRANSPOSED
from sb3_redo.wiring.frozen_network import PassSettings
from sb3_redo.wiring.gradient_reach import real_pass
from sb3_redo.wiring.prober import Prober

_USE_FIRST_ONLY = ("to", "type_as", "expand_as", "view_as", "reshape_as")
"""Functions that use only the values of their first argument, such as ``x.to(layer.weight)``."""


class Ownership:
    """The parameters of a network that recycling may change, and the reasons against the others.

    :param prober: of the network
    :param heads: name of each layer that feeds no other one to the numbers of the outputs that it reaches
    :param forward: runs the unchanged network on its inputs, and returns all outputs
    :param inputs: nested tensors [2, ...]
    :param optimizers: all that train the network, or ``None`` or empty if unknown
    """

    def __init__(
        self,
        prober: Prober,
        heads: Mapping[str, Set[int]],
        forward: Callable[[Any], Any],
        inputs: Any,
        optimizers: Iterable[Optimizer] | None,
    ):
        self._policy, self._layers = prober.module, prober.layers
        # 1. The parameters that a gradient reaches, and the layers that run with other weights than their own.
        self._real_pass = real_pass(self._policy, self._layers, heads, forward, inputs)
        # 2. The parameters that an optimizer holds.
        self._optimized = optimized(optimizers or ())
        # 3. Shared memory, and weights used without calling their layer.
        self._held = _Memories(self._policy)
        self._idle_holders = _idle_holders(self._policy, self._layers)
        self._used_elsewhere = _weights_used_outside_their_layer(prober) | prober.inner.keys()

    def unseen_feeders(self, consumer: str, seen: Iterable[str]) -> list[str]:
        """Return the layers that a layer's inputs were computed from without a visible effect of their values.

        :param consumer: name of a layer, or OUTPUT
        :param seen: the layers found to feed it
        """
        return sorted(self._real_pass.feeders.get(consumer, frozenset()) - set(seen))

    def why_not_writable(self, name: str, consumers: Iterable[str]) -> str | None:
        """Return the reason why weights of a layer or of its consumers may not be changed, or ``None``."""
        for layer, whose in ((name, "its"), *((consumer, f"{consumer}'s") for consumer in consumers)):
            why = self._why_not_layer(layer)
            if why is not None:
                return f"{whose} {why}"
        return None

    def writable(self, entries: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters and buffers of normalisations that may be changed.

        If a normalisation's scale or offset may not be changed, neither may its statistics.

        :param entries: path of a parameter or buffer to anything
        """
        return {path: entry for path, entry in entries.items() if self._is_writable(*_split(path))}

    def _is_writable(self, name: str, key: str) -> bool:
        parameters = self._policy.get_submodule(name)._parameters
        return not self._held.why_shared(name, key) and not any(
            self._why_not_tensor(name, other, parameter)
            for other, parameter in parameters.items()
            if parameter is not None
        )

    def _why_not_layer(self, name: str) -> str | None:
        layer = self._layers[name]
        if not _is_plain(layer):
            return "forward pass is not that of a plain layer"
        if isinstance(layer, TRANSPOSED):
            return "weights are those of a transposed convolution, which are laid out the other way round"
        if parametrize.is_parametrized(layer) or not isinstance(layer.weight, nn.Parameter):
            return "weights are computed from other parameters"
        if name in self._idle_holders:
            return f"weights are shared with {self._idle_holders[name]}, which does not run"
        if name in self._used_elsewhere:
            return "weights are also used without calling it"
        if name in self._real_pass.replaced:
            return "weights are replaced by others when it is called"
        for key, noun in (("weight", "weights are"), ("bias", "bias is")):
            tensor = getattr(layer, key)
            why = None if tensor is None else self._why_not_tensor(name, key, tensor)
            if why is not None:
                return f"{noun} {why}"
        return None

    def _why_not_tensor(self, name: str, key: str, tensor: Tensor) -> str | None:
        if tensor is not self._policy.get_submodule(name)._parameters.get(key):
            return "computed from other parameters"
        if not tensor.requires_grad:
            return "frozen"
        if type(tensor) is not nn.Parameter:
            return f"not a plain parameter but a {type(tensor).__name__}"
        shared = self._held.why_shared(name, key)
        if shared is not None:
            return shared
        if self._real_pass.problem is not None:
            return f"not known to be trained, since a pass with gradients fails ({self._real_pass.problem})"
        if id(tensor) not in self._real_pass.reached:
            return "reached by no gradient from any output"
        if self._optimized and id(tensor) not in self._optimized:
            return "in none of the optimizers"
        return None


def optimized(optimizers: Iterable[Optimizer]) -> set[int]:
    """Return the identities of all parameters that some optimizers hold."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {id(parameter) for group in groups for parameter in group["params"]}


def _split(path: str) -> tuple[str, str]:
    name, _, key = path.rpartition(".")
    return name, key


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a layer computes the same as torch's class. A subclass or instance may replace a method."""
    kind = next(kind for kind in LAYER_TYPES if isinstance(layer, kind))
    methods = ("forward", "_conv_forward")
    return len(layer._parameters) <= 2 and all(
        getattr(getattr(layer, method, None), "__func__", None) is getattr(kind, method, None) for method in methods
    )


def _idle_holders(policy: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return layer name to the path of another network that also holds it, if none of that network's own layers runs.

    For instance a target network with the same encoder. Its weights that read a recycled neuron are not cleared.
    """
    names = {id(layer): name for name, layer in layers.items()}
    children = [id(child) for module in policy.modules() for child in module._modules.values() if child is not None]
    if len(children) == len(set(children)):
        return {}
    # 1. All paths of every layer, and the modules on each path.
    paths: dict[int, list[str]] = defaultdict(list)
    modules = dict(policy.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        if isinstance(module, LAYER_TYPES):
            paths[id(module)].append(path)
    holders = {}
    for layer, name in names.items():
        for path in paths[layer] if len(paths[layer]) > 1 else ():
            # 2. The outermost module on this path that lies on no other path of the layer.
            elsewhere = {id(modules[each]) for other in paths[layer] if other != path for each in _prefixes(other)}
            holder = next((each for each in _prefixes(path) if id(modules[each]) not in elsewhere), None)
            # 3. It is idle if it has layers of its own, and none of them runs.
            inner = {id(each) for each in modules[holder].modules()} & paths.keys() if holder else set()
            own = [each for each in inner if all(other.startswith(f"{holder}.") for other in paths[each])]
            if own and not names.keys() & own:
                holders[name] = str(holder)
    return holders


def _prefixes(path: str) -> list[str]:
    """Return the paths of all modules that contain one, the outermost first."""
    parts = path.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]


class _Held(NamedTuple):
    """A tensor of a module, and the addresses of its memory.

    :param key: its name as a parameter or buffer; empty for any other attribute
    """

    start: int
    end: int
    name: str
    key: str
    tensor: Tensor


class _Memories:
    """Finds tensors of a network that share memory with others.

    Memory shared entirely with tensors outside the network cannot be detected.
    """

    def __init__(self, policy: nn.Module):
        held = sorted(_held_tensors(policy), key=lambda each: (each.start, each.end))
        # 1. Tensors whose ranges of addresses overlap. Ranges are sorted by their start.
        self._holders: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        starts = [each.start for each in held]
        for number, one in enumerate(held):
            for other in held[number + 1 : bisect_left(starts, one.end)]:
                self._holders[one.name, one.key][other.name or "the policy itself"] = None
                self._holders[other.name, other.key][one.name or "the policy itself"] = None
            # An expanded tensor has fewer addresses than entries.
            if one.tensor.nbytes > one.end - one.start:
                self._holders[one.name, one.key]["one another"] = None
        # 2. Tensors that are part of a larger one outside the network.
        filled: dict[int, dict[int, int]] = defaultdict(dict)
        for each in held:
            filled[each.tensor.untyped_storage().data_ptr()][each.start] = each.tensor.nbytes
        self._parts = {
            (each.name, each.key)
            for each in held
            if sum(filled[(storage := each.tensor.untyped_storage()).data_ptr()].values()) < storage.nbytes()
        }

    def why_shared(self, name: str, key: str) -> str | None:
        """Return the tensor with which a parameter or buffer shares memory, in words, or ``None``."""
        if (name, key) in self._holders:
            return f"shared with {', '.join(self._holders[name, key])}"
        return "a part of a tensor outside of the policy" if (name, key) in self._parts else None


def _held_tensors(policy: nn.Module) -> Iterable[_Held]:
    """Yield all parameters and buffers of a network, and other tensors among its modules' attributes."""
    modules = list(policy.named_modules())
    registered = [
        (name, key, tensor)
        for name, module in modules
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
    ]
    known = {id(tensor) for _, _, tensor in registered}
    attributes = [
        (name, "", item)
        for name, module in modules
        for value in vars(module).values()
        for item in (
            value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        )
        if isinstance(item, Tensor) and id(item) not in known
    ]
    for name, key, tensor in registered + attributes:
        addresses = None if tensor is None else _addresses(tensor)
        if addresses is not None:
            yield _Held(*addresses, name, key, tensor)


def _addresses(tensor: Tensor) -> tuple[int, int] | None:
    """Return the start and end of a tensor's memory, or ``None`` if it has no ordinary memory."""
    try:
        start = tensor.data_ptr()
        strides = tensor.stride()
    except (RuntimeError, ValueError):  # sparse, or not initialised yet
        return None
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    return (start, start + reach * tensor.element_size()) if start and tensor.numel() else None


class _WeightWatcher(TorchFunctionMode):
    """Records the layers whose parameters the functions of a pass use, directly or as views.

    :param layers: name to layer
    """

    def __init__(self, layers: dict[str, nn.Module]):
        super().__init__()
        self.used: set[str] = set()
        self.owners: dict[int, str] = {}
        self.memories: dict[int, list[tuple[int, int, str]]] = defaultdict(list)  # by storage
        for name, layer in layers.items():
            for parameter in layer._parameters.values():
                if parameter is not None:
                    self.owners[id(parameter)] = name
                    if (addresses := _addresses(parameter)) is not None:
                        self.memories[parameter.untyped_storage().data_ptr()].append((*addresses, name))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, (Tensor, tuple, list)):
            for value in _used(getattr(func, "__name__", ""), [*args, *(kwargs or {}).values()]):
                if isinstance(value, Tensor):
                    self.used.update(self._owners_of(value))
        return result

    def _owners_of(self, value: Tensor) -> list[str]:
        if id(value) in self.owners:
            return [self.owners[id(value)]]
        start, end = _addresses(value) or (0, 0)
        memories = self.memories.get(value.untyped_storage().data_ptr(), ()) if start else ()
        return [name for first, last, name in memories if first < end and start < last]


def _used(name: str, arguments: list[Any]) -> Iterable[Any]:
    """Return the arguments whose values a function uses, not only their shape, type or device."""
    if name.startswith("new_") or name.endswith("_like") or name in ("size", "stride"):
        return ()
    if name in _USE_FIRST_ONLY:
        return arguments[:1]
    return [value for item in arguments for value in (item if isinstance(item, (tuple, list)) else [item])]


def _weights_used_outside_their_layer(prober: Prober) -> frozenset[str]:
    """Return the names of the layers whose weights or biases are used without calling the layer.

    All layers are frozen, so a layer itself never uses the parameters that functions see.
    """
    watcher = _WeightWatcher(prober.layers)
    with watcher:
        prober.run(PassSettings())
    return frozenset(watcher.used)
