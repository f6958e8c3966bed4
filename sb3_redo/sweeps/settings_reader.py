"""Sweep files whose runs are programs of this package: the same file as that of agents, with other settings."""

import itertools
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.schema import check_form
from sb3_redo.sweeps.yaml_document import Document
from sb3_redo.validation import one_of


class SettingsReader(ABC):
    """Makes runs of a sweep file whose settings are those of one class.

    :raises UsageError: naming the file's line
    """

    algorithm: ClassVar[str]
    """Named in the file, and before the schema of its form."""
    settings: ClassVar[Any]
    """The class."""
    other_axes: ClassVar[tuple[str, ...]] = ()
    """Axes that are no settings."""

    def __init__(self, document: Document):
        check_form(document, self.algorithm)
        self.document = document
        self.content: dict[str, Any] = document.content
        self.axes: dict[str, dict[Any, Any]] = {
            axis: dict(zip(values, values, strict=True)) for axis, values in self.content["grid"].items()
        }

    def check(self) -> None:
        """See that every setting is one of those; what they can be is seen when runs are made of them."""
        for place, names in (("settings", self.content.get("settings", {})), ("grid", self.axes)):
            for name in names:
                try:
                    one_of(name, name, (*self.settings.names(), *(self.other_axes if place == "grid" else ())))
                except (TypeError, ValueError) as error:
                    raise self.document.error(str(error), (place, name)) from None

    def runs(self) -> list[Run]:
        """All of them, in the order of environments, grid and seeds."""
        products = itertools.product(*self.axes.values())
        conditions = [dict(zip(self.axes, values, strict=True)) for values in products]
        return [
            self._run(environment, condition, seed)
            for environment in self.content["environments"]
            for condition in conditions
            for seed in self.content["seeds"]
        ]

    @abstractmethod
    def _run(self, environment: str, condition: dict[str, Any], seed: int) -> Run: ...

    def _checked(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings that a run can be made of."""
        try:
            self.settings.of(settings)
        except (TypeError, ValueError) as error:
            name = str(error).split()[0]  # with which every such message begins
            raise self.document.error(str(error), ("grid" if name in self.axes else "settings", name)) from None
        return settings
