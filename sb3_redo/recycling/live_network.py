"""Keeps a network as it is while another is built, even from the same modules."""

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
    """Remembers a network's tensors, and what its modules and optimizers hold, to put all of it back.

    Settings may hand modules, parameters or an optimizer to whatever builds a network: as objects, or through closures,
    globals and class attributes, which cannot be copied. A network that is built again then consists of the same
    objects, and building initialises, moves or freezes them.

    :param network: the network; copies of its tensors are kept on the CPU
    """

    def __init__(self, network: nn.Module):
        self._classes: list[tuple[nn.Module, type]] = []
        self._containers: list[tuple[Any, Any]] = []
        tensors = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
        self._remember(network, tensors, set())
        self._objects = State(network, all_parts(network))
        # Each tensor with the memory that it has now, and a copy of what lies there.
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
        """Note a module's class, copies of all containers in it, and the tensors there."""
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
            # Building makes no step: the tensors of its state stay as they are.
            self._remember(value.__dict__, {}, seen)
        elif isinstance(value, (dict, list, tuple, set)):
            kind: Any = next(kind for kind in (dict, list, tuple, set) if isinstance(value, kind))
            self._containers.append((value, kind(value)))
            for each in value.values() if isinstance(value, dict) else value:
                self._remember(each, tensors, seen)

    def is_unchanged(self, tensor: Tensor) -> bool:
        """Return whether a tensor is one of the network's, or lies in its memory, and has its values still."""
        for key in _keys(tensor) if tensor.numel() else ():
            values = self._values.get(key)
            if values is not None and values.shape == tensor.shape:
                return torch.equal(values, tensor.detach().cpu())
        return False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put everything back that was changed meanwhile. While it lasts, all tensors are on the CPU."""
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
                    if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:  # moved, or given other data
                        tensor.data = data
                    if not torch.equal(data.cpu(), values):
                        data.copy_(values)
                    if tensor.is_leaf and tensor.requires_grad != requires_grad:
                        tensor.requires_grad_(requires_grad)
                    if tensor.is_leaf and tensor.grad is not grad:
                        tensor.grad = grad


def _keys(tensor: Tensor) -> tuple[Any, ...]:
    """Return what a tensor is known by: itself, and its memory."""
    return id(tensor), ("memory", tensor.data_ptr())


def _identities(container: Any) -> list[int]:
    """Return the identities of all that a container holds, in its order."""
    items = chain.from_iterable(container.items()) if isinstance(container, dict) else container
    return [id(each) for each in items]
