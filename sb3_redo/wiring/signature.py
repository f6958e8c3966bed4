"""Detects whether a network has changed since its wiring was read, from one pass that records every function call."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from sb3_redo.forward.contexts import evaluating, everything_seeded, is_compiled, uncompiled
from sb3_redo.forward.nested import map_tensors, tensors_in
from sb3_redo.forward.state import unchanged
from sb3_redo.wiring.input_variants import first_row

_PLAIN = (int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device)
_LARGEST_VALUE = 2**16
"""Maximum number of elements of tensors whose values are part of a signature."""


def network_signature(
    policy: nn.Module,
    forward: Callable[[nn.Module, Any], Any],
    inputs: Any,
    optimizers: Iterable[Optimizer],
) -> Any:
    """Return a signature of a network. Equal signatures mean equal wirings.

    A signature has every function call of one pass with the source of its arguments: a parameter, a buffer, an earlier
    function, or a constant with its value. So code, attributes, globals and closures count if they change the
    computation. Values of parameters do not count, because the wiring does not depend on them. A signature also has the
    tree of modules, shared storage of parameters, and the set of trained parameters.

    :param inputs: as for :func:`~sb3_redo.wiring.tracing.trace_wiring`; one row is used
    """
    row = map_tensors(first_row, inputs)
    names: dict[int, tuple[Any, ...]] = {id(tensor): ("input", number) for number, tensor in enumerate(tensors_in(row))}
    tensors = [*policy.named_parameters(remove_duplicate=False), *policy.named_buffers(remove_duplicate=False)]
    storages: dict[int, str] = {}
    kinds = []
    for path, tensor in tensors:
        # 1. A tensor is identified by its first name, and so is its memory. Integers and masks may decide connections.
        if tensor.is_floating_point():
            names.setdefault(id(tensor), ("tensor", path))
        storage = storages.setdefault(tensor.untyped_storage().data_ptr(), path)
        where = storage, tensor.storage_offset(), tensor.stride(), tuple(tensor.shape), tensor.dtype, tensor.device
        kinds.append((path, names.get(id(tensor)), *where, tensor.requires_grad, len(tensor._backward_hooks or ())))
    # 2. Switching gradients off is recorded as a call, so the pass itself needs no gradients.
    watcher = _CallWatcher(names)
    modules = list(policy.modules())
    with everything_seeded(0), evaluating(modules), uncompiled(is_compiled(modules)), unchanged(policy), watcher:
        outputs = forward(policy, row)
    trained = [[[names.get(id(p)) for p in group["params"]] for group in each.param_groups] for each in optimizers]
    tree = [(path, type(module), *_replaced(module)) for path, module in policy.named_modules(remove_duplicate=False)]
    return kinds, tree, trained, watcher.calls, watcher.described(list(tensors_in(outputs)))


def _replaced(module: nn.Module) -> tuple[Any, ...]:
    """Return everything outside its class that affects a module's calls: its own ``forward``, and hooks."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return type(module).forward, "forward" in vars(module), [getattr(each, "__qualname__", "") for each in hooks]


class _CallWatcher(TorchFunctionMode):
    """Records the torch functions that run.

    :param names: identity of a tensor to its name
    """

    def __init__(self, names: dict[int, tuple[Any, ...]]):
        super().__init__()
        self.names = dict(names)
        self.calls: list[Any] = []
        self._kept: list[Tensor] = []  # so that no other tensor gets the id of a named one

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_inferring = torch.is_inference_mode_enabled()
        self.calls.append((func, is_inferring, self.described(args), self.described(kwargs or {})))
        result = func(*args, **(kwargs or {}))
        for number, tensor in enumerate(tensors_in(result)):
            self.names[id(tensor)] = ("result", len(self.calls), number)
            self._kept.append(tensor)
        return result

    def described(self, value: Any) -> Any:
        """Return a description of a value that can be compared with that of another pass."""
        if isinstance(value, Tensor):
            with torch._C.DisableTorchFunction():
                named = self.names.get(id(value)) or _value_of(value)
                return named, tuple(value.shape), value.dtype, value.requires_grad
        if isinstance(value, np.ndarray):
            return value.shape, value.tobytes()
        if isinstance(value, Mapping):
            return [(self.described(key), self.described(item)) for key, item in value.items()]
        if isinstance(value, slice):
            return self.described((value.start, value.stop, value.step))
        if isinstance(value, (tuple, list)):
            return [self.described(item) for item in value]
        return (type(value), value) if isinstance(value, _PLAIN) else type(value)


def _value_of(tensor: Tensor) -> Any:
    """Return the values of a constant. A large one never equals another."""
    return tensor.detach().cpu().tolist() if tensor.numel() <= _LARGEST_VALUE else object()
