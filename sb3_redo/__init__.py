"""Measure and recycle dormant neurons in Stable-Baselines3 agents."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_redo.by_hand import measure_dormancy as measure_dormancy
    from sb3_redo.by_hand import recycle_dormant as recycle_dormant
    from sb3_redo.by_hand import trace_wiring as trace_wiring
    from sb3_redo.callbacks.dormancy import DormancyCallback as DormancyCallback
    from sb3_redo.callbacks.redo import ReDoCallback as ReDoCallback

__version__ = "0.2.0"

__all__ = ["DormancyCallback", "ReDoCallback", "measure_dormancy", "recycle_dormant", "trace_wiring"]

_ROOMS = {
    "DormancyCallback": "callbacks.dormancy",
    "ReDoCallback": "callbacks.redo",
    "measure_dormancy": "by_hand",
    "recycle_dormant": "by_hand",
    "trace_wiring": "by_hand",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: torch takes seconds, and the command line's --help does without.
    if name in _ROOMS:
        return getattr(import_module(f"sb3_redo.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
