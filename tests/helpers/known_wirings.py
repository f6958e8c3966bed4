"""Wirings that are read once and serve every network that is built alike."""

import sys
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import pytest
from torch import Tensor, nn
from torch.optim import Optimizer

from sb3_redo.forward.nested import map_tensors
from sb3_redo.wiring.ownership import optimized
from sb3_redo.wiring.structure import Wiring
from sb3_redo.wiring.tracing import trace_wiring

_READ: dict[Any, Wiring] = {}
_PLAIN = (bool, int, float, str, type, FunctionType, BuiltinFunctionType)


def use_known_wirings(patch: pytest.MonkeyPatch) -> None:
    """Let the package read a wiring only where it has read none of the same architecture before.

    Reading takes longer than most trainings of the tests. Tests still call the function itself.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("sb3_redo.") and vars(module).get("trace_wiring") is trace_wiring:
            patch.setattr(module, "trace_wiring", _known)


def _known(
    module: nn.Module,
    observations: Any,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    optimizers: Iterable[Optimizer] | None = None,
) -> Wiring:
    held = optimized(optimizers or ())
    is_held = tuple(id(each) in held for each in module.parameters())
    key = _architecture(module), _shapes(observations), getattr(forward, "__code__", forward), is_held
    if key not in _READ:
        _READ[key] = trace_wiring(module, observations, forward=forward, optimizers=optimizers)
    return _READ[key]


def _architecture(module: nn.Module) -> Any:
    """Return what a module is made of: modules and their settings, and parameters with all names of each."""
    parts = [
        (name, type(each), *((key, value) for key, value in vars(each).items() if isinstance(value, _PLAIN)))
        for name, each in module.named_modules(remove_duplicate=False)
    ]
    numbers: dict[Tensor, int] = {}
    parameters = [
        (name, numbers.setdefault(each, len(numbers)), each.shape, each.dtype, each.requires_grad)
        for name, each in module.named_parameters(remove_duplicate=False)
    ]
    return tuple(parts), tuple(parameters)


def _shapes(observations: Any) -> Any:
    shapes: list[Any] = []
    map_tensors(lambda tensor: shapes.append((tensor.shape[1:], tensor.dtype)) or tensor, observations)
    return tuple(shapes)
