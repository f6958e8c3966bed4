"""The inputs of a policy's networks."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from sb3_redo.forward.nested import map_tensors, tensors_in


class Batch(NamedTuple):
    """The inputs of a policy's networks.

    :param observations: as the networks take them: a tensor [batch, ...] or a dictionary of tensors
    :param actions: for critics of continuous actions, [batch, action size] in [-1, 1]; else unused
    :param states: for recurrent policies, the states at each observation: hidden and cell states of actor and critic,
        each [batch, layers, size], and whether an episode started there, [batch]; else empty
    """

    observations: Any
    actions: Tensor | None = None
    states: tuple[Tensor, ...] = ()


def fixed_observations(observations: Any) -> Any:
    """Return a copy of observations as tensors, or ``None`` for ``None``.

    :param observations: arrays, tensors or nested lists [batch, ...], a dictionary of them, or a :class:`Batch`
    :raises TypeError: when they are none of these
    :raises ValueError: when there are none
    """
    if observations is None:
        return None
    try:
        arrays = {None: observations} if not isinstance(observations, Mapping) else observations
        arrays = {key: np.asarray(each) if isinstance(each, list) else each for key, each in arrays.items()}
        copied = map_tensors(lambda tensor: tensor.detach().clone(), arrays)
        copied = copied if isinstance(observations, Mapping) else copied[None]
        sizes = [len(tensor) for tensor in tensors_in(copied)]
        if not sizes:
            raise TypeError("no tensor")
    except (TypeError, ValueError) as error:
        raise TypeError(
            "observations must be an array or tensor [batch, ...], a dictionary of them or a batch of a report, got "
            f"{observations!r:.200}"
        ) from error
    if 0 in sizes:
        raise ValueError("observations must hold at least one row, got none")
    return copied
