"""Computes dormancy scores, overlaps and revived shares (Sokar et al. 2023, section 3)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


def dormancy_scores(mean_activations: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Return each neuron's mean absolute activation over the mean of its layer (Sokar et al. 2023, eq. 1).

    The scores of a layer average 1. The paper's "sum to 1" is a slip (google/dopamine issue 209). If all activations
    of a layer are 0, so are its scores.

    :param mean_activations: mean \\|h\\| over the batch, and over space for a convolution, [neurons]. A factor that
        all neurons of a layer share makes no difference.
    :param sizes: number of neurons of each layer, in order. Default: one layer.
    :return: [neurons]

    >>> dormancy_scores(torch.tensor([0.0, 1.0, 3.0, 4.0]))
    tensor([0.0000, 0.5000, 1.5000, 2.0000])
    """
    # All layers at once where possible: in small networks the number of operations determines the cost.
    layers = torch.split(mean_activations, list(sizes or [len(mean_activations)]))
    means = torch.cat([layer.mean().expand(len(layer)) for layer in layers])
    return mean_activations / means.masked_fill_(means == 0, 1.0)


def overlap(one: Iterable[Tensor], other: Iterable[Tensor]) -> float | None:
    """Return the overlap coefficient of two sets of neurons, or ``None`` if one is empty.

    It is \\|X∩Y\\| / min(\\|X\\|, \\|Y\\|), in [0, 1].

    :param one: a bool mask per layer, [neurons]
    :param other: a bool mask per layer, in the same order
    """
    both = smaller = larger = 0
    for x, y in zip(one, other, strict=True):
        both += int((x & y).sum())
        smaller += int(x.sum())
        larger += int(y.sum())
    return both / min(smaller, larger) if min(smaller, larger) else None


def revived(now: Iterable[Tensor], before: Iterable[Tensor]) -> float | None:
    """Return the share of previously dormant neurons that are active now, in [0, 1]. ``None`` if none was dormant.

    :param now: masks of dormant neurons, one per layer, bool [neurons]
    :param before: the earlier masks, in the same order
    """
    were = still = 0
    for is_dormant, was_dormant in zip(now, before, strict=True):
        were += int(was_dormant.sum())
        still += int((is_dormant & was_dormant).sum())
    return (were - still) / were if were else None


@dataclass(frozen=True)
class LayerDormancy:
    """The dormancy of one layer on one batch.

    :param name: module path below the policy
    :param network: its network, for instance ``q_net`` or ``critic``
    :param scores: dormancy scores, [neurons]; NaN where the activations were not finite
    :param dormant: bool mask, [neurons]: score at most the threshold
    :param recyclable: whether its neurons can be recycled
    """

    name: str
    network: str
    scores: Tensor = field(repr=False)
    dormant: Tensor = field(repr=False)
    recyclable: bool

    @property
    def neurons(self) -> int:
        return len(self.dormant)

    @property
    def dormant_fraction(self) -> float:
        """Return dormant neurons over neurons, in [0, 1]."""
        return float(self.dormant.sum()) / self.neurons

    @property
    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.scores).all())
