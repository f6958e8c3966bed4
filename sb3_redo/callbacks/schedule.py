"""When a callback acts, in gradient steps."""

from typing import Any

from sb3_redo.validation import non_negative_integer, optional_integer, positive_integer


def is_due(period: int, before: int, gradient_step: int) -> bool:
    """Return whether a multiple of a period lies among some gradient steps.

    :param period: in gradient steps
    :param before: the gradient step before the first of them
    :param gradient_step: the last of them
    """
    return gradient_step // period > before // period


class Schedule:
    """A period from a first gradient step on, up to, not including, another one.

    :param name: what the period is called, for messages
    :param period: in gradient steps
    :param start: the first gradient step
    :param stop: the gradient step before which it ends; never if not given
    :raises TypeError: when one is no integer
    :raises ValueError: when one is out of range
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
        """The period and its bounds in words."""
        start = f" from gradient step {self.start}" if self.start else ""
        stop = "" if self.stop is None else f" up to gradient step {self.stop}"
        return f"every {self.period} gradient steps{start}{stop}"

    def is_due(self, before: int, gradient_step: int) -> bool:
        """Return whether the period is over at the last of some gradient steps, and that step is within the bounds.

        :param before: the gradient step before the first of them
        :param gradient_step: the last of them
        """
        within = self.start <= gradient_step and (self.stop is None or gradient_step < self.stop)
        return within and is_due(self.period, before, gradient_step)
