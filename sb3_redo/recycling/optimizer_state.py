"""New values for weights together with those of the state that their optimizers keep for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sb3_redo.recycling.edits import Edit

OPTIMIZER_STATE = ("clear", "restart", "match")

# What adaptive optimizers divide by. Everything else of the parameter's shape is a first moment or a momentum.
_SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum", "acc_delta")

InitialState = Callable[[Optimizer, str], float]
"""The value with which an optimizer first fills the state tensor of that name."""


@dataclass(frozen=True)
class SecondMoment:
    """What renewed entries of an optimizer's second moment become.

    :param of: from the second moment, an axis of it, the entries along that axis that are renewed, and those that
        belong to live neurons of the same layer
    :param shared: whether all renewed entries along the axis get the same. Of a weight between two recycled neurons
        it would be what was known of its old row: it becomes the mean over the other rows then.
    """

    of: Callable[[Tensor, int, Tensor, Tensor], Tensor]
    shared: bool = True


def zero_state(optimizer: Optimizer, key: str) -> float:
    """The initial state of torch's own optimizers."""
    setting = {"sum": "initial_accumulator_value", "step_size": "lr"}.get(key)
    return float(optimizer.defaults.get(setting, 0.0)) if setting else 0.0


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


def _mean_of_live(tensor: Tensor, axis: int, renewed: Tensor, live: Tensor) -> Tensor:
    """Mean over live neurons, the same for all that are renewed: the axis stays with size 1.

    A product with a 0/1 vector reads the tensor once, where picking the entries first would copy them.
    """
    weights = torch.zeros(tensor.shape[axis], dtype=tensor.dtype, device=tensor.device)
    weights[live] = 1 / len(live)
    mean: Tensor = torch.tensordot(weights, tensor, dims=([0], [axis])).unsqueeze(axis)
    if not torch.isfinite(mean).all():  # 0 times infinity is NaN
        mean = tensor.index_select(axis, live).mean(axis, keepdim=True)
    return mean


_MATCH = SecondMoment(_mean_of_live)
