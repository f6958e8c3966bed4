"""What a callback must remember when its model is saved and training goes on."""

from collections.abc import Iterator
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from sb3_redo.dormancy import DormancyReport


class Memory:
    """Kept on the model as a plain attribute, because SB3 saves those, and no callback.

    :param model: gets an attribute ``dormancy_memory``, a dictionary of plain numbers and lists
    :param owner: tells the callbacks of one model apart, and finds the same one again after loading
    """

    def __init__(self, model: BaseAlgorithm, owner: str):
        self._memories: dict[str, Any] = model.__dict__.setdefault("dormancy_memory", {"recycled_total": 0})
        self._dormant: dict[str, list[int]] = self._memories.setdefault(owner, {})

    @property
    def is_empty(self) -> bool:
        """Whether this callback has not measured the model yet."""
        return not self._dormant

    def dormant_before(self, report: DormancyReport) -> Iterator[Tensor]:
        """For each layer of a report the bool mask of what was dormant in the one before, [neurons]."""
        for layer in report.layers:
            mask = torch.zeros_like(layer.dormant)
            mask[self._dormant.get(layer.name, [])] = True
            yield mask

    def remember(self, report: DormancyReport) -> None:
        """Keep what is dormant in a report for the next comparison."""
        self._dormant.update({layer.name: layer.dormant.nonzero().flatten().tolist() for layer in report.layers})

    def add_recycled(self, recycled: int) -> int:
        """Count neurons as recycled; returns how many there were in all."""
        self._memories["recycled_total"] += recycled
        return int(self._memories["recycled_total"])
