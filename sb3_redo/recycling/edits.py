"""Plans changes of weights and of their optimizer state, and then makes them all.

All new values are computed from the old ones before any is written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sb3_redo.recycling.optimizer_state import MATCH, Entry, OptimizerState, SecondMoment


@dataclass
class Edit:
    """Describes new values for some entries of a tensor.

    :param tensor: the tensor
    :param axis: the axis along which entries are chosen
    :param index: the entries, long tensor
    :param values: their new values: a number, a tensor of their shape, or a tensor of size 1 along the axis
    """

    tensor: Tensor
    axis: int
    index: Tensor
    values: Tensor | float

    def apply(self) -> None:
        """Make the change, in place."""
        is_uniform = not isinstance(self.values, Tensor) or self.values.shape[self.axis] == 1
        if self.axis > 0 and is_uniform and torch.isfinite(self.tensor.sum()):
            # Multiplying the other entries by 1 leaves them bit for bit unchanged. This takes a tenth of the time of
            # indexing columns of a large matrix.
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

    def _indicator(self) -> Tensor:
        """Return 1 at the index and 0 elsewhere, broadcasting along all other axes."""
        shape = [1] * self.tensor.ndim
        shape[self.axis] = self.tensor.shape[self.axis]
        return self.tensor.new_zeros(shape).index_fill_(self.axis, self.index, 1.0)


class Planner:
    """Collects edits of weights together with those of their optimizer state.

    :param policy: the policy whose parameters change
    :param state: the optimizers' state of these parameters, matched by parameter identity
    :param optimizer_state: ``clear``, ``restart``, ``match`` or a :class:`SecondMoment`
    """

    def __init__(self, policy: nn.Module, state: OptimizerState, optimizer_state: str | SecondMoment):
        self.policy = policy
        self.state = state
        self.restart = optimizer_state == "restart"
        rules = {"match": MATCH, "clear": None, "restart": None}
        self.second_moment = rules[optimizer_state] if isinstance(optimizer_state, str) else optimizer_state
        self.edits: list[Edit] = []
        self.restarts: list[Entry] = []
        self.device = next(policy.parameters()).device

    def change(
        self,
        parameter: Tensor,
        index: Tensor,
        values: Tensor | float,
        live: Tensor,
        *,
        axis: int = 0,
        part: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        redrawn: Tensor | None = None,
    ) -> None:
        """Plan new values for entries of a parameter, and for the optimizer state of the same entries.

        :param parameter: the parameter or buffer to change
        :param index: the entries along ``axis`` to change, within ``part`` of the parameter, long tensor
        :param values: their new values, see :class:`Edit`
        :param live: the entries along ``axis`` that belong to live neurons of the same layer, long tensor
        :param axis: the axis along which entries are chosen
        :param part: returns the view of the parameter that ``index`` refers to
        :param redrawn: bool mask of the rows that are redrawn too. Their old state does not apply to the new weights.
        """
        # 1. The weights themselves.
        self.edits.append(Edit(part(parameter), axis, index, values))
        for entry in self.state.of(parameter):
            # 2. Copies and averages of weights follow them.
            if entry.kind.what == "copy":
                self.edits.append(Edit(part(entry.value), axis, index, values))
            # 3. With "restart", counts for the whole tensor restart.
            elif entry.is_whole(parameter):
                if self.restart and entry.kind.what == "count":
                    self.restarts.append(entry)
            # 4. All other state has an entry for each weight, or a mean over an axis of the weights.
            elif entry.kind.what != "ignore":
                tensor = part(entry.value)
                if tensor.shape[axis] == part(parameter).shape[axis]:
                    self.edits.append(self._state_edit(entry, tensor, axis, index, live, redrawn))

    def shift(self, parameter: Tensor, amount: Tensor) -> None:
        """Plan to add to a parameter, and to its copies in optimizers.

        :param parameter: the parameter
        :param amount: to add, of the parameter's shape
        """
        every = torch.arange(len(parameter), device=parameter.device)
        for tensor in (parameter, *(entry.value for entry in self.state.of(parameter) if entry.kind.what == "copy")):
            self.edits.append(Edit(tensor, 0, every, tensor + amount))

    def _state_edit(
        self, entry: Entry, tensor: Tensor, axis: int, index: Tensor, live: Tensor, redrawn: Tensor | None
    ) -> Edit:
        """Return the edit of one state tensor, see :meth:`change`."""
        if self.second_moment is None or entry.kind.what != "second_moment" or not len(live):
            return Edit(tensor, axis, index, entry.initial)
        values = self.second_moment.of(tensor, axis, index, live)
        # Each row's value came from the row's live columns. If the row is itself redrawn, its old value means nothing;
        # it gets the mean over the rows that are not.
        has_rows = redrawn is not None and len(redrawn) == len(values)
        if self.second_moment.shared and redrawn is not None and has_rows and redrawn.any() and not redrawn.all():
            values[redrawn] = values[~redrawn].mean(0)
        return Edit(tensor, axis, index, values)

    def commit(self) -> None:
        """Make all planned changes, in place."""
        for edit in self.edits:
            edit.apply()
        for entry in self.restarts:
            entry.restart()


def layer_parameter(policy: nn.Module, layer: str, name: str) -> Tensor | None:
    """Return a layer's ``weight`` or ``bias``, or ``None`` without a bias."""
    parameter = getattr(policy.get_submodule(layer), name)
    assert parameter is None or isinstance(parameter, Tensor)
    return parameter


def groups(layer: nn.Module, weight: Tensor) -> Sequence[tuple[slice, slice]]:
    """Return pairs of weight rows and their input positions.

    A grouped convolution has one pair per group. Any other layer has one pair with all rows and positions.
    """
    number = int(getattr(layer, "groups", 1))
    outputs, inputs = len(weight) // number, weight.shape[1]
    return [(slice(g * outputs, (g + 1) * outputs), slice(g * inputs, (g + 1) * inputs)) for g in range(number)]
