"""Weights that a network uses without calling the layer to which they belong."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from sb3_redo.wiring.frozen_network import Choice
from sb3_redo.wiring.prober import Prober

_LIKE_FIRST = ("to", "type_as", "expand_as", "view_as", "reshape_as")
"""Use the values of their first argument alone; of the others they ask for type or shape, as in x.to(layer.weight)."""


class _WeightWatcher(TorchFunctionMode):
    """Notes which of some parameters are used in functions that it sees."""

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
    """The arguments whose values a function uses."""
    if name.startswith("new_") or name.endswith("_like") or name in ("size", "stride"):
        return ()
    if name in _LIKE_FIRST:
        return arguments[:1]
    return [value for item in arguments for value in (item if isinstance(item, (tuple, list)) else [item])]


def borrowed_weights(prober: Prober) -> frozenset[str]:
    """Names of the layers whose weights or biases are used although, all layers being frozen, none is called."""
    owners = {
        id(parameter): name
        for name, layer in prober.layers.items()
        for parameter in layer._parameters.values()
        if parameter is not None
    }
    watcher = _WeightWatcher(owners)
    with watcher:
        prober.run(Choice(), lambda place, value: None)
    return frozenset(watcher.used)
