"""Which cases of a test run by default and which are slow."""

from collections.abc import Container, Iterable, Mapping
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], always: Container[Any]) -> list[Any]:
    """Mark all cases of one argument slow but those in ``always``; names of a mapping become the cases' names."""
    return [
        pytest.param(case, id=name, marks=() if (name or case) in always else pytest.mark.slow)
        for name, case in _named(cases)
    ]


def alternating(first: Iterable[Any], second: Iterable[Any]) -> list[Any]:
    """Return all pairs for two arguments: each of ``second`` is met by default with one of ``first``, in turn.

    All other pairs are slow.
    """
    ones = _named(first)
    return [
        pytest.param(
            one,
            other,
            id=f"{name or one}-{other_name or other}",
            marks=() if number % len(ones) == turn else pytest.mark.slow,
        )
        for number, (other_name, other) in enumerate(_named(second))
        for turn, (name, one) in enumerate(ones)
    ]


def _named(cases: Iterable[Any]) -> list[tuple[str | None, Any]]:
    return list(cases.items()) if isinstance(cases, Mapping) else [(None, case) for case in cases]
