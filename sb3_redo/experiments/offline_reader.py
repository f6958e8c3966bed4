"""Sweep files of trainings on stored transitions: the same file as that of agents, with other settings."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_redo.experiments.offline_settings import OfflineSettings
from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.settings_reader import SettingsReader

OFFLINE = "offline"
"""Named as the algorithm of such a sweep."""
_PATHS = ("agent", "replay_buffer", "teacher")
_PACKAGE = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class OfflineRun(Run):
    """One seed of one condition; its environment is the one that the transitions are of."""

    @property
    def effort(self) -> float:
        """In gradient steps, of which each takes about as long."""
        return float(OfflineSettings.of(self.settings).gradient_steps)

    def command(self, out: Path, threads: int = 1, python: str = "python") -> list[str]:
        """The arguments of the command that trains it; typing it again begins anew where it was stopped.

        :param out: the sweep's folder; paths of the settings start from the folder that it is in
        :param threads: of PyTorch
        """
        return [
            *(python, "-m", f"{_PACKAGE}.offline_run", "--folder", str(out / self.name)),
            *("--root", str(out.parent), "--seed", str(self.seed), "--num-threads", str(threads)),
            *("--environment", self.environment, "--settings", json.dumps(self.settings)),
            *("--condition", json.dumps(self.condition)),
        ]


class OfflineReader(SettingsReader):
    """Makes runs of a sweep file of trainings on stored transitions.

    ``{environment}`` and ``{seed}`` in a path are those of the run, the first as it is in the names of folders.

    :raises UsageError: naming the file's line
    """

    algorithm = OFFLINE
    settings = OfflineSettings

    def _run(self, environment: str, condition: dict[str, Any], seed: int) -> Run:
        settings = self._checked({**self.content.get("settings", {}), **condition})
        known = {"environment": environment.replace("/", "-"), "seed": str(seed)}
        settings |= {name: self._filled(name, settings[name], known) for name in _PATHS if settings.get(name)}
        return OfflineRun(OFFLINE, environment, condition, seed, "", settings, [], settings)

    def _filled(self, name: str, path: str, known: dict[str, str]) -> str:
        unknown = [found for found in re.findall(r"\{(.*?)\}", path) if found not in known]
        if unknown:
            place = "grid" if name in self.axes else "settings"
            raise self.document.error(
                f"{{{unknown[0]}}} is not known here: a path can have {{environment}} and {{seed}}", (place, name)
            )
        for word, value in known.items():
            path = path.replace(f"{{{word}}}", value)
        return path
