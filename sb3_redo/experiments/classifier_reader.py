"""Reads sweep files of classifiers."""

from pathlib import Path
from typing import Any

from sb3_redo.experiments.classifier_settings import ClassifierSettings
from sb3_redo.reports.sweep_folder import CALLBACK
from sb3_redo.sweeps.settings_reader import SettingsReader

CLASSIFIER = "classifier"
"""The value of ``algorithm`` in these sweep files."""
_CALLBACKS = {"none": False, "redo": True}


class ClassifierReader(SettingsReader):
    """Builds the runs of a sweep file for classifiers. Its environments are names of image sets."""

    schema = Path(__file__).with_name("classifier_schema.json")
    algorithm = CLASSIFIER
    settings_class = ClassifierSettings
    program = f"{__package__}.classifier_run"
    other_axes = (CALLBACK,)

    def _settings_of(self, environment: str, condition: dict[str, Any], seed: int) -> dict[str, Any]:
        axes = {axis: value for axis, value in condition.items() if axis != CALLBACK}
        redo = _CALLBACKS[condition.get(CALLBACK, "none")]
        return {**self.settings, **axes, "data": environment, "redo": redo}
