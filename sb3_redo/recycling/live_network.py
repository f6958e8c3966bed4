"""Protects a network while another one is built, even if both share modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from sb3_redo.forward.state import State, all_parts


class LiveNetwork:
    """Saves a network's tensors, and the contents of its modules and optimizers, to restore them.

    The code that builds a network may get modules, parameters or an optimizer from its settings, or from closures,
    globals and class attributes. These cannot be copied. So a second network contains the same objects, and building it
    initialises, moves or freezes them.

    :param network: the network. Copies of its tensors are kept on the CPU.
    """

    def __init__(self, network: nn.Module):
        self._classes: list[tuple[nn.Module, type]] = []
        self._containers: list[tuple[Any, Any]] = []
        tensors = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
        self._remember(network, tensors, set())
        self._objects = State(network, all_parts(network))
        # Each tensor with its current memory, and a copy of its values.
        self._tensors = [
            (
                tensor,
                tensor.data,
                tensor.data.to("cpu", copy=True),
                tensor.requires_grad,
                tensor.grad if tensor.is_leaf else None,
            )
            for tensor in tensors.values()
            if not is_lazy(tensor) and not tensor.is_meta and tensor.layout is torch.strided
        ]
        self._values = {key: values for tensor, _, values, *_ in self._tensors for key in _keys(tensor)}

    def _remember(self, value: Any, tensors: dict[int, Tensor], seen: set[int]) -> None:
        """Save a module's class, copies of all its containers, and the tensors in them."""
        if isinstance(value, Tensor):
            tensors[id(value)] = value
        elif id(value) in seen or not isinstance(value, (nn.Module, Optimizer, dict, list, tuple, set)):
            return
        else:
            seen.add(id(value))
        if isinstance(value, nn.Module):
            self._classes.append((value, type(value)))
            self._remember(value.__dict__, tensors, seen)
        elif isinstance(value, Optimizer):
            # Building makes no optimizer step, so tensors of its state do not change.
            self._remember(value.__dict__, {}, seen)
        elif isinstance(value, (dict, list, tuple, set)):
            kind: Any = next(kind for kind in (dict, list, tuple, set) if isinstance(value, kind))
            self._containers.append((value, kind(value)))
            for each in value.values() if isinstance(value, dict) else value:
                self._remember(each, tensors, seen)

    def is_unchanged(self, tensor: Tensor) -> bool:
        """Return whether a tensor is the network's, or lies in its memory, and still has its values."""
        for key in _keys(tensor) if tensor.numel() else ():
            values = self._values.get(key)
            if values is not None and values.shape == tensor.shape:
                return torch.equal(values, tensor.detach().cpu())
        return False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore all changes afterwards. Within this context, all tensors are on the CPU."""
        try:
            for tensor, data, values, *_ in self._tensors:
                if data.device.type != "cpu":
                    tensor.data = values.clone()
            yield
        finally:
            self._objects.put_back()
            for container, before in self._containers:
                if _identities(container) != _identities(before):
                    container.clear()
                    container.extend(before) if isinstance(container, list) else container.update(before)
            for module, kind in self._classes:
                if type(module) is not kind:
                    module.__class__ = kind
            with torch.no_grad():
                for tensor, data, values, requires_grad, grad in self._tensors:
                    if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:  # moved, or replaced
                        tensor.data = data
                    if not torch.equal(data.cpu(), values):
                        data.copy_(values)
                    if tensor.is_leaf and tensor.requires_grad != requires_grad:
                        tensor.requires_grad_(requires_grad)
                    if tensor.is_leaf and tensor.grad is not grad:
                        tensor.grad = grad


def _keys(tensor: Tensor) -> tuple[Any, ...]:
    """Return the keys of a tensor: its id, and its memory."""
    return id(tensor), ("memory", tensor.data_ptr())


def _identities(container: Any) -> list[int]:
    """Return the ids of a container's items, in order."""
    items = chain.from_iterable(container.items()) if isinstance(container, dict) else container
    return [id(each) for each in items]
