"""Defines the base class of sweep file readers."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

from sb3_redo.sweeps.run import Run, condition_folder
from sb3_redo.sweeps.schema import check_form
from sb3_redo.sweeps.yaml_document import Document
from sb3_redo.validation import one_of

_MOST_RUNS = 10_000  # far more than in any paper
_LONGEST_NAME = 255  # limit of file systems


class SweepReader(ABC):
    """Builds the runs of one kind of sweep file.

    :raises UsageError: with the file's line, when the file does not match ``schema``
    """

    schema: ClassVar[Path]
    """The JSON Schema of these files."""
    algorithm: str
    """The value of ``algorithm`` in the file."""

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
        """Check names and values, as far as possible without runs.

        :raises UsageError: naming the file's line
        """

    def runs(self) -> list[Run]:
        """Build all runs, in the order of environments, grid and seeds."""
        of_each = [self.content["environments"], *self.axes.values(), self.content["seeds"]]
        if (count := math.prod(map(len, of_each))) > _MOST_RUNS:
            raise self.document.error(f"expected at most {_MOST_RUNS:,} runs, got {count:,}", ("grid",))
        conditions = [dict(zip(self.axes, labels, strict=True)) for labels in itertools.product(*self.axes.values())]
        for condition in conditions:
            self._check_folder(condition_folder(condition))
        return [
            self._run(environment, condition, seed)
            for environment in self.content["environments"]
            for condition in conditions
            for seed in self.content["seeds"]
        ]

    def _check_folder(self, name: str) -> None:
        """Check that the name of a condition's folder is valid on file systems."""
        if not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
            wanted = f"labels that make up the name of a folder, at most {_LONGEST_NAME} bytes in all"
            raise self.document.error(f"expected {wanted}, got {name!r}", ("grid",))

    @abstractmethod
    def _run(self, environment: str, condition: dict[str, Any], seed: int) -> Run: ...

    def _check_named(
        self, value: Any, choices: tuple[str, ...], *location: Hashable, document: Document | None = None
    ) -> None:
        try:
            one_of(str(location[-1]), value, choices)
        except (ValueError, TypeError) as error:
            raise (document or self.document).error(str(error), location) from None
