"""Declares settings of trainings with their checks: ``steps: Annotated[int, positive_integer] = 700``.

A check takes name and value. It returns the value to keep, or raises an error that begins with the name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

from sb3_redo.validation import listed, one_of, positive_integer

Check = Callable[[str, Any], Any]
_Self = TypeVar("_Self", bound="Settings")


class Settings:
    """Base of frozen dataclasses whose fields are annotated with checks.

    Pydantic is not used: it takes ``"5"`` and ``True`` for numbers, or refuses 1e3 and lists when ``strict``. Its
    messages name neither the value nor the nearest name.

    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range or an unknown name
    """

    training: ClassVar[str]
    """The kind of training, for messages."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            for check in getattr(hint, "__metadata__", ()):
                object.__setattr__(self, name, check(name, getattr(self, name)))

    @classmethod
    def of(cls: type[_Self], settings: Mapping[str, Any]) -> _Self:
        """Make settings from names and values.

        :raises ValueError: on an unknown name, with the nearest one, or on a missing one
        """
        for name in settings:
            one_of(f"a setting of {cls.training}", name, cls.names())
        return cls(**settings)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all settings."""
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]


def choice(*choices: str) -> Check:
    """Return a check for one of some names."""
    return lambda name, value: one_of(name, value, choices)


def optional(check: Check) -> Check:
    """Return a check that lets ``None`` pass."""
    return lambda name, value: None if value is None else check(name, value)


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """Check a list of positive integers."""
    return tuple(positive_integer(name, size) for size in listed(name, value))


Sizes = Annotated[tuple[int, ...], sizes]
Count = Annotated[int, positive_integer]
OptionalCount = Annotated[int | None, optional(positive_integer)]
