"""Handles nested inputs and outputs: dictionaries, tuples and lists of tensors."""

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested dictionaries, tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply a function to every tensor in nested dictionaries, tuples and lists. Arrays become tensors first.

    :param function: takes a tensor, and most often returns one
    :param value: the nested value; other values in it stay as they are
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
    return value


def chunks(batch: Any, rows: int) -> Iterator[Any]:
    """Cut nested tensors along their first axis.

    :param batch: nested tensors, each [rows, ...]
    :param rows: most rows of one part
    :return: the parts in order, of the same structure
    """
    whole = len(next(tensors_in(batch)))
    if whole <= rows:
        yield batch
        return
    for start in range(0, whole, rows):
        part = slice(start, start + rows)
        yield map_tensors(itemgetter(part), batch)
