"""Finds out whose weights a layer's are: its own, or also used, shared, computed or frozen elsewhere."""

from collections.abc import Iterable, Set
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from sb3_redo.forward.layers import LAYER_TYPES, TRANSPOSED
from sb3_redo.wiring.frozen_network import PassSettings
from sb3_redo.wiring.prober import Prober

_USE_FIRST_ONLY = ("to", "type_as", "expand_as", "view_as", "reshape_as")
"""Functions that use the values of their first argument alone, as ``x.to(layer.weight)`` does."""


class _WeightWatcher(TorchFunctionMode):
    """Notes which of some parameters are used by the functions of a pass.

    :param owners: identity of a parameter to the name of its layer
    """

    def __init__(self, owners: dict[int, str]):
        super().__init__()
        self.owners = owners
        self.used: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, (Tensor, tuple, list)):
            used = _used(getattr(func, "__name__", ""), [*args, *(kwargs or {}).values()])
            self.used |= {self.owners[id(value)] for value in used if id(value) in self.owners}
        return result


def _used(name: str, arguments: list[Any]) -> Iterable[Any]:
    """Return the arguments whose values a function uses. Of the others it may use shape, type or device."""
    if name.startswith("new_") or name.endswith("_like") or name in ("size", "stride"):
        return ()
    if name in _USE_FIRST_ONLY:
        return arguments[:1]
    return [value for item in arguments for value in (item if isinstance(item, (tuple, list)) else [item])]


def weights_used_outside_their_layer(prober: Prober) -> frozenset[str]:
    """Return the names of the layers whose weights or biases are used without calling the layer.

    All layers are frozen, so no parameter that a function sees is used by its own layer.
    """
    owners = {
        id(parameter): name
        for name, layer in prober.layers.items()
        for parameter in layer._parameters.values()
        if parameter is not None
    }
    watcher = _WeightWatcher(owners)
    with watcher:
        prober.run(PassSettings())
    return frozenset(watcher.used)


def why_not_writable(prober: Prober, name: str, consumers: Iterable[str], used_elsewhere: Set[str]) -> str | None:
    """Return why the weights of a layer or of one of its consumers may not be changed, or ``None``.

    :param used_elsewhere: layers whose weights are used without calling them
    """
    for layer, whose in ((name, "its"), *((consumer, f"{consumer}'s") for consumer in consumers)):
        if layer in used_elsewhere:
            return f"{whose} weights are also used without calling it"
        why = _why_not_its_own(prober.module, prober.layers[layer])
        if why is not None:
            return f"{whose} {why}"
    return None


def _why_not_its_own(policy: nn.Module, layer: nn.Module) -> str | None:
    if not any(type(layer).forward is kind.forward for kind in LAYER_TYPES) or len(layer._parameters) > 2:
        return "forward pass is not that of a plain layer"
    if isinstance(layer, TRANSPOSED):
        return "weights are those of a transposed convolution, which are laid out the other way round"
    if parametrize.is_parametrized(layer) or not isinstance(layer.weight, nn.Parameter):
        return "weights are computed from other parameters"
    if not all(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
        return "weights are frozen"
    holders = [
        path or "the policy itself"
        for path, module in policy.named_modules()
        if module is not layer and any(parameter is layer.weight for parameter in module._parameters.values())
    ]
    return f"weights are shared with {', '.join(holders)}" if holders else None
