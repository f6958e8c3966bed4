"""Schedules of callbacks, in gradient steps."""

from typing import Any

from sb3_redo.validation import non_negative_integer, optional_integer, positive_integer


def is_due(period: int, before: int, gradient_step: int) -> bool:
    """Return whether a multiple of a period was reached.

    :param period: in gradient steps
    :param before: gradient steps made at the previous check
    :param gradient_step: gradient steps made now
    """
    return gradient_step // period > before // period


class Schedule:
    """A period within [start, stop) in gradient steps.

    :param name: name of the period's setting, for messages
    :param period: in gradient steps
    :param start: the first gradient step
    :param stop: the gradient step before which it ends. Default: never.
    :raises TypeError: when a setting is not an integer
    :raises ValueError: when a setting is out of range
    """

    def __init__(self, name: str, period: Any, start: Any = 0, stop: Any = None):
        self.period = positive_integer(name, period)
        self.start = non_negative_integer("start", start)
        self.stop = optional_integer("stop", stop)
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop must be greater than start, got start={self.start} and stop={self.stop}")

    def __str__(self) -> str:
        return f"{self.period} {self.start} {self.stop}"

    @property
    def described(self) -> str:
        """Return the period and its bounds in words."""
        start = f" from gradient step {self.start}" if self.start else ""
        stop = "" if self.stop is None else f" up to gradient step {self.stop}"
        return f"every {self.period} gradient steps{start}{stop}"

    def is_due(self, before: int, gradient_step: int) -> bool:
        """Return whether a multiple of the period was reached, and the gradient step is within the bounds.

        :param before: gradient steps made at the previous check
        :param gradient_step: gradient steps made now
        """
        within = self.start <= gradient_step and (self.stop is None or gradient_step < self.stop)
        return within and is_due(self.period, before, gradient_step)
