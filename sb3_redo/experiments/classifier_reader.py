"""Sweep files of classifiers: the same file as that of agents, with other settings."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_redo.experiments.classifier_settings import ClassifierSettings
from sb3_redo.sweeps.conditions import CALLBACK
from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.settings_reader import SettingsReader

CLASSIFIER = "classifier"
"""Named as the algorithm of such a sweep."""
_CALLBACKS = {"none": False, "redo": True}
_PACKAGE = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class ClassifierRun(Run):
    """One seed of one condition; its environment is the name of the images, its settings a classifier's."""

    @property
    def effort(self) -> float:
        """In gradient steps, of which each takes about as long."""
        return float(ClassifierSettings.of(self.settings).all_steps)

    def command(self, out: Path, threads: int = 1, python: str = "python") -> list[str]:
        """The arguments of the command that trains it; typing it again begins anew where it was stopped.

        :param out: the sweep's folder
        :param threads: of PyTorch
        """
        return [
            *(python, "-m", f"{_PACKAGE}.classifier_run", "--folder", str(out / self.name)),
            *("--seed", str(self.seed), "--num-threads", str(threads)),
            *("--settings", json.dumps(self.overrides), "--condition", json.dumps(self.condition)),
        ]


class ClassifierReader(SettingsReader):
    """Makes runs of a sweep file of classifiers.

    :raises UsageError: naming the file's line
    """

    algorithm = CLASSIFIER
    settings = ClassifierSettings
    other_axes = (CALLBACK,)

    def _run(self, environment: str, condition: dict[str, Any], seed: int) -> Run:
        axes = {axis: value for axis, value in condition.items() if axis != CALLBACK}
        redo = _CALLBACKS[condition.get(CALLBACK, "none")]
        settings = self._checked({**self.content.get("settings", {}), **axes, "data": environment, "redo": redo})
        return ClassifierRun(CLASSIFIER, environment, condition, seed, "", settings, [], settings)
