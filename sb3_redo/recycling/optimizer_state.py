"""New values for weights together with those of the state that their optimizers keep for them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

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
