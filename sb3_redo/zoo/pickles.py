"""Unpickles files of other releases and packages: spaces of OpenAI Gym, settings, ``VecNormalize`` statistics."""

import importlib
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Space
from numpy._core import multiarray, numeric
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import device, nn
from torch.optim import Optimizer

_KNOWN_MODULES = re.compile(
    r"gymnasium\.spaces(\..*)?|numpy|torch\.nn\.modules\..*|torch\.optim(\..*)?|stable_baselines3\..*|sb3_contrib\..*"
    r"|sb3_redo\.networks(\..*)?"
)
"""Modules of classes with known bases. Importing another module might run code."""
_KNOWN_BASES = (ActionNoise, BasePolicy, Optimizer, RunningMeanStd, Space, VecNormalize, nn.Module, np.generic)
_KNOWN_CALLS = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy._core.multiarray", "scalar"): multiarray.scalar,
    ("numpy._core.numeric", "_frombuffer"): numeric._frombuffer,  # type: ignore[attr-defined]
    ("torch", "device"): device,
}
"""Functions that a known pickle calls. Objects of known classes are made without their constructors."""


class Unreadable:
    """Stands for an object whose class cannot be imported, or is not allowed."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "Unreadable":
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Unpickler(pickle._Unpickler):
    """Reads classes of ``gym`` as those of ``gymnasium``, and missing classes as :class:`Unreadable`."""

    def __init__(self, data: bytes):
        super().__init__(BytesIO(data))
        self.unreadable: dict[str, None] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("numpy.random"):
            return Unreadable  # random streams of spaces differ between releases and are not needed
        package, dot, rest = module.partition(".")
        renamed = {"gym": "gymnasium"}.get(package, package) + dot + rest
        try:
            return self.found(renamed.replace("numpy.core", "numpy._core"), name)
        except (ImportError, AttributeError):
            self.unreadable[f"{module}.{name}"] = None
            return Unreadable

    def found(self, module: str, name: str) -> Any:
        """Import a name of a pickle. :raises ImportError: when it does not exist"""
        return super().find_class(module, name)


_RUN: dict[int, Any] = dict(pickle._Unpickler.dispatch)
"""The method of each pickle opcode. The class in C has no such table."""


class _SafeUnpickler(_Unpickler):
    """Reads only known classes, calls nothing else, and changes no class. So a file cannot choose what runs."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(_RUN)

    def found(self, module: str, name: str) -> Any:
        """Import a name of a pickle. :raises ImportError: when it is not known"""
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) in _KNOWN_CALLS:
            return _KNOWN_CALLS[module, name]
        if "." in name or not _KNOWN_MODULES.fullmatch(module):
            raise ImportError
        found = super().found(module, name)
        is_known = isinstance(found, type) and issubclass(found, _KNOWN_BASES)
        if not is_known or not _KNOWN_MODULES.fullmatch(found.__module__):
            raise ImportError
        return found

    def load_reduce(self) -> None:
        called = self.stack[-2]
        is_known = any(called is known for known in (Unreadable, *_KNOWN_CALLS.values()))
        self.allow(is_known or type(called) is Unreadable, f"it calls {called!r}")
        _RUN[pickle.REDUCE[0]](self)

    def load_newobj(self) -> None:
        self.allow(isinstance(self.stack[-2], type), "it builds an object from something that is not a class")
        _RUN[pickle.NEWOBJ[0]](self)

    def load_build(self) -> None:
        self.allow(not isinstance(self.stack[-2], (type, FunctionType)), "it changes a class or a function")
        _RUN[pickle.BUILD[0]](self)

    def refused(self) -> None:
        self.allow(False, "it has calls of a form that is not used here")

    def allow(self, condition: bool, otherwise: str) -> None:
        if not condition:
            raise pickle.UnpicklingError(otherwise)

    dispatch |= {pickle.REDUCE[0]: load_reduce, pickle.NEWOBJ[0]: load_newobj, pickle.BUILD[0]: load_build}
    dispatch |= dict.fromkeys((pickle.INST[0], pickle.OBJ[0], pickle.NEWOBJ_EX[0]), refused)


def unpickled(data: bytes, *, safe: bool) -> tuple[Any, tuple[str, ...]]:
    """Return a pickle's object, with :class:`Unreadable` in place of unreadable parts, and the names of these.

    :param data: the pickle
    :param safe: whether to read only known classes: those of tensors, arrays, spaces, modules, optimizers and SB3
    :return: the object, and the dotted paths of unreadable classes and functions
    """
    unpickler = (_SafeUnpickler if safe else _Unpickler)(data)
    try:
        found = unpickler.load()
    except Exception as error:  # pickles of other releases raise errors of any kind
        return Unreadable(), (*unpickler.unreadable, f"{type(error).__name__}: {error}")
    return found, tuple(unpickler.unreadable)


def unreadable_parts(value: Any) -> Iterator[Any]:
    """Yield the keys of a dictionary whose values have unreadable parts."""
    for key, item in value.items():
        if any(part is Unreadable or isinstance(part, Unreadable) for part in _parts(item)):
            yield key


def _parts(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _parts(item)


def read_statistics(path: Path, *, safe: bool) -> VecNormalize:
    """Read ``VecNormalize`` statistics, saved by any release.

    :param path: the pickle
    :param safe: see :func:`unpickled`
    :raises RuntimeError: when it cannot be read
    """
    statistics, unreadable = unpickled(path.read_bytes(), safe=safe)
    if not isinstance(statistics, VecNormalize):
        why = needed(unreadable[0]) if unreadable else f"it holds a {type(statistics).__name__}"
        raise RuntimeError(f"{path} has no statistics of VecNormalize that can be read: {why}")
    return statistics


def needed(unreadable: str) -> str:
    """Return the unreadable part of :func:`unpickled` in words: a class, or everything, with the error."""
    return f"it cannot be unpickled ({unreadable})" if " " in unreadable else f"it needs {unreadable}"


def module_of(path: str) -> str:
    """Return the package of a dotted path, for installing it."""
    return path.partition(".")[0]


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    try:
        importlib.import_module(package)
    except Exception:  # third-party code: a broken package is as good as none
        return False
    return True
