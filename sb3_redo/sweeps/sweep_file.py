"""Reads sweep files, and checks them before anything starts."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.settings_reader import SettingsReader
from sb3_redo.sweeps.sweep_reader import SweepReader
from sb3_redo.sweeps.training_reader import TrainingReader
from sb3_redo.sweeps.yaml_document import Document
from sb3_redo.validation import positive_integer


@dataclass(frozen=True)
class Sweep:
    """Describes a checked sweep.

    :param name: the file's name
    :param axes: name of each axis to its labels
    :param runs: all of them, in the order of environments, grid and seeds
    :param text: the file's content
    """

    name: str
    algorithm: str
    axes: dict[str, list[Any]]
    environments: list[str]
    seeds: list[int]
    n_timesteps: int | None
    runs: list[Run] = field(repr=False)
    text: str = field(default="", repr=False)

    def plan(self) -> dict[str, Any]:
        """Return the content of ``sweep.json``."""
        return {**vars(self), "runs": [run.name for run in self.runs]}


def read_sweep_file(file: Path, seeds: int | None = None, readers: Iterable[type[SettingsReader]] = ()) -> Sweep:
    """Read a sweep file, and check everything that needs no training.

    Imports SB3, the zoo and the modules that register environments.

    :param seeds: number of seeds, from 0, instead of the file's
    :param readers: for values of ``algorithm`` that are not agents
    :raises UsageError: naming the file's line
    """
    document = Document(file)
    algorithm = document.content.get("algorithm") if isinstance(document.content, dict) else None
    kinds: Iterable[type[SweepReader]] = (kind for kind in readers if kind.algorithm == algorithm)
    reader = next(iter(kinds), TrainingReader)(document)
    if seeds is not None:
        reader.content["seeds"] = list(range(positive_integer("seeds", seeds)))
    reader.check()
    return Sweep(
        file.stem,
        reader.algorithm,
        {axis: list(labels) for axis, labels in reader.axes.items()},
        list(reader.content["environments"]),
        list(reader.content["seeds"]),
        reader.content.get("n_timesteps"),
        reader.runs(),
        document.text,
    )
