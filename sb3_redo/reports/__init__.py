"""Reports of finished and unfinished sweeps, from their run folders alone. Imports neither torch nor SB3.

Trainings import this package to write their points, so it imports no plotting. :mod:`sb3_redo.reports.build` draws.
"""

from sb3_redo.validation import needs

with needs("report", "a report"):
    from sb3_redo.reports.points import read_points, write_points
    from sb3_redo.reports.sweep_folder import read_sweep_folder
    from sb3_redo.reports.tables import read_curves

__all__ = ["read_curves", "read_points", "read_sweep_folder", "write_points"]
