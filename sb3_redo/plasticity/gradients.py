"""Gradients of a loss: their norm, and how gradients of single samples agree (Lyle et al. 2023, eq. 3)."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.func import grad, vmap

from sb3_redo.forward.nested import map_tensors, tensors_in
from sb3_redo.plasticity.network import Network, flat
from sb3_redo.plasticity.objectives import Objective
from sb3_redo.plasticity.ranks import effective_rank, singular_values

_ENTRIES_AT_ONCE = 2**27
"""Entries of gradients held at a time: 512 MiB in float32."""


def gradient(network: Network, objective: Objective) -> Tensor:
    """Return the gradient of the mean loss for all parameters, [parameters]. Does not change ``.grad``."""
    parameters = list(network.parameters.values())
    with network.examined():
        found = torch.autograd.grad(objective.mean(network), parameters, allow_unused=True)
    return flat(found, parameters)


def gradient_norm(network: Network, objective: Objective) -> float:
    """Return the L2 norm of the gradient of the mean loss."""
    return float(gradient(network, objective).norm())


def per_sample_gradients(network: Network, objective: Objective) -> Tensor:
    """Return the gradient of each row's loss, [batch, parameters]."""
    with network.examined():
        try:
            return _vectorised(network, objective)
        except RuntimeError as error:
            # A network that reads values while it runs, such as a recurrent one, cannot be vectorised.
            if "vmap" not in str(error):
                raise
        return torch.stack([_of_row(network, objective, row) for row in range(_rows(objective))])


def _vectorised(network: Network, objective: Objective) -> Tensor:
    nest = objective.batch, objective.targets

    def loss_of_one(parameters: dict[str, Tensor], *leaves: Tensor) -> Tensor:
        remaining = iter(leaves)
        batch, targets = map_tensors(lambda _: next(remaining).unsqueeze(0), nest)
        return replace(objective, batch=batch, targets=targets).of_rows(network, parameters).squeeze(0)

    leaves = list(tensors_in(nest))
    parameters = {name: parameter.detach() for name, parameter in network.parameters.items()}
    found = vmap(grad(loss_of_one), in_dims=(None, *([0] * len(leaves))))(parameters, *leaves)
    return torch.cat([found[name].detach().flatten(1) for name in network.parameters], 1)


def _of_row(network: Network, objective: Objective, row: int) -> Tensor:
    return gradient(network, _part(objective, slice(row, row + 1)))


def _part(objective: Objective, rows: slice) -> Objective:
    batch, targets = map_tensors(lambda tensor: tensor[rows], (objective.batch, objective.targets))
    return replace(objective, batch=batch, targets=targets)


def _rows(objective: Objective) -> int:
    return len(next(tensors_in(objective.batch)))


@dataclass(frozen=True)
class GradientCovariance:
    """The agreement of the gradients of single samples.

    :param products: ⟨gᵢ, gⱼ⟩, [batch, batch]; not centred, as in the paper
    """

    products: Tensor = field(repr=False)

    @property
    def cosines(self) -> Tensor:
        """⟨gᵢ, gⱼ⟩ / (‖gᵢ‖ ‖gⱼ‖), [batch, batch]: eq. 3; 0 where a gradient is 0."""
        lengths = self.products.diagonal().sqrt()
        scale = torch.outer(lengths, lengths)
        return torch.where(scale == 0, 0.0, self.products / scale).clamp(-1, 1)

    @property
    def _pairs(self) -> Tensor:
        """Cosines of pairs of different samples with non-zero gradients."""
        some = self.products.diagonal() != 0
        cosines = self.cosines[some][:, some]
        above = torch.triu_indices(len(cosines), len(cosines), 1)
        return cosines[above[0], above[1]]

    @property
    def negative_share(self) -> float:
        """Share of pairs with a negative cosine. NaN without pairs, or if a cosine is not finite."""
        pairs = self._pairs
        return float((pairs < 0).double().mean()) if torch.isfinite(pairs).all() else float("nan")

    @property
    def mean_cosine(self) -> float:
        """Mean over pairs of different samples: 1 for collinear gradients, 0 for unrelated ones."""
        return float(self._pairs.double().mean())

    @property
    def effective_rank(self) -> float:
        """Effective rank of the cosines: 1 for collinear gradients, their number for orthogonal ones."""
        return effective_rank(singular_values(self.cosines))


def gradient_covariance(network: Network, objective: Objective) -> GradientCovariance:
    """Multiply all pairs of per-sample gradients. Works in blocks if the gradients need too much memory."""
    size = max(1, _ENTRIES_AT_ONCE // network.size)
    parts = [slice(start, start + size) for start in range(0, _rows(objective), size)]
    products = torch.zeros(_rows(objective), _rows(objective), dtype=torch.float64)
    for number, rows in enumerate(parts):
        one = per_sample_gradients(network, _part(objective, rows))
        for columns in parts[number:]:
            other = one if columns is rows else per_sample_gradients(network, _part(objective, columns))
            block = (one @ other.T).double().cpu()
            products[rows, columns], products[columns, rows] = block, block.T
    return GradientCovariance(products)
