"""What an optimizer keeps for each weight, and what becomes of it when the weight is recycled."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

OPTIMIZER_STATE = ("clear", "restart", "match")

# What adaptive optimizers divide by. Everything else of the parameter's shape is a first moment or a momentum.
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum", "acc_delta")

InitialState = Callable[[Optimizer, str], float]
"""Gives the value with which an optimizer first fills the state tensor of that name."""


@dataclass(frozen=True)
class SecondMoment:
    """A rule for the renewed entries of an optimizer's second moment.

    :param of: computes them from the second moment, an axis of it, the renewed entries along that axis, and the
        entries of live neurons of the same layer
    :param shared: whether all renewed entries along the axis get the same value. For a weight between two recycled
        neurons that value would come from its old row. It becomes the mean over the other rows instead.
    """

    of: Callable[[Tensor, int, Tensor, Tensor], Tensor]
    shared: bool = True


def zero_state(optimizer: Optimizer, key: str) -> float:
    """Return the initial value of a state tensor of torch's own optimizers.

    :param optimizer: the optimizer
    :param key: name of the state tensor
    """
    setting = {"sum": "initial_accumulator_value", "step_size": "lr"}.get(key)
    return float(optimizer.defaults.get(setting, 0.0)) if setting else 0.0


def _mean_of_live(tensor: Tensor, axis: int, renewed: Tensor, live: Tensor) -> Tensor:
    """Return the mean over live neurons, of size 1 along the axis.

    A product with a vector of weights reads the tensor once. Picking the live entries first would copy them.
    """
    weights = torch.zeros(tensor.shape[axis], dtype=tensor.dtype, device=tensor.device)
    weights[live] = 1 / len(live)
    mean: Tensor = torch.tensordot(weights, tensor, dims=([0], [axis])).unsqueeze(axis)
    if not torch.isfinite(mean).all():  # 0 times infinity is NaN
        mean = tensor.index_select(axis, live).mean(axis, keepdim=True)
    return mean


MATCH = SecondMoment(_mean_of_live)
