"""Holds the base of the readers of sweep files."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.schema import check_form
from sb3_redo.sweeps.yaml_document import Document
from sb3_redo.validation import one_of


class SweepReader(ABC):
    """Makes the runs of a sweep file of one kind.

    :raises UsageError: when the file does not have the form of ``schema``, naming the file's line
    """

    schema: ClassVar[Path]
    """The JSON Schema of such files."""
    algorithm: str
    """The file's own name for what is trained."""

    def __init__(self, document: Document):
        check_form(document, self.schema)
        self.document = document
        self.content: dict[str, Any] = document.content
        self.settings: dict[str, Any] = self.content.get("settings", {})
        self.axes: dict[str, dict[Any, Any]] = {
            axis: dict(values) if isinstance(values, dict) else dict(zip(values, values, strict=True))
            for axis, values in self.content["grid"].items()
        }

    @abstractmethod
    def check(self) -> None:
        """Check names and values, as far as that needs no run.

        :raises UsageError: naming the file's line
        """

    def runs(self) -> list[Run]:
        """Make all runs, in the order of environments, grid and seeds."""
        conditions = [dict(zip(self.axes, labels, strict=True)) for labels in itertools.product(*self.axes.values())]
        return [
            self._run(environment, condition, seed)
            for environment in self.content["environments"]
            for condition in conditions
            for seed in self.content["seeds"]
        ]

    @abstractmethod
    def _run(self, environment: str, condition: dict[str, Any], seed: int) -> Run: ...

    def _check_named(self, value: Any, choices: tuple[str, ...], *location: Hashable) -> None:
        try:
            one_of(str(location[-1]), value, choices)
        except (ValueError, TypeError) as error:
            raise self.document.error(str(error), location) from None
