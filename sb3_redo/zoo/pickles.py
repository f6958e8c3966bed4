"""Unpickles what other releases and packages saved: spaces of OpenAI Gym, settings, statistics of ``VecNormalize``."""

import importlib
import pickle
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecNormalize
from torch import device, nn
from torch.optim import Optimizer

_KNOWN_PACKAGES = (
    "builtins",
    "collections",
    "gymnasium",
    "numpy",
    "sb3_contrib",
    "sb3_redo",
    "stable_baselines3",
    "torch",
)
_KNOWN_BASES = (ActionNoise, BasePolicy, Optimizer, RunningMeanStd, Space, VecNormalize, nn.Module, np.generic)
_KNOWN = {
    *(
        "builtins." + name
        for name in (
            [
                "bool",
                "bytearray",
                "bytes",
                "complex",
                "dict",
                "float",
                "frozenset",
                "int",
                "list",
                "set",
                "slice",
                "str",
                "tuple",
            ]
        )
    ),
    *("collections." + name for name in ("OrderedDict", "defaultdict", "deque")),
    *("numpy." + name for name in ("ndarray", "dtype")),
    *("numpy._core." + name for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")),
}


class Unreadable:
    """Stands for an object whose class cannot be imported, or is not known where only known classes are allowed."""

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


class _Unpickler(pickle.Unpickler):
    """Reads classes of ``gym`` as those of ``gymnasium``, and puts :class:`Unreadable` where there is no class.

    :param safe: whether to read known classes alone, which run no code of the file's choice
    """

    def __init__(self, data: bytes, *, safe: bool):
        super().__init__(BytesIO(data))
        self.safe = safe
        self.unreadable: dict[str, None] = {}

    def find_class(self, module: str, name: str) -> Any:
        package, dot, rest = module.partition(".")
        if module.startswith("numpy.random"):
            return Unreadable  # random streams of spaces, which differ between releases and are not needed
        module = {"gym": "gymnasium"}.get(package, package) + dot + rest
        module = module.replace("numpy.core", "numpy._core")
        try:
            if self.safe and package not in ("gym", *_KNOWN_PACKAGES):
                raise ImportError
            found = super().find_class(module, name)
        except (ImportError, AttributeError):
            found = None
        if found is None or (self.safe and not _is_known(found)):
            self.unreadable[f"{package}{dot}{rest}.{name}"] = None
            return Unreadable
        return found


def _is_known(found: Any) -> bool:
    """Return whether calling what a pickle names does nothing but make an object of known kind."""
    if found in (device, TrainFreq, TrainFrequencyUnit):
        return True
    if isinstance(found, type) and issubclass(found, _KNOWN_BASES):
        return found.__module__.partition(".")[0] in _KNOWN_PACKAGES
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}" in _KNOWN


def unpickled(data: bytes, *, safe: bool) -> tuple[Any, tuple[str, ...]]:
    """Return what a pickle holds, with :class:`Unreadable` where it cannot be read, and what could not be read.

    :param data: the pickle
    :param safe: whether to read known classes alone: those of tensors, arrays, spaces, modules, optimizers and SB3
    :return: the object, and the dotted paths of the classes and functions that could not be read
    """
    unpickler = _Unpickler(data, safe=safe)
    try:
        found = unpickler.load()
    except Exception as error:  # what pickles of other releases end in is without limit
        return Unreadable(), (*unpickler.unreadable, f"{type(error).__name__}: {error}")
    return found, tuple(unpickler.unreadable)


def unreadable_parts(value: Any) -> Iterator[Any]:
    """Yield the keys of a dictionary whose values hold something unreadable."""
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
    """Read statistics of ``VecNormalize``, which was saved by any release.

    :param path: the pickle
    :param safe: see :func:`unpickled`
    :raises RuntimeError: when it cannot be read
    """
    statistics, unreadable = unpickled(path.read_bytes(), safe=safe)
    if not isinstance(statistics, VecNormalize):
        why = f"it needs {unreadable[0]}" if unreadable else f"it holds a {type(statistics).__name__}"
        raise RuntimeError(f"{path} has no statistics of VecNormalize that can be read: {why}")
    return statistics


def module_of(path: str) -> str:
    """Return the package of a dotted path, which is what is to be installed."""
    return path.partition(".")[0]


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True
