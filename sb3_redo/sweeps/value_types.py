"""Checks YAML values of hyper-parameters against the algorithm's annotation and a range."""

import math
import re
import sys
import types
import typing
from collections.abc import Callable
from inspect import Parameter
from typing import Any

ZOO_SETTINGS: dict[str, Any] = {
    "n_timesteps": float,  # the zoo converts 1e6 to a whole number
    "n_envs": int,
    "normalize": bool | str | dict,
    "env_wrapper": Any,
    "vec_env_wrapper": Any,
    "env_kwargs": dict | None,
    "frame_stack": int,
    "noise_type": str | None,
    "noise_std": float,
    "monitor_kwargs": dict | str | None,
}
"""The zoo's own settings, which do not go to the algorithm, and their types."""
SET_BY_THE_SWEEP = frozenset(("env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model"))
"""Arguments of the algorithm that the zoo's command line sets."""
_MOST = 10**12  # environment steps or transitions: more than any run can make or store
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("gamma", "tau", "gae_lambda"), (0, 1)),
    **dict.fromkeys(("exploration_fraction", "exploration_initial_eps", "exploration_final_eps"), (0, 1)),
    **dict.fromkeys(("n_envs", "frame_stack"), (1, 100_000)),
    **dict.fromkeys(
        ("n_timesteps", "stats_window_size", "batch_size", "buffer_size", "n_steps", "n_epochs"), (1, _MOST)
    ),
    **dict.fromkeys(("train_freq", "target_update_interval", "policy_delay"), (1, _MOST)),
    **dict.fromkeys(("n_critic_updates", "cg_max_steps", "sub_sampling_factor"), (1, _MOST)),
    **dict.fromkeys(
        ("learning_rate", "noise_std", "target_policy_noise", "target_noise_clip"), (0, sys.float_info.max)
    ),
    **dict.fromkeys(("max_grad_norm", "target_kl"), (0, math.inf)),
    **dict.fromkeys(("learning_starts", "top_quantiles_to_drop_per_net"), (0, _MOST)),
    "gradient_steps": (-1, _MOST),
}
"""Smallest and largest sensible values, for every algorithm with the setting."""
# The zoo reads "lin_1e-3" as a linear schedule.
_SCHEDULE = re.compile(r"[a-z]+_([-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)")
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
"""Kinds of YAML values: name, whether messages show it, and a test."""


def complaint_about(name: str, value: Any, parameters: dict[str, Parameter]) -> str | None:
    """Return what is wrong with a value, or ``None``.

    If an annotation allows no YAML value, as for classes and functions, text is allowed: the zoo evaluates it.

    :param name: of a hyper-parameter of the algorithm or of the zoo
    :param parameters: of the algorithm
    """
    if name not in ZOO_SETTINGS and name not in parameters:
        return None
    hint = ZOO_SETTINGS[name] if name in ZOO_SETTINGS else parameters[name].annotation
    kinds = _kinds(hint)
    if not kinds or any(_KINDS[kind][1](value) for kind in kinds):
        return _out_of_range(name, value)
    wanted = " or ".join(words for kind, (words, _) in _KINDS.items() if kind in kinds and words)
    return f"expected {wanted}, got {value!r}{_hint(value, kinds)}"


def _out_of_range(name: str, value: Any) -> str | None:
    if name == "train_freq" and isinstance(value, list):
        if len(value) != 2 or not isinstance(value[0], int) or value[1] not in ("step", "episode"):
            return f"expected a number and step or episode, got {value!r}"
        value = value[0]
    if isinstance(value, str) and (schedule := _SCHEDULE.fullmatch(value)):
        value = float(schedule[1])
    if name not in _RANGES or not isinstance(value, (int, float)):
        return None
    least, most = _RANGES[name]
    if least <= value <= most:
        return None
    limits = f"of at least {least:g}" if most >= sys.float_info.max else f"from {least:g} to {most:g}"
    return f"expected a number {limits}, got {value!r}"


def _kinds(hint: Any) -> set[Any]:
    """Return the kinds of YAML values that an annotation allows, or none without information."""
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
    """Write a number in YAML 1.1's form: 1e-4 as 1.0e-4."""
    mantissa, e, exponent = text.lower().partition("e")
    if not e:
        return text
    return f"{mantissa if '.' in mantissa else f'{mantissa}.0'}e{exponent if exponent[:1] in '+-' else f'+{exponent}'}"
