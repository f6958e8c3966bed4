"""Looks up what a sweep file names by dotted paths: modules are imported, and only callbacks are made."""

import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from torch.optim import Optimizer

from sb3_redo.networks.scalable import Scalable, Scaling
from sb3_redo.validation import one_of

_GIVEN = ("observation_space", "action_space", "lr_schedule", "spaces_and_schedule", "settings", "args", "kwargs")
"""What policies are not given by name in ``policy_kwargs``."""
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def import_named(module: str) -> ModuleType:
    """Import a module that a file names.

    Python's own modules are refused, and those that ``python -m`` runs: some do things when they are imported.

    :raises ValueError: when it is one of these, or cannot be imported
    """
    parts = module.split(".") if _PATH.fullmatch(module) else [""]
    if not parts[0] or "__main__" in parts:
        raise ValueError(f"expected the name of a module that can be imported, got {module!r}")
    if parts[0] in sys.stdlib_module_names:
        raise ValueError(f"expected a module of a package that extends the zoo, got {module!r} of Python itself")
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever it raises while it is imported
        raise ValueError(f"{module} cannot be imported: {error or type(error).__name__}") from None


def class_named(path: Any, base: type) -> type:
    """Return the class of a dotted path, without calling it.

    :raises ValueError: when there is none, or it is no subclass of ``base``
    """
    if not isinstance(path, str) or "." not in path:
        raise ValueError(f"expected the dotted path of a subclass of {base.__name__}, got {path!r}")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_named(module), name)
    except AttributeError as error:
        raise ValueError(str(error)) from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"expected a subclass of {base.__name__}, got {path}")
    return found


def check_callbacks(callbacks: Any) -> None:
    """Make callbacks as the zoo would. What is no subclass of ``BaseCallback`` is never called.

    :raises ValueError: saying why they cannot be made
    """
    for callback in callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]:
        if isinstance(callback, dict) and len(callback) != 1:
            raise ValueError(f"expected one callback with its settings, got {callback!r}: check the indentation")
        path, settings = next(iter(callback.items())) if isinstance(callback, dict) else (callback, {})
        kind = class_named(path, BaseCallback)
        if not isinstance(settings, dict):
            raise ValueError(f"expected a mapping of settings of {path}, got {settings!r}")
        try:
            kind(**settings)
        except Exception as error:
            raise ValueError(str(error) or type(error).__name__) from None


def policy_class(aliases: Mapping[str, type], policy: Any) -> type:
    """Return the class of a policy, given as the zoo takes it.

    :param aliases: the algorithm's names of its policies
    :raises ValueError: when there is none
    """
    if isinstance(policy, str) and "." in policy:
        return class_named(policy, BasePolicy)
    try:
        return aliases[one_of("policy", policy, tuple(aliases))]
    except TypeError as error:
        raise ValueError(str(error)) from None


def check_policy_settings(policy: type, settings: Mapping[str, Any]) -> None:
    """Check the names of a policy's settings, its optimizer's class, and the values of a scalable policy's own.

    :raises ValueError: naming what is wrong
    """
    of_each = [inspect.signature(kind).parameters for kind in policy.__mro__ if kind is not object]
    known = {name for parameters in of_each for name in parameters if name not in _GIVEN}
    for name in settings:
        one_of("policy_kwargs", name, sorted({*known, *Scaling.__dataclass_fields__} if _scales(policy) else known))
    if isinstance(settings.get("optimizer_class"), str):
        class_named(settings["optimizer_class"], Optimizer)
    if _scales(policy):
        Scaling(**{name: settings[name] for name in Scaling.__dataclass_fields__ if name in settings})


def _scales(policy: type) -> bool:
    return issubclass(policy, Scalable)
