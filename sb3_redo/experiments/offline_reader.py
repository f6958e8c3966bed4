"""Reads sweep files of trainings on stored transitions."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_redo.experiments.offline_settings import OfflineSettings
from sb3_redo.sweeps.settings_reader import ProgramRun, SettingsReader

OFFLINE = "offline"
"""The value of ``algorithm`` in these sweep files."""
_PATHS = ("agent", "replay_buffer", "teacher")


@dataclass(frozen=True)
class OfflineRun(ProgramRun):
    """Describes one seed of one condition; its environment is that of the transitions."""

    def command(self, out: Path, threads: int = 1, python: str = "python") -> list[str]:
        """See :class:`ProgramRun`. Paths of the settings start from the folder that ``out`` is in."""
        command = super().command(out, threads, python)
        return [*command, "--root", str(out.parent), "--environment", self.environment]


class OfflineReader(SettingsReader):
    """Builds the runs of a sweep file for trainings on stored transitions.

    ``{environment}`` and ``{seed}`` in a path stand for those of the run, the former as in folder names.
    """

    schema = Path(__file__).with_name("offline_schema.json")
    algorithm = OFFLINE
    settings_class = OfflineSettings
    program = f"{__package__}.offline_run"
    run_class = OfflineRun

    def _settings_of(self, environment: str, condition: dict[str, Any], seed: int) -> dict[str, Any]:
        settings = {**self.settings, **{axis: self.axes[axis][label] for axis, label in condition.items()}}
        known = {"environment": environment.replace("/", "-"), "seed": str(seed)}
        paths = {name: settings[name] for name in _PATHS if isinstance(settings.get(name), str)}
        return settings | {name: self._filled(name, path, known) for name, path in paths.items()}

    def _filled(self, name: str, path: str, known: dict[str, str]) -> str:
        def value(found: re.Match[str]) -> str:
            if found[1] in known:
                return known[found[1]]
            place = "grid" if name in self.axes else "settings"
            message = f"{found[0]} is not known here: a path can have {{environment}} and {{seed}}"
            raise self.document.error(message, (place, name))

        return re.sub(r"\{(.*?)\}", value, path)
