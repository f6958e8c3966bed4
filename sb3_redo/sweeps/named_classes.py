"""Looks up the dotted paths in a sweep file. Imports modules, and builds only callbacks."""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.optim import Optimizer

from sb3_redo.networks.scalable import Scalable, Scaling
from sb3_redo.sweeps.zoo_python import UNKNOWN, read_python
from sb3_redo.validation import one_of

_GIVEN = ("observation_space", "action_space", "lr_schedule", "spaces_and_schedule", "settings", "args", "kwargs")
"""Arguments of policies that ``policy_kwargs`` cannot set."""
_CLASSES = {
    "optimizer_class": Optimizer,
    "features_extractor_class": BaseFeaturesExtractor,
    "activation_fn": nn.Module,
}
"""Settings of policies whose values are classes."""
_MOST_NEURONS = 10**6
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def import_named(module: str) -> ModuleType:
    """Import a module named in a file.

    Refuses Python's own modules and ``__main__`` modules, because importing some of them has effects.

    :raises ValueError: on a refused module, or when the import fails
    """
    parts = module.split(".") if _PATH.fullmatch(module) else [""]
    if not parts[0] or "__main__" in parts:
        raise ValueError(f"expected the name of a module that can be imported, got {module!r}")
    if parts[0] in sys.stdlib_module_names:
        raise ValueError(f"expected a module of a package that extends the zoo, got {module!r} of Python itself")
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # any error of the import
        raise ValueError(f"{module} cannot be imported: {str(error) or type(error).__name__}") from None


def _object_named(path: Any, wanted: str) -> Any:
    if not isinstance(path, str) or "." not in path:
        raise ValueError(f"expected the dotted path of {wanted}, got {path!r}")
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_named(module), name)
    except AttributeError as error:
        raise ValueError(str(error)) from None


def class_named(path: Any, base: type) -> type:
    """Return the class of a dotted path, without calling it.

    :raises ValueError: when there is no such class, or it is not a subclass of ``base``
    """
    found = _object_named(path, f"a subclass of {base.__name__}")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"expected a subclass of {base.__name__}, got {path}")
    return found


def check_callbacks(callbacks: Any) -> None:
    """Build callbacks as the zoo does. Calls only subclasses of ``BaseCallback``.

    :raises ValueError: with the reason if one cannot be built
    """
    for path, settings in _each(callbacks, "callback"):
        kind = class_named(path, BaseCallback)
        try:
            kind(**settings)
        except (Exception, SystemExit) as error:
            raise ValueError(str(error) or type(error).__name__) from None


def check_wrappers(wrappers: Any) -> None:
    """Look up wrappers of environments and the names of their settings, without calling any.

    :raises ValueError: saying what is wrong
    """
    for path, settings in _each(wrappers, "wrapper"):
        wrapper = _object_named(path, "a wrapper")
        if not callable(wrapper):
            raise ValueError(f"expected a class or function that wraps an environment, got {path}")
        try:
            signature = inspect.signature(wrapper)
        except ValueError:  # some functions written in C have no signature
            continue
        try:
            signature.bind(UNKNOWN, **settings)
        except TypeError as error:
            raise ValueError(f"{path}: {error}") from None


def _each(named: Any, what: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the paths and settings of a list of callbacks or wrappers, in the zoo's order."""
    for each in named if isinstance(named, list) else [] if named is None else [named]:
        if isinstance(each, dict) and len(each) != 1:
            raise ValueError(f"expected one {what} with its settings, got {each!r}: check the indentation")
        path, settings = next(iter(each.items())) if isinstance(each, dict) else (each, {})
        if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
            raise ValueError(f"expected a mapping of settings of {path}, got {settings!r}")
        yield path, settings


def policy_class(aliases: Mapping[str, type], policy: Any) -> type:
    """Return the class of a policy, given in the zoo's form.

    :param aliases: the algorithm's names for its policies
    :raises ValueError: when there is no such policy
    """
    if isinstance(policy, str) and "." in policy:
        return class_named(policy, BasePolicy)
    try:
        return aliases[one_of("policy", policy, tuple(aliases))]
    except TypeError as error:
        raise ValueError(str(error)) from None


def check_policy_settings(policy: type, settings: Any) -> None:
    """Check the names of a policy's settings, its classes, and the values of a scalable policy's own.

    :param settings: a mapping, or Python text, which is read and not run
    :raises ValueError: naming what is wrong
    """
    if isinstance(settings, str):
        settings = read_python(settings)
    if settings is None or settings is UNKNOWN:
        return
    if not isinstance(settings, dict):
        raise ValueError(f"expected a mapping of policy_kwargs, got {settings!r}")
    of_each = [inspect.signature(kind).parameters for kind in policy.__mro__ if kind is not object]
    known = {name for parameters in of_each for name in parameters if name not in _GIVEN}
    for name in settings:
        one_of("policy_kwargs", name, sorted({*known, *Scaling.__dataclass_fields__} if _scales(policy) else known))
    for name, base in _CLASSES.items():
        found = settings.get(name, UNKNOWN)
        if isinstance(found, str) and name == "optimizer_class" and _scales(policy):
            class_named(found, base)
        elif isinstance(found, str):
            text = f'policy_kwargs: "dict({name}=…)"'
            raise ValueError(f"{name} has to be a class, and {found!r} is text: write {text}, which the zoo evaluates")
        elif found is not None and found is not UNKNOWN and not (isinstance(found, type) and issubclass(found, base)):
            raise ValueError(f"expected a subclass of {base.__name__} for {name}, got {found!r}")
    sizes = settings.get("net_arch")
    for layers in sizes.values() if isinstance(sizes, dict) else [sizes]:
        if layers is not None and layers is not UNKNOWN and not _are_layers(layers):
            raise ValueError(f"expected a list of numbers of neurons for net_arch, or a mapping to such, got {sizes!r}")
    if _scales(policy):
        own = {name: settings[name] for name in Scaling.__dataclass_fields__ if name in settings}
        Scaling(**{name: value for name, value in own.items() if value is not UNKNOWN})


def _are_layers(layers: Any) -> bool:
    return isinstance(layers, (list, tuple)) and all(
        size is UNKNOWN or (isinstance(size, int) and not isinstance(size, bool) and 0 < size < _MOST_NEURONS)
        for size in layers
    )


def _scales(policy: type) -> bool:
    return issubclass(policy, Scalable)
