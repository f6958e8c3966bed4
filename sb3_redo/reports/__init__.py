"""Reports of finished and unfinished sweeps, from their run folders alone: neither torch nor SB3 is imported here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sb3_redo.validation import needs

with needs("report", "a report"):
    import pandas  # noqa: F401  nearly every module of this room imports them
    import pyarrow  # noqa: F401

if TYPE_CHECKING:
    from sb3_redo.reports.build import Report as Report
    from sb3_redo.reports.build import write_report as write_report
    from sb3_redo.reports.points import read_points as read_points
    from sb3_redo.reports.points import write_points as write_points
    from sb3_redo.reports.sweep_folder import read_sweep as read_sweep
    from sb3_redo.reports.tables import read_curves as read_curves

__all__ = ["Report", "read_curves", "read_points", "read_sweep", "write_points", "write_report"]

_ROOMS = {
    "Report": "build",
    "write_report": "build",
    "read_points": "points",
    "write_points": "points",
    "read_sweep": "sweep_folder",
    "read_curves": "tables",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: a training that writes its points needs no figures.
    if name in _ROOMS:
        return getattr(import_module(f"sb3_redo.reports.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
