"""Changing some entries of a tensor in place, and no others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sb3_redo.recycling.optimizer_state import (
    _MATCH,
    _SECOND_MOMENTS,
    InitialState,
    SecondMoment,
)


@dataclass
class Edit:
    """Entries ``index`` along ``axis`` of ``tensor`` become ``values``: a number, a tensor of their shape, or one of
    size 1 along the axis for all of them."""

    tensor: Tensor
    axis: int
    index: Tensor
    values: Tensor | float

    def apply(self) -> None:
        """Make the change."""
        if self.axis > 0 and self._is_uniform() and torch.isfinite(self.tensor.sum()):
            # A product with 1 leaves the other entries bit for bit as they are, and all of it takes a tenth of the
            # time that picking columns out of a large matrix takes.
            indicator = self._indicator()
            self.tensor.mul_(1 - indicator)
            if isinstance(self.values, Tensor):
                self.tensor.addcmul_(self.values, indicator)
            elif self.values:
                self.tensor.add_(indicator, alpha=self.values)
        elif isinstance(self.values, Tensor):
            shape = list(self.tensor.shape)
            shape[self.axis] = len(self.index)
            self.tensor.index_copy_(self.axis, self.index, self.values.to(self.tensor).expand(shape))
        else:
            self.tensor.index_fill_(self.axis, self.index, self.values)

    def _is_uniform(self) -> bool:
        """Whether all entries along the axis get the same values."""
        return not isinstance(self.values, Tensor) or self.values.shape[self.axis] == 1

    def _indicator(self) -> Tensor:
        """1 at the index and 0 elsewhere, broadcasting along all other axes."""
        shape = [1] * self.tensor.ndim
        shape[self.axis] = self.tensor.shape[self.axis]
        return self.tensor.new_zeros(shape).index_fill_(self.axis, self.index, 1.0)


def _whole(tensor: Tensor) -> Tensor:
    return tensor


class Planner:
    """Collects edits of weights together with those of their optimizer state, and then makes them all."""

    def __init__(self, policy: nn.Module, optimizers: list[Optimizer], initial_state: InitialState, mode: Any):
        self.policy = policy
        self.optimizers = optimizers
        self.initial_state = initial_state
        self.restart = mode == "restart"
        self.second_moment = _MATCH if mode == "match" else mode if isinstance(mode, SecondMoment) else None
        self.edits: list[Edit] = []
        self.restarts: list[dict[str, Any]] = []
        self.device = next(policy.parameters()).device

    def change(
        self,
        parameter: Tensor,
        index: Tensor,
        values: Tensor | float,
        live: Tensor,
        *,
        axis: int = 0,
        part: Callable[[Tensor], Tensor] = _whole,
        redrawn: Tensor | None = None,
    ) -> None:
        """Plan new values for a parameter and the state that goes with them.

        :param index: the entries along ``axis`` to change, within ``part`` of the parameter, which is a view of it
        :param live: the entries along ``axis`` that belong to live neurons of the same layer
        :param redrawn: bool mask of those of its rows that are redrawn too, whose own state is not to be matched
        """
        self.edits.append(Edit(part(parameter), axis, index, values))
        for optimizer in self.optimizers:
            state = optimizer.state.get(parameter)
            if not state:
                continue
            for key, tensor in state.items():
                if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                    self.edits.append(self._state_edit(optimizer, key, part(tensor), axis, index, live, redrawn))
            if self.restart and "step" in state:
                self.restarts.append(state)

    def _state_edit(
        self,
        optimizer: Optimizer,
        key: str,
        tensor: Tensor,
        axis: int,
        index: Tensor,
        live: Tensor,
        redrawn: Tensor | None,
    ) -> Edit:
        if self.second_moment is None or key not in _SECOND_MOMENTS or not len(live):
            return Edit(tensor, axis, index, self.initial_state(optimizer, key))
        values = self.second_moment.of(tensor, axis, index, live)
        if self.second_moment.shared and redrawn is not None and redrawn.any() and not redrawn.all():
            values[redrawn] = values[~redrawn].mean(0)
        return Edit(tensor, axis, index, values)

    def commit(self) -> None:
        for edit in self.edits:
            edit.apply()
        for state in self.restarts:
            if isinstance(state["step"], Tensor):
                state["step"].zero_()
            else:
                state["step"] = 0


def _parameter(policy: nn.Module, layer: str, name: str) -> Tensor | None:
    parameter = getattr(policy.get_submodule(layer), name)
    assert parameter is None or isinstance(parameter, Tensor)
    return parameter
