"""Three ranks of a matrix, which are often taken for one another."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Ranks of a matrix; 0 for a matrix of zeros, NaN where an entry is not finite.

    :param srank: how many of the largest singular values it takes to reach 99 % of their sum (Kumar et al. 2021,
        "Implicit under-parameterization inhibits data-efficient deep reinforcement learning", with δ = 0.01). Other
        code calls this the stable rank.
    :param effective_rank: e to the entropy of the singular values over their sum (Roy & Vetterli 2007)
    :param stable_rank: sum of the squared singular values over the largest squared one (Rudelson & Vershynin 2007)
    """

    srank: float
    effective_rank: float
    stable_rank: float


def singular_values(matrix: Tensor) -> Tensor:
    """Return singular values of a matrix [rows, columns], largest first, in float64 on the CPU; NaN if an entry is."""
    # Some devices have no float64, and small singular values of a float32 decomposition are off by more than they are.
    exact = matrix.detach().cpu().double()
    if not torch.isfinite(exact).all():
        return torch.full((min(exact.shape),), torch.nan, dtype=torch.float64)
    # Of a wide matrix LAPACK takes six times as long as of the same one upright.
    upright = exact if exact.shape[0] >= exact.shape[1] else exact.T.contiguous()
    values: Tensor = torch.linalg.svdvals(upright)
    return values


def ranks_of(matrix: Tensor) -> Ranks:
    """Return all three ranks of a matrix [rows, columns]; each is at most the smaller of the two.

    >>> ranks_of(torch.diag(torch.tensor([2.0, 1.0, 1.0])))
    Ranks(srank=3.0, effective_rank=2.8284..., stable_rank=1.5)
    """
    values = singular_values(matrix)
    return Ranks(srank(values), effective_rank(values), stable_rank(values))


def srank(values: Tensor, delta: float = 0.01) -> float:
    """Return the fewest singular values that reach a share of 1 - ``delta`` of their sum.

    :param values: singular values, the largest first, [values]
    """
    total = float(values.sum())
    if not total > 0:  # also where it is NaN
        return total
    reached = values.cumsum(0) / total
    # Rounding must not ask for one more where the share is met exactly.
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
