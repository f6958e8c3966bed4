"""Reads sweep files whose runs are programs of this package, with settings of one class."""

import json
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.sweep_reader import SweepReader


@dataclass(frozen=True)
class ProgramRun(Run):
    """Describes one seed of one condition, which a program of this package trains.

    :param program: the module that ``python -m`` runs
    :param gradient_steps: of the whole training
    """

    program: str = ""
    gradient_steps: int = 1

    @property
    def effort(self) -> float:
        """Its gradient steps, of which each takes about as long."""
        return float(self.gradient_steps)

    def command(self, out: Path, threads: int = 1, python: str = "python") -> list[str]:
        """Return the arguments of the command that trains it. Typing it again begins anew where it was stopped.

        :param out: the sweep's folder
        :param threads: of PyTorch
        """
        return [
            *(python, "-m", self.program, "--folder", str(out / self.name)),
            *("--seed", str(self.seed), "--num-threads", str(threads)),
            *("--settings", json.dumps(self.settings), "--condition", json.dumps(self.condition)),
        ]


class SettingsReader(SweepReader):
    """Makes runs of a sweep file whose settings are those of one class."""

    settings_class: ClassVar[Any]
    program: ClassVar[str]
    """See :class:`ProgramRun`."""
    run_class: ClassVar[type[ProgramRun]] = ProgramRun
    other_axes: ClassVar[tuple[str, ...]] = ()
    """Axes that are no settings."""

    def check(self) -> None:
        """Check the names of settings. Their values are checked when runs are made of them."""
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
            name = str(error).split()[0]  # with which every such message begins
            raise self.document.error(str(error), ("grid" if name in self.axes else "settings", name)) from None
        more: dict[str, Any] = {"program": self.program, "gradient_steps": steps}
        return self.run_class(self.algorithm, environment, condition, seed, "", settings, [], settings, **more)

    @abstractmethod
    def _settings_of(self, environment: str, condition: dict[str, Any], seed: int) -> dict[str, Any]:
        """Return the settings of one run; they are checked by the caller."""
