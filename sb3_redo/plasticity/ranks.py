"""Three ranks of a matrix that are often confused."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Ranks of a matrix: 0 for a matrix of zeros, NaN if an entry is not finite.

    :param srank: number of largest singular values that reach 99 % of the sum of all (Kumar et al. 2021,
        "Implicit under-parameterization inhibits data-efficient deep reinforcement learning", with δ = 0.01). Other
        code calls this the stable rank.
    :param effective_rank: e to the entropy of the singular values over their sum (Roy & Vetterli 2007)
    :param stable_rank: sum of the squared singular values over the largest squared one (Rudelson & Vershynin 2007)
    """

    srank: float
    effective_rank: float
    stable_rank: float


def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values of [rows, columns], largest first, in float64 on the CPU. NaN if an entry is."""
    # Some devices lack float64. In float32 the error of small singular values exceeds their size.
    exact = matrix.detach().cpu().double()
    if not torch.isfinite(exact).all():
        return torch.full((min(exact.shape),), torch.nan, dtype=torch.float64)
    # LAPACK takes six times as long for a wide matrix as for its transpose.
    upright = exact if exact.shape[0] >= exact.shape[1] else exact.T.contiguous()
    values: Tensor = torch.linalg.svdvals(upright)
    return values


def ranks_of(matrix: Tensor) -> Ranks:
    """Return all three ranks of a matrix [rows, columns]. Each is at most the smaller dimension.

    >>> ranks_of(torch.diag(torch.tensor([2.0, 1.0, 1.0])))
    Ranks(srank=3.0, effective_rank=2.8284..., stable_rank=1.5)
    """
    values = singular_values(matrix)
    return Ranks(srank(values), effective_rank(values), stable_rank(values))


def srank(values: Tensor, delta: float = 0.01) -> float:
    """Return the smallest number of singular values whose sum is a share of at least 1 - ``delta``.

    :param values: singular values, the largest first, [values]
    """
    total = float(values.sum())
    if not total > 0:  # also where it is NaN
        return total
    reached = values.cumsum(0) / total
    # A share that is met exactly must not need one more because of rounding.
    return float((reached < 1 - delta - 1e-12).sum() + 1)


def effective_rank(values: Tensor) -> float:
    """Return e to the entropy, in nats, of the singular values over their sum, [values]."""
    total = float(values.sum())
    if not total > 0:
        return total
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def stable_rank(values: Tensor) -> float:
    """Return squared Frobenius norm over squared spectral norm, from singular values, the largest first, [values]."""
    largest = float(values[0])
    if not largest > 0:
        return largest
    return float((values / largest).pow(2).sum())
