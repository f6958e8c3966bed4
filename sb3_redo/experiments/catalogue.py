"""Lists the experiments. Imports neither torch nor Ray, so that listing is fast."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sb3_redo.validation import UsageError, needs, one_of
from sb3_redo.zoo import CONFIGS

PRESETS = ("small", "paper")
SWEEPS = CONFIGS / "sweeps"

_FILE = Path(__file__).with_name("catalogue.yml")


@dataclass(frozen=True)
class Preset:
    """Describes the trainings of an experiment in one size.

    :param sweeps: files of ``zoo_configs/sweeps``, without their ending
    :param settings: in words
    :param only: axis, or ``environment``, to its labels in the experiment; other axes keep all labels
    :param seeds: default number of seeds; if not given, the sweep's own
    :param cpu_minutes: of all trainings
    """

    sweeps: tuple[str, ...]
    settings: str
    only: Mapping[str, tuple[Any, ...]]
    seeds: int | None = None
    cpu_minutes: int | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(SWEEPS / f"{name}.yml" for name in self.sweeps)

    def count(self, seeds: int | None = None) -> int:
        """Count the runs, from the files alone.

        :param seeds: number of seeds instead of the preset's
        """
        runs = 0
        for file in self.files:
            content = _read(file)
            labels = [[label for label in content["grid"][axis] if self.has(axis, label)] for axis in content["grid"]]
            environments = [name for name in content["environments"] if self.has("environment", name)]
            of_a_seed = len(environments) * math.prod(map(len, labels))
            runs += of_a_seed * (seeds or self.seeds or len(content["seeds"]))
        return runs

    def has(self, axis: str, label: Any) -> bool:
        """Return whether runs with a label of an axis belong to the preset."""
        return axis not in self.only or label in self.only[axis]


@dataclass(frozen=True)
class Experiment:
    """Describes one experiment.

    :param shows: content, in half a sentence
    :param compares: the comparison, and the paper's result
    :param differs: differences of the small preset from the paper's experiment
    :param presets: by name; without ``paper`` if the question is not from a paper
    :param quantities: names in ``quantities.yml``
    :param figures: names of the report's figures, or additional ones: ``{"curve": quantity}``, with ``"beside":
        {quantity: name in the legend, ...}`` for several in one figure, and ``{"heat_map": quantity, "x": axis, "y":
        axis}``
    :param published: published numbers to compare with; see :class:`~sb3_redo.experiments.numbers.PaperNumber`
    :param report_figures: number of a figure in the report's published numbers, to the replay ratios to use
    """

    name: str
    title: str
    shows: str
    compares: str
    differs: str
    presets: Mapping[str, Preset]
    quantities: tuple[str, ...]
    figures: tuple[Any, ...]
    published: tuple[Mapping[str, Any], ...] = ()
    report_figures: Mapping[str, tuple[float, ...]] | None = None

    def preset(self, name: str) -> Preset:
        """Return a preset.

        :raises UsageError: when the experiment has no preset of this name
        """
        if name not in self.presets:
            raise UsageError(f"{self.name} has no preset {name!r}: it is not from a paper; leave --preset out")
        return self.presets[name]


@cache
def catalogue() -> dict[str, Experiment]:
    """Return all experiments by name, in the listed order."""
    return {name: _experiment(name, entry) for name, entry in _read(_FILE).items()}


def _read(file: Path) -> dict[str, Any]:
    with needs("sweep", "the list of experiments"):
        import yaml
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def experiment_named(name: str) -> Experiment:
    """Return an experiment.

    :raises UsageError: on an unknown name, with the nearest one
    """
    try:
        return catalogue()[one_of("the experiment", name, tuple(catalogue()))]
    except ValueError as error:
        raise UsageError(str(error)) from None


def _experiment(name: str, entry: dict[str, Any]) -> Experiment:
    presets = {preset: _preset(entry.pop(preset)) for preset in PRESETS if preset in entry}
    for key in ("quantities", "figures", "published"):
        entry[key] = tuple(entry.get(key, ()))
    return Experiment(name, presets=presets, **entry)


def _preset(entry: dict[str, Any]) -> Preset:
    only = {axis: tuple(labels) for axis, labels in entry.pop("only", {}).items()}
    return Preset(tuple(entry.pop("sweeps")), only=only, **entry)
