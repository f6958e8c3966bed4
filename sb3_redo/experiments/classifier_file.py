"""Sweep files of classifiers: the same file as that of agents, with other settings."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_redo.experiments.classifier_settings import ClassifierSettings
from sb3_redo.experiments.conditions import CALLBACK
from sb3_redo.experiments.documents import Document
from sb3_redo.experiments.form import check_form
from sb3_redo.experiments.runs import Run
from sb3_redo.settings import one_of

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


class ClassifierReader:
    """Makes runs of a sweep file of classifiers.

    :raises UsageError: naming the file's line
    """

    algorithm = CLASSIFIER

    def __init__(self, document: Document):
        check_form(document, CLASSIFIER)
        self.document = document
        self.content: dict[str, Any] = document.content
        self.axes: dict[str, dict[Any, Any]] = {
            axis: dict(zip(values, values, strict=True)) for axis, values in self.content["grid"].items()
        }

    def check(self) -> None:
        """See that every setting is one of a classifier's; what they can be is seen when runs are made of them."""
        for place, names in (("settings", self.content.get("settings", {})), ("grid", self.axes)):
            for name in names:
                try:
                    one_of(name, name, (*ClassifierSettings.names(), *((CALLBACK,) if place == "grid" else ())))
                except (TypeError, ValueError) as error:
                    raise self.document.error(str(error), (place, name)) from None

    def runs(self) -> list[Run]:
        """All of them, in the order of images, grid and seeds."""
        products = itertools.product(*self.axes.values())
        conditions = [dict(zip(self.axes, values, strict=True)) for values in products]
        return [
            self._run(data, condition, seed)
            for data in self.content["environments"]
            for condition in conditions
            for seed in self.content["seeds"]
        ]

    def _run(self, data: str, condition: dict[str, Any], seed: int) -> Run:
        axes = {axis: value for axis, value in condition.items() if axis != CALLBACK}
        redo = _CALLBACKS[condition.get(CALLBACK, "none")]
        settings = {**self.content.get("settings", {}), **axes, "data": data, "redo": redo}
        try:
            ClassifierSettings.of(settings)
        except (TypeError, ValueError) as error:
            name = str(error).split()[0]  # with which every such message begins
            raise self.document.error(str(error), ("grid" if name in self.axes else "settings", name)) from None
        return ClassifierRun(CLASSIFIER, data, condition, seed, "", settings, [], settings)
