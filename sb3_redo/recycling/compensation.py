"""Compensation: adds the mean contribution of recycled neurons to their consumers' biases."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.forward.contexts import evaluating, everything_seeded, is_compiled, uncompiled
from sb3_redo.forward.layers import neuron_axis
from sb3_redo.forward.nested import chunks
from sb3_redo.forward.state import unchanged
from sb3_redo.recycling.edits import Planner, layer_parameter
from sb3_redo.wiring.structure import Wiring

Contributions = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Takes consumers with masks over their input positions. Returns these positions' mean contributions.

The contributions are tensors of shape [consumer's neurons]."""


def plan_compensation(
    planner: Planner, wiring: Wiring, neurons: Mapping[str, Tensor], contributions: Contributions
) -> None:
    """Plan to add the mean contribution of recycled inputs to each consumer's bias.

    :param planner: takes the edits
    :param wiring: of the planner's policy
    :param neurons: layer name to the neurons to recycle, long tensor
    :param contributions: returns the mean contributions
    :raises ValueError: when a consumer has no bias
    """
    # 1. For each consumer, a mask of the input positions that recycled neurons feed.
    columns: dict[str, Tensor] = {}
    for name, recycled in neurons.items():
        for consumer, positions in wiring[name].consumers.items():
            fed = torch.isin(positions, recycled.cpu())
            columns[consumer] = columns[consumer] | fed if consumer in columns else fed
    # 2. The mean part of each consumer's output from these positions.
    biases = {consumer: layer_parameter(planner.policy, consumer, "bias") for consumer in columns}
    means = contributions({name: mask.to(planner.device) for name, mask in columns.items()})
    # 3. Its addition to the bias keeps the mean output unchanged.
    for consumer, bias in biases.items():
        if bias is None:
            raise ValueError(f"compensate=True adds to the bias of {consumer}, which has none: use compensate=False")
        if consumer not in means:
            raise ValueError(f"{consumer} did not run: use the same forward= as for the measurement")
        planner.shift(bias, means[consumer])


def measured_contributions(
    policy: nn.Module, wiring: Wiring, forward: Callable[[Any], Any], batch: Any
) -> Contributions:
    """Return a function that measures contributions on a batch. Changes nothing in the policy.

    :param policy: the policy to recycle
    :param wiring: its wiring
    :param forward: runs the policy's networks on a batch
    :param batch: the measured observations
    """
    return lambda columns: mean_contributions(policy, wiring, columns, forward, batch)


def mean_contributions(
    policy: nn.Module, wiring: Wiring, columns: dict[str, Tensor], forward: Callable[[Any], Any], batch: Any
) -> dict[str, Tensor]:
    """Compute the part of each consumer's mean output that comes from some of its input positions.

    :param policy: runs on the batch in evaluation mode, unchanged
    :param wiring: its wiring
    :param columns: consumer name to bool mask over its input positions
    :param forward: runs the policy's networks on a batch
    :param batch: its argument
    :return: consumer name to the mean over batch, space and calls, [consumer's neurons]
    """
    totals: dict[str, Tensor] = {}
    rows: dict[str, int] = defaultdict(int)

    def see(name: str, layer: nn.Module, value: Tensor) -> None:
        total = _mean_contribution(layer, value, columns[name]) * len(value)
        totals[name] = totals[name] + total if name in totals else total
        rows[name] += len(value)

    modules = list(policy.modules())
    as_written, same_state = uncompiled(is_compiled(modules)), unchanged(policy, wiring.stateful)
    with everything_seeded(0), evaluating(modules), as_written, same_state, _watched(policy, columns, see):
        for part in chunks(batch, wiring.rows_at_once):
            forward(part)
    return {name: total / rows[name] for name, total in totals.items()}


def _mean_contribution(layer: Any, value: Tensor, columns: Tensor) -> Tensor:
    # The mean over the batch is taken before the layer: the layer is linear, so the mean output is the output for
    # the mean. The mean over space is taken after it: a convolution reads the borders of its input less often.
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
    """Pass every input of the named layers to a function within this context. Removes the hooks afterwards."""
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
