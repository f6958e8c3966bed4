"""Handles nested inputs and outputs: dictionaries, tuples, lists and objects that hold tensors."""

import copy
import dataclasses
import enum
import functools
import types
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

_WITHOUT_NUMBERS = (
    *(str, bytes, type(None), type, enum.Enum, torch.dtype, torch.device, torch.Size, torch.Generator, nn.Module),
    weakref.ref,
)
"""What an output may be without showing numbers of the pass."""
_SIMPLE = frozenset((bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device))
"""Types of values that hold nothing."""
_NUMBERS = frozenset(map(np.dtype, "?bhilBfdeFD"))
"""NumPy types that torch has, too."""
_UNSEEN = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, Iterator, Awaitable)
"""Types that may hide tensors."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested dictionaries, tuples, lists and dataclasses."""
    waiting = [value]
    while waiting:  # a loop, since every torch function of a pass comes here
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (tuple, list)):
            waiting += item[::-1]
        elif type(item) in _SIMPLE:
            continue
        elif isinstance(item, Mapping):
            waiting += list(item.values())[::-1]
        elif _is_dataclass(item):
            waiting += [getattr(item, field.name, None) for field in dataclasses.fields(item)][::-1]


def outputs_in(value: Any) -> list[Tensor]:
    """Return all tensors in a pass's return value, inside any objects. Numbers and arrays become tensors.

    :param value: the return value
    :raises RuntimeError: when a part of it cannot be searched, or when it has no tensor
    """
    found: list[Tensor] = []
    met: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (bool, int, float, complex)) or getattr(item, "dtype", None) in _NUMBERS:
            found.append(torch.as_tensor(item))
        elif not isinstance(item, _WITHOUT_NUMBERS) and id(item) not in met:
            met[id(item)] = item  # kept, so that no other object gets its id
            waiting += reversed(_parts(item))
    if not found:
        raise RuntimeError(
            f"the forward pass must return its outputs, and returned {type(value).__name__} without a tensor: pass "
            "forward=, a function that runs the network and returns them"
        )
    return found


def _parts(item: Any) -> list[Any]:
    """Return the parts of an object: a container's items, or its attributes."""
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, (tuple, list, np.ndarray)):
        return list(item.flat if isinstance(item, np.ndarray) else item)
    if type(item) in _pytree.SUPPORTED_NODES:
        return list(_pytree.SUPPORTED_NODES[type(item)].flatten_fn(item)[0])
    slots = [getattr(kind, "__slots__", ()) for kind in type(item).__mro__]
    names = {name for each in slots for name in ((each,) if isinstance(each, str) else each)} - {"__dict__"}
    attributes = getattr(item, "__dict__", None)
    if isinstance(item, _UNSEEN) or (attributes is None and not any(slots)):
        raise RuntimeError(
            f"the forward pass must return tensors, and returned a {type(item).__name__}, which may hide "
            "them: pass forward=, a function that runs the network and returns its outputs as tensors"
        )
    return [*(attributes or {}).values(), *(getattr(item, name, None) for name in sorted(names))]


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply a function to every tensor in nested dictionaries, tuples, lists and dataclasses.

    Arrays become tensors first.

    :param function: takes a tensor, usually returns one
    :param value: the nested value. Other values in it are kept.
    :return: a nested value of the same structure
    """
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, item) for item in value)
    if _is_dataclass(value):
        made = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(made, field.name, map_tensors(function, getattr(value, field.name, None)))
        return made
    return value


def chunks(batch: Any, rows: int) -> Iterator[Any]:
    """Cut nested tensors along their first axis.

    :param batch: nested tensors, each [rows, ...]
    :param rows: maximum rows of one part
    :return: the parts in order, of the same structure
    """
    whole = len(next(tensors_in(batch)))
    if whole <= rows:
        yield batch
        return
    for start in range(0, whole, rows):
        part = slice(start, start + rows)
        yield map_tensors(itemgetter(part), batch)
