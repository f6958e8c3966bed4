"""Checks settings when they are set."""

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class UsageError(ValueError):
    """A request that cannot be fulfilled, for a reason that the user can correct."""


class UnknownNameError(RuntimeError):
    """A setting names something that the model lacks. Raised when training starts. The zoo prunes no trial for it."""


class MissingPackageError(ImportError, UsageError):
    """An optional package is not installed."""


@contextmanager
def needs(extra: str, what: str, instead: str = "") -> Iterator[None]:
    """Import optional packages. If one is missing, name the command that installs it.

    Nested uses raise the outermost message: it names what the user asked for.

    :param extra: the extra of ``sb3-redo`` that installs the packages
    :param what: what needs them: the start of the message
    :param instead: an alternative: the end of the message
    :raises MissingPackageError: when an import within fails
    """
    try:
        yield
    except ImportError as error:
        package = error.name.partition(".")[0] if error.name else f"more packages ({error})"
        message = f'{what} needs {package}: pip install "sb3-redo[{extra}]"{instead and f", or {instead}"}'
        raise MissingPackageError(message, name=error.name) from error


def positive_integer(name: str, value: Any) -> int:
    """Return an integer of at least 1."""
    number = _integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return number


def non_negative_integer(name: str, value: Any) -> int:
    number = _integer(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return number


def optional_integer(name: str, value: Any) -> int | None:
    return None if value is None else non_negative_integer(name, value)


def _integer(name: str, value: Any) -> int:
    # A float such as 1e3 is what YAML makes of a period written that way.
    is_whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int) or is_whole or hasattr(value, "__index__")):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    return int(value)


def finite_number(name: str, value: Any) -> float:
    number = _number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return number


def non_negative_number(name: str, value: Any) -> float:
    number = _number(name, value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    return number


def optional_positive_number(name: str, value: Any) -> float | None:
    number = None if value is None else non_negative_number(name, value)
    if number == 0:
        raise ValueError(f"{name} must be greater than 0, got {value!r}; leave it out for none")
    return number


def fraction(name: str, value: Any) -> float:
    number = non_negative_number(name, value)
    if number > 1:
        raise ValueError(f"{name} must be at most 1, got {value!r}")
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__") or getattr(value, "ndim", 0) > 0:
        hint = " (PyYAML reads 1e-3 as text: write 0.001 or 1.0e-3)" if isinstance(value, str) else ""
        raise TypeError(f"{name} must be a number, got {value!r}{hint}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


_MEANT = {"tau": "threshold", "period": "period", "threshold": "threshold", "freq": "period", "interval": "period"}
"""Names of settings elsewhere, and the endings of ours."""


def printable(text: str) -> str:
    """Return a text without control characters. Files of others may contain those of terminals."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def unknown_argument(function: str, name: str, names: Sequence[str]) -> TypeError:
    """Return an error that suggests the nearest argument.

    :param function: name of the function called
    :param name: the unknown argument
    :param names: its arguments
    """
    ending = next((ending for word, ending in _MEANT.items() if name.endswith(word)), "none")
    near = [known for known in names if known.endswith(ending)]
    near += difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"
    return TypeError(f"{function} has no argument {name}; {hint}")


def explains_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function, so that a misspelt argument raises an error that suggests the nearest one."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def explained(*args: P.args, **settings: P.kwargs) -> R:
        for name in settings:
            if name not in names:
                raise unknown_argument(f"{function.__name__}()", name, names)
        return function(*args, **settings)

    return explained


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of some choices; the error names them and the nearest."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    if value not in choices:
        nearest = difflib.get_close_matches(value, choices, n=1, cutoff=0.4)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}{hint}")
    return value


def some_of(name: str, values: Any, choices: Sequence[str]) -> tuple[str, ...] | None:
    """Return some of the choices, or ``None`` for ``None``. :raises ValueError: on an empty list"""
    if values is None:
        return None
    chosen = tuple(one_of(name, value, choices) for value in listed(name, values))
    if not chosen:
        raise ValueError(
            f"{name} must name at least one {name.removesuffix('s')}, got an empty list; leave it out for all"
        )
    return chosen


def patterns_of_names(name: str, values: Any) -> tuple[str, ...]:
    """Return patterns of layer names."""
    patterns = tuple(listed(name, values))
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise TypeError(f"{name} must be a list of patterns such as 'features_extractor.*', got {pattern!r}")
    return patterns


def listed(name: str, value: Any) -> list[Any]:
    """Return a list. A single string is refused, since it would be read letter by letter."""
    if isinstance(value, (str, dict)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list, got {value!r}")
    return list(value)
