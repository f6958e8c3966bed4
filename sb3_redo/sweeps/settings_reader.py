"""Reads sweep files for programs of this package, with one class of settings."""

import json
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.sweep_reader import SweepReader


@dataclass(frozen=True)
class ProgramRun(Run):
    """Describes one seed of one condition, trained by a program of this package.

    :param program: the module that ``python -m`` runs
    :param gradient_steps: in the whole training
    """

    program: str = ""
    gradient_steps: int = 1

    @property
    def effort(self) -> float:
        """Return its gradient steps, which take about equal times."""
        return float(self.gradient_steps)

    def command(self, out: Path, threads: int = 1, python: str = "python") -> list[str]:
        """Return the arguments of the training command. Repeating it after a stop starts anew.

        :param out: the sweep's folder
        :param threads: of PyTorch
        """
        return [
            *(python, "-m", self.program, "--folder", str(out / self.name)),
            *("--seed", str(self.seed), "--num-threads", str(threads)),
            *("--settings", json.dumps(self.settings), "--condition", json.dumps(self.condition)),
        ]


class SettingsReader(SweepReader):
    """Builds runs from a sweep file with one class of settings."""

    settings_class: ClassVar[Any]
    program: ClassVar[str]
    """See :class:`ProgramRun`."""
    run_class: ClassVar[type[ProgramRun]] = ProgramRun
    other_axes: ClassVar[tuple[str, ...]] = ()
    """Axes that are not settings."""

    def check(self) -> None:
        """Check the names of settings. Values are checked when runs are built."""
        names = self.settings_class.names()
        for name in self.settings:
            self._check_named(name, names, "settings", name)
        for name in self.axes:
            self._check_named(name, (*names, *self.other_axes), "grid", name)

    def _run(self, environment: str, condition: dict[str, Any], seed: int) -> Run:
        settings = self._settings_of(environment, condition, seed)
        try:
            steps = self.settings_class.of(settings).gradient_steps
        except (TypeError, ValueError) as error:
            name = str(error).split()[0]  # every such message begins with it
            raise self.document.error(str(error), ("grid" if name in self.axes else "settings", name)) from None
        more: dict[str, Any] = {"program": self.program, "gradient_steps": steps}
        return self.run_class(self.algorithm, environment, condition, seed, "", settings, [], settings, **more)

    @abstractmethod
    def _settings_of(self, environment: str, condition: dict[str, Any], seed: int) -> dict[str, Any]:
        """Return the settings of one run, not yet checked."""
