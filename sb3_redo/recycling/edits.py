"""Plans changes of weights and of their optimizer state, and then makes them all.

Everything is computed from the old values before the first new one is written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sb3_redo.recycling.optimizer_state import MATCH, Entry, OptimizerState, SecondMoment


@dataclass
class Edit:
    """A change of some entries of a tensor, and of no others.

    :param tensor: the tensor
    :param axis: the axis along which entries are chosen
    :param index: the entries, long tensor
    :param values: their new values: a number, a tensor of their shape, or one of size 1 along the axis for all
    """

    tensor: Tensor
    axis: int
    index: Tensor
    values: Tensor | float

    def apply(self) -> None:
        """Make the change, in place."""
        is_uniform = not isinstance(self.values, Tensor) or self.values.shape[self.axis] == 1
        if self.axis > 0 and is_uniform and torch.isfinite(self.tensor.sum()):
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

    def _indicator(self) -> Tensor:
        """Return 1 at the index and 0 elsewhere, broadcasting along all other axes."""
        shape = [1] * self.tensor.ndim
        shape[self.axis] = self.tensor.shape[self.axis]
        return self.tensor.new_zeros(shape).index_fill_(self.axis, self.index, 1.0)


class Planner:
    """Collects edits of weights together with those of their optimizer state.

    :param policy: the policy whose parameters change
    :param state: what optimizers keep for them; matched by parameter identity
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
        :param values: what they become, see :class:`Edit`
        :param live: the entries along ``axis`` that belong to live neurons of the same layer, long tensor
        :param axis: the axis along which entries are chosen
        :param part: gives the view of the parameter in which they lie
        :param redrawn: bool mask of the rows that are redrawn too; their old state says nothing about the new ones
        """
        # 1. The weights themselves.
        self.edits.append(Edit(part(parameter), axis, index, values))
        for entry in self.state.of(parameter):
            # 2. Copies and averages of weights follow them.
            if entry.kind.what == "copy":
                self.edits.append(Edit(part(entry.value), axis, index, values))
            # 3. With "restart", what is counted for the whole tensor begins anew.
            elif entry.is_whole(parameter):
                if self.restart and entry.kind.what == "count":
                    self.restarts.append(entry)
            # 4. Everything else has an entry for each weight, or a mean over an axis of them.
            elif entry.kind.what != "ignore":
                tensor = part(entry.value)
                if tensor.shape[axis] == part(parameter).shape[axis]:
                    self.edits.append(self._state_edit(entry, tensor, axis, index, live, redrawn))

    def shift(self, parameter: Tensor, amount: Tensor) -> None:
        """Plan to add to a parameter, and to the copies of it that optimizers keep.

        :param parameter: the parameter
        :param amount: what is added, of its shape
        """
        every = torch.arange(len(parameter), device=parameter.device)
        for tensor in (parameter, *(entry.value for entry in self.state.of(parameter) if entry.kind.what == "copy")):
            self.edits.append(Edit(tensor, 0, every, tensor + amount))

    def _state_edit(
        self, entry: Entry, tensor: Tensor, axis: int, index: Tensor, live: Tensor, redrawn: Tensor | None
    ) -> Edit:
        """Return what becomes of one state tensor, see :meth:`change`."""
        if self.second_moment is None or entry.kind.what != "second_moment" or not len(live):
            return Edit(tensor, axis, index, entry.initial)
        values = self.second_moment.of(tensor, axis, index, live)
        # A column's value per row came from the live columns of that row. A redrawn row has no such past: it gets the
        # mean over the other rows.
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
    """Return a layer's ``weight`` or ``bias``; ``None`` for a bias that it does not have."""
    parameter = getattr(policy.get_submodule(layer), name)
    assert parameter is None or isinstance(parameter, Tensor)
    return parameter


def groups(layer: nn.Module, weight: Tensor) -> Sequence[tuple[slice, slice]]:
    """Return pairs of rows of a weight and the input positions that they read.

    A grouped convolution has a pair per group. Any other layer has one, of all rows and all positions.
    """
    number = int(getattr(layer, "groups", 1))
    outputs, inputs = len(weight) // number, weight.shape[1]
    return [(slice(g * outputs, (g + 1) * outputs), slice(g * inputs, (g + 1) * inputs)) for g in range(number)]
