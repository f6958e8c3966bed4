"""What neurons contribute to their consumers on average."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sb3_redo.forward.contexts import chunks, evaluating, is_compiled, seeded, uncompiled
from sb3_redo.wiring.frozen_network import neuron_axis


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
