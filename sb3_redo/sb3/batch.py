"""What the networks of a policy are run on."""

from typing import Any, NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """What a policy's networks are run on.

    :param observations: as the networks take them: a tensor [batch, ...] or a dictionary of such
    :param actions: for critics of continuous actions, [batch, action size] in [-1, 1], else unused
    :param states: for recurrent policies what each observation was met with: hidden and cell states of the actor and
        of the critic, each [batch, layers, size], and whether an episode started there, [batch]; else empty
    """

    observations: Any
    actions: Tensor | None = None
    states: tuple[Tensor, ...] = ()
