"""What a callback must remember when its model is saved and training goes on."""

from collections.abc import Iterator
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from sb3_redo.dormancy.report import DormancyReport

_ATTRIBUTE = "dormancy_memory"


class Memory:
    """Kept on the model as a plain attribute, because SB3 saves those, and no callback.

    :param model: gets an attribute ``dormancy_memory``, a dictionary of plain numbers, lists and tensors
    :param owner: tells the callbacks of one model apart, and finds the same one again after loading
    """

    def __init__(self, model: BaseAlgorithm, owner: str):
        self._shared: dict[str, Any] = model.__dict__.setdefault(_ATTRIBUTE, {"recycled_total": 0})
        self._own: dict[str, Any] = self._shared.setdefault(owner, {"dormant": {}, "looked_at": None})

    @staticmethod
    def gradient_steps_of(model: BaseAlgorithm) -> int | None:
        """Return the gradient steps that a memory on this model last remembered, if it has."""
        steps: int | None = model.__dict__.get(_ATTRIBUTE, {}).get("gradient_steps")
        return steps

    @staticmethod
    def recycled_total_of(model: BaseAlgorithm) -> int:
        """Return how many neurons of this model were recycled so far."""
        return int(model.__dict__.get(_ATTRIBUTE, {}).get("recycled_total", 0))

    def remember_gradient_steps(self, gradient_steps: int) -> None:
        """Algorithms do not count them, or not where ``train()`` is interrupted."""
        self._shared["gradient_steps"] = gradient_steps

    @property
    def looked_at(self) -> int | None:
        """The gradient step at which it was last asked whether a period is over; ``None`` before the first time."""
        value: int | None = self._own["looked_at"]
        return value

    @looked_at.setter
    def looked_at(self, gradient_step: int) -> None:
        self._own["looked_at"] = gradient_step

    @property
    def is_empty(self) -> bool:
        """Whether this callback has not measured the model yet."""
        return not self._own["dormant"]

    def dormant_before(self, report: DormancyReport) -> list[Tensor]:
        """For each layer of a report the bool mask of what was dormant in the one before, [neurons]."""
        return list(self._masks(report, self._own["dormant"]))

    def dormant_at_first(self, report: DormancyReport) -> list[Tensor]:
        """For each layer of a report the bool mask of what was dormant when it was first measured, [neurons]."""
        return list(self._masks(report, self._own.get("dormant_at_first", {})))

    @staticmethod
    def _masks(report: DormancyReport, dormant: dict[str, list[int]]) -> Iterator[Tensor]:
        for layer in report.layers:
            mask = torch.zeros_like(layer.dormant)
            # A layer may have been replaced by a narrower one.
            mask[[neuron for neuron in dormant.get(layer.name, []) if neuron < len(mask)]] = True
            yield mask

    def remember(self, report: DormancyReport) -> None:
        """Keep what is dormant in a report for the next comparison; of a layer's first report, for all later ones."""
        dormant = {layer.name: layer.dormant.nonzero().flatten().tolist() for layer in report.layers}
        self._own["dormant"].update(dormant)
        self._own["dormant_at_first"] = {**dormant, **self._own.get("dormant_at_first", {})}

    def tensors(self, what: str) -> dict[str, Tensor]:
        """Tensors by name that the callback keeps, on the CPU; what it puts there is saved with the model."""
        kept: dict[str, Tensor] = self._own.setdefault(what, {})
        return kept

    def kept(self, name: str) -> Any:
        """Return what was last kept under a name; ``None`` if nothing was."""
        return self._own.get("kept", {}).get(name)

    def keep(self, name: str, value: Any) -> None:
        """Keep plain numbers, or dictionaries of such, of this callback."""
        self._own.setdefault("kept", {})[name] = value

    def add_recycled(self, recycled: int) -> int:
        """Count neurons as recycled; returns how many there were in all."""
        self._shared["recycled_total"] += recycled
        return int(self._shared["recycled_total"])

    def count(self, what: str) -> int:
        """Count one more of something that was done to the model; returns how often it was done in all."""
        counts = self._shared.setdefault("counts", {})
        counts[what] = counts.get(what, 0) + 1
        return int(counts[what])
