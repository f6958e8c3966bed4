"""Reports of finished and unfinished sweeps, from their run folders alone: neither torch nor SB3 is imported here.

Trainings write their points through this room, so that nothing here draws: :mod:`sb3_redo.reports.build` does.
"""

from sb3_redo.validation import needs

with needs("report", "a report"):
    from sb3_redo.reports.points import read_points, write_points
    from sb3_redo.reports.sweep_folder import read_sweep_folder
    from sb3_redo.reports.tables import read_curves

__all__ = ["read_curves", "read_points", "read_sweep_folder", "write_points"]
