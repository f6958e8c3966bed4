"""What is logged at a gradient step."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Point:
    """What is logged at a gradient step."""

    step: int
    values: dict[str, Any] = field(default_factory=dict)
