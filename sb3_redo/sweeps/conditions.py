"""Translates the axes of a sweep's grid into the zoo's hyper-parameters."""

import json
import math
from collections.abc import Mapping
from typing import Any

from sb3_redo.sb3.replay_ratio import target_update_interval, training_schedule
from sb3_redo.validation import needs
from sb3_redo.zoo.policy_names import scalable_policy

with needs("sweep", "a sweep"):
    from sb3_redo.reports.sweep_folder import REPLAY_RATIO, WIDTH

POLICY_KWARGS = "policy_kwargs"
TARGET_PERIOD = "target_period"
"""Gradient steps between two copies of DQN's target network."""
INTERVAL = "target_update_interval"
"""The same in environment steps, as SB3 counts it."""


def entry_of(mapping: str, axis: str) -> str | None:
    """Return the entry that a dotted axis sets: ``activation`` for ``policy_kwargs.activation``, else ``None``."""
    owner, dot, entry = axis.partition(".")
    return entry if dot and owner == mapping else None


def hyperparameters(algorithm: str, base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the zoo's hyper-parameters by which a run differs from its configuration.

    :param algorithm: by the zoo's name
    :param base: the configuration's entry for the environment
    :param changes: hyper-parameters, entries of the policy's such as ``policy_kwargs.activation``, ``replay_ratio``,
        ``target_period`` and ``width``
    :raises ValueError: on an impossible replay ratio or target period, or a width for a policy without one
    """
    entries = {name: value for name, value in changes.items() if entry_of(POLICY_KWARGS, name)}
    found = {
        name: value for name, value in changes.items() if name not in (REPLAY_RATIO, TARGET_PERIOD, WIDTH, *entries)
    }
    for name, value in entries.items():
        entry = str(entry_of(POLICY_KWARGS, name))
        found[POLICY_KWARGS] = _with_entry(found.get(POLICY_KWARGS, base.get(POLICY_KWARGS)), entry, value)
    n_envs = int(found.get("n_envs", base.get("n_envs", 1)))
    if REPLAY_RATIO in changes:
        for name in ("train_freq", "gradient_steps"):
            if name in changes:
                raise ValueError(f"a replay ratio and {name} exclude each other: give one of them")
        found |= training_schedule(changes[REPLAY_RATIO], n_envs)._asdict()
    if TARGET_PERIOD in changes:
        if INTERVAL in changes:
            raise ValueError(f"a target period and {INTERVAL} exclude each other: give one of them")
        schedule = {**base, **found}
        made = schedule["train_freq"], schedule["gradient_steps"]
        found[INTERVAL] = target_update_interval(changes[TARGET_PERIOD], *made, n_envs)
    if WIDTH in changes:
        found["policy"] = scalable_policy(algorithm, found.get("policy", base.get("policy", "")))
        found[POLICY_KWARGS] = _with_entry(found.get(POLICY_KWARGS, base.get(POLICY_KWARGS)), WIDTH, changes[WIDTH])
    return found


def _with_entry(policy_kwargs: Any, name: str, value: Any) -> Any:
    if isinstance(policy_kwargs, str):  # Python text, which the zoo evaluates
        return f"dict({policy_kwargs}, {name}={value!r})"
    return {**(policy_kwargs or {}), name: value}


def python_text(value: Any) -> str:
    """Return a value as Python source without names, because the zoo evaluates ``-params``."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{python_text(key)}: {python_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # in double quotes, so that a shell command can use single quotes
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(python_text, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    return repr(value)
