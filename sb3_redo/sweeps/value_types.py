"""Checks whether a YAML value can be that of a hyper-parameter, by the algorithm's own annotation."""

import re
import types
import typing
from collections.abc import Callable
from inspect import Parameter
from typing import Any

ZOO_SETTINGS: dict[str, Any] = {
    "n_timesteps": float,  # the zoo makes whole numbers of 1e6
    "n_envs": int,
    "normalize": bool | str | dict,
    "env_wrapper": Any,
    "vec_env_wrapper": Any,
    "env_kwargs": Any,
    "frame_stack": int,
    "noise_type": str | None,
    "noise_std": float,
    "monitor_kwargs": Any,
}
"""What the zoo reads itself, besides what it gives to the algorithm, and what it takes there."""
# The zoo makes "lin_1e-3" a linear schedule.
_SCHEDULE = re.compile(r"[a-z]+_[-+.0-9e]+")
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str) and not _reads_as_number(value)),
    list: ("a list", lambda value: isinstance(value, list)),
    dict: ("a mapping", lambda value: isinstance(value, dict)),
    type(None): ("", lambda value: value is None),
    _SCHEDULE: ("", lambda value: isinstance(value, str) and _SCHEDULE.fullmatch(value) is not None),
}
"""Kinds of YAML values: what they are called, if a message names them, and how they are known."""


def complaint_about(name: str, value: Any, parameters: dict[str, Parameter]) -> str | None:
    """Say what is wrong with a value, if anything is.

    Annotations of what no YAML value is, such as classes and functions, allow the text that the zoo makes them of.

    :param name: of a hyper-parameter of the algorithm or of the zoo
    :param parameters: of the algorithm
    """
    if name not in ZOO_SETTINGS and name not in parameters:
        return None
    hint = ZOO_SETTINGS[name] if name in ZOO_SETTINGS else parameters[name].annotation
    kinds = _kinds(hint)
    if not kinds or any(_KINDS[kind][1](value) for kind in kinds):
        return None
    wanted = " or ".join(words for kind, (words, _) in _KINDS.items() if kind in kinds and words)
    return f"expected {wanted}, got {value!r}{_hint(value, kinds)}"


def _kinds(hint: Any) -> set[Any]:
    """Return the kinds of YAML values that an annotation allows, none where it says nothing."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        each = [_kinds(part) for part in typing.get_args(hint)]
        return set() if set() in each else set().union(*each)
    if hint in (int, float, bool, str, type(None)):
        return {hint}
    if hint is None:
        return {type(None)}
    if origin is dict or hint is dict:
        return {dict, str}
    if origin is tuple:
        return {list}
    if origin is type:
        return {str}
    if Callable in (origin, hint) or hint is typing.Callable:
        return {_SCHEDULE}
    return set()


def _hint(value: Any, kinds: set[Any]) -> str:
    if isinstance(value, str) and _reads_as_number(value):
        if float in kinds:
            return f", which is text to YAML: write {_with_point(value)}"
        if int in kinds and float(value).is_integer():
            return f", which is text to YAML: write {int(float(value))}"
    return ""


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _with_point(text: str) -> str:
    """Write a number as YAML 1.1 wants it: 1e-4 as 1.0e-4."""
    mantissa, e, exponent = text.lower().partition("e")
    if not e:
        return text
    return f"{mantissa if '.' in mantissa else f'{mantissa}.0'}e{exponent if exponent[:1] in '+-' else f'+{exponent}'}"
