"""What neurons contribute to their consumers on average."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.forward.contexts import evaluating, is_compiled, seeded, uncompiled
from sb3_redo.forward.layers import neuron_axis
from sb3_redo.forward.nested import chunks
from sb3_redo.recycling.edits import Edit, Planner, _parameter


def mean_contributions(
    policy: nn.Module, columns: dict[str, Tensor], forward: Callable[[Any], Any], batch: Any, rows_at_once: int
) -> dict[str, Tensor]:
    """The part of each consumer's mean output that comes from some of its input positions.

    :param policy: runs over the batch, in evaluation mode; nothing in it changes
    :param columns: consumer name to bool mask over its input positions
    :param forward: runs the policy's networks on a batch
    :param batch: its argument
    :param rows_at_once: observations in one pass
    :return: consumer name to the mean over batch, space and calls, [consumer's neurons]
    """
    totals: dict[str, Tensor] = {}
    rows: dict[str, int] = defaultdict(int)

    def see(name: str, layer: nn.Module, value: Tensor) -> None:
        total = _mean_contribution(layer, value, columns[name]) * len(value)
        totals[name] = totals[name] + total if name in totals else total
        rows[name] += len(value)

    modules = list(policy.modules())
    with seeded(0), evaluating(modules), uncompiled(is_compiled(modules)), _watched(policy, columns, see):
        for part in chunks(batch, rows_at_once):
            forward(part)
    return {name: total / rows[name] for name, total in totals.items()}


def _mean_contribution(layer: Any, value: Tensor, columns: Tensor) -> Tensor:
    # Averaged over the batch before the layer, which is linear in its input: the mean of the outputs is the output
    # for the mean. Averaged over space after it, since a convolution sees its input's borders less often.
    mean = value.mean(0, keepdim=True)
    axis = neuron_axis(layer)
    shape = [1] * mean.ndim
    shape[axis] = -1
    without = mean * (~columns).to(mean).view(shape)
    contribution: Tensor = layer.forward(mean) - layer.forward(without)
    return contribution.movedim(axis, 0).flatten(1).mean(1)


@contextmanager
def _watched(
    policy: nn.Module, names: dict[str, Tensor], see: Callable[[str, nn.Module, Tensor], None]
) -> Iterator[None]:
    """Shows every input of the named layers, without a trace afterwards."""
    handles = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda layer, args, kwargs: see(name, layer, args[0] if args else kwargs["input"])

    try:
        for name in names:
            handles.append(policy.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


Contributions = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""From consumers to masks over their input positions, what these contribute to their outputs on average, [neurons]."""


def _measured(policy: nn.Module, report: DormancyReport, forward: Callable[[Any], Any] | None) -> Contributions:
    assert forward is not None
    run = forward

    def contributions(columns: dict[str, Tensor]) -> dict[str, Tensor]:
        return mean_contributions(policy, columns, run, report.batch, report.wiring.rows_at_once)

    return contributions


def _plan_compensation(
    planner: Planner, report: DormancyReport, dormant: dict[str, Tensor], contributions: Contributions
) -> None:
    """Add to each consumer's bias what its dormant inputs contributed on average."""
    columns: dict[str, Tensor] = {}
    for name, neurons in dormant.items():
        for consumer, positions in report.wiring[name].consumers.items():
            theirs = torch.isin(positions, neurons.cpu())
            columns[consumer] = columns[consumer] | theirs if consumer in columns else theirs
    biases = {consumer: _parameter(planner.policy, consumer, "bias") for consumer in columns}
    means = contributions({name: mask.to(planner.device) for name, mask in columns.items()})
    for consumer, bias in biases.items():
        if bias is None:
            raise ValueError(f"compensate=True adds to the bias of {consumer}, which has none: use compensate=False")
        every = torch.arange(len(bias), device=bias.device)
        planner.edits.append(Edit(bias, 0, every, bias + means[consumer]))
