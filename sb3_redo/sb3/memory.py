"""Values that a callback saves with its model."""

from collections.abc import Iterator
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from sb3_redo.dormancy.report import DormancyReport

_ATTRIBUTE = "dormancy_memory"


class Memory:
    """Stores a callback's values in an attribute of the model, because SB3 saves attributes but no callbacks.

    :param model: gets an attribute ``dormancy_memory``, a dictionary of plain numbers, lists and tensors
    :param owner: identifies the callback among those of the model, also after loading
    """

    def __init__(self, model: BaseAlgorithm, owner: str):
        self._shared: dict[str, Any] = model.__dict__.setdefault(_ATTRIBUTE, {"recycled_total": 0})
        self._own: dict[str, Any] = self._shared.setdefault(owner, {"dormant": {}, "looked_at": None})

    @staticmethod
    def gradient_steps_of(model: BaseAlgorithm) -> int | None:
        """Return the gradient steps that this model last remembered, or ``None``."""
        steps: int | None = model.__dict__.get(_ATTRIBUTE, {}).get("gradient_steps")
        return steps

    @staticmethod
    def recycled_total_of(model: BaseAlgorithm) -> int:
        """Return the number of neurons of this model recycled so far."""
        return int(model.__dict__.get(_ATTRIBUTE, {}).get("recycled_total", 0))

    def remember_gradient_steps(self, gradient_steps: int) -> None:
        """Remember the count. Algorithms do not count them, or miscount an interrupted ``train()``."""
        self._shared["gradient_steps"] = gradient_steps

    @property
    def looked_at(self) -> int | None:
        """Return the gradient step of the last check whether a period is over, or ``None`` before the first."""
        value: int | None = self._own["looked_at"]
        return value

    @looked_at.setter
    def looked_at(self, gradient_step: int) -> None:
        self._own["looked_at"] = gradient_step

    @property
    def is_empty(self) -> bool:
        """Return whether this callback has not measured the model yet."""
        return not self._own["dormant"]

    def dormant_before(self, report: DormancyReport) -> list[Tensor]:
        """Return, per layer of a report, the mask of neurons dormant in the previous report, bool [neurons]."""
        return list(self._masks(report, self._own["dormant"]))

    def dormant_at_first(self, report: DormancyReport) -> list[Tensor]:
        """Return, per layer of a report, the mask of neurons dormant in its first report, bool [neurons]."""
        return list(self._masks(report, self._own.get("dormant_at_first", {})))

    @staticmethod
    def _masks(report: DormancyReport, dormant: dict[str, list[int]]) -> Iterator[Tensor]:
        for layer in report.layers:
            mask = torch.zeros_like(layer.dormant)
            # A layer may have been replaced by a narrower one.
            mask[[neuron for neuron in dormant.get(layer.name, []) if neuron < len(mask)]] = True
            yield mask

    def remember(self, report: DormancyReport) -> None:
        """Keep a report's dormant neurons for the next comparison, and those of each layer's first report."""
        dormant = {layer.name: layer.dormant.nonzero().flatten().tolist() for layer in report.layers}
        self._own["dormant"].update(dormant)
        self._own["dormant_at_first"] = {**dormant, **self._own.get("dormant_at_first", {})}

    def tensors(self, what: str) -> dict[str, Tensor]:
        """Return the callback's tensors by name, on the CPU. Tensors added to them are saved with the model."""
        kept: dict[str, Tensor] = self._own.setdefault(what, {})
        return kept

    def kept(self, name: str) -> Any:
        """Return the value last kept under a name, or ``None``."""
        return self._own.get("kept", {}).get(name)

    def keep(self, name: str, value: Any) -> None:
        """Keep a number, or a dictionary of numbers, for this callback."""
        self._own.setdefault("kept", {})[name] = value

    def add_recycled(self, recycled: int) -> int:
        """Add to the number of recycled neurons. Returns the total."""
        self._shared["recycled_total"] += recycled
        return int(self._shared["recycled_total"])

    def count(self, what: str) -> int:
        """Increment a counter. Returns its new value."""
        counts = self._shared.setdefault("counts", {})
        counts[what] = counts.get(what, 0) + 1
        return int(counts[what])
