"""Sweeps: many ordinary zoo trainings that differ in a grid of settings."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_redo.sweeps.run_folder import RunFolder as RunFolder


def __getattr__(name: str) -> Any:
    # Imported on first access: processes that only start trainings do not need torch.
    if name == "RunFolder":
        return import_module("sb3_redo.sweeps.run_folder").RunFolder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
