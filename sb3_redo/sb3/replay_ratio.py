"""Converts a replay ratio to SB3's settings: ``gradient_steps`` after every ``train_freq`` steps."""

import re
from fractions import Fraction
from typing import Any, NamedTuple

LONGEST_ROLLOUT = 1000
"""Largest number of steps between two ``train()`` calls. A longer schedule suggests a rounded ratio."""
# A fraction with an exponent of nine digits would use up all memory.
_LONGEST = 30
_EXPONENT = re.compile(r"[eE]([-+]?\d+)")


class TrainingSchedule(NamedTuple):
    """Holds SB3's two settings.

    :param train_freq: steps of every environment between ``train()`` calls
    :param gradient_steps: per ``train()`` call

    """

    train_freq: int
    gradient_steps: int


def training_schedule(replay_ratio: Any, n_envs: int = 1) -> TrainingSchedule:
    """Return the shortest schedule that gives a replay ratio exactly.

    :param replay_ratio: gradient steps per environment step (transitions of all environments); a number, or a fraction
        as text, such as ``"1/3"``
    :param n_envs: number of environments
    :raises ValueError: when it is not positive, or no schedule with at most :data:`LONGEST_ROLLOUT` steps gives it

    >>> training_schedule(0.25)
    TrainingSchedule(train_freq=4, gradient_steps=1)
    >>> training_schedule(2, n_envs=4)
    TrainingSchedule(train_freq=1, gradient_steps=8)
    """
    try:
        # Read as a decimal: 0.1 is one tenth, not the nearest binary number.
        text = str(replay_ratio)
        if len(text) > _LONGEST or ((exponent := _EXPONENT.search(text)) and abs(int(exponent[1])) > _LONGEST):
            raise ValueError
        ratio = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"a replay ratio must be a number or a fraction such as 1/3, got {replay_ratio!r}") from None
    if isinstance(replay_ratio, bool) or ratio <= 0:
        raise ValueError(f"a replay ratio must be positive, got {replay_ratio!r}")
    per_step = ratio * n_envs
    if per_step.denominator > LONGEST_ROLLOUT:
        near = max(per_step.limit_denominator(LONGEST_ROLLOUT), Fraction(1, LONGEST_ROLLOUT)) / n_envs
        raise ValueError(
            f"no train_freq up to {LONGEST_ROLLOUT} gives a replay ratio of {replay_ratio} with n_envs={n_envs}; "
            f'"{near}" can be had'
        )
    return TrainingSchedule(per_step.denominator, per_step.numerator)


def target_update_interval(target_period: int, train_freq: Any, gradient_steps: int, n_envs: int = 1) -> int:
    """Return SB3's ``target_update_interval`` for a target period in gradient steps.

    SB3 counts environment steps, so the same interval means another target period at every replay ratio.

    :param target_period: in gradient steps
    :param train_freq: as in SB3, in steps
    :param gradient_steps: as in SB3
    :raises ValueError: when no setting gives the period exactly

    >>> target_update_interval(200, train_freq=4, gradient_steps=1)
    800
    """
    every = train_freq[0] if isinstance(train_freq, (list, tuple)) and train_freq[1] == "step" else train_freq
    if not isinstance(every, int):
        raise ValueError(f"a target period needs a train_freq in steps, got {train_freq!r}")
    made = gradient_steps if gradient_steps >= 0 else every * n_envs
    if made == 0 or target_period % made:
        near = max(round(target_period / made), 1) * made if made else None
        hint = f"; {near} can be had" if near else ""
        raise ValueError(
            f"no target_update_interval gives a target period of {target_period} gradient steps when {made} are made "
            f"at a time{hint}"
        )
    return target_period // made * every * n_envs
