"""Curvature of a loss: the largest eigenvalue of its Hessian, and the density of all, without building the matrix.

The library ``curvlinops`` is not used. It requires a loss that is one of torch's modules, draws its vectors from
torch's global random stream, does not keep them orthogonal, and depends on eight packages.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sb3_redo.plasticity.network import Network, flat
from sb3_redo.plasticity.objectives import Objective

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix times a vector [entries]."""


def hessian_product(network: Network, objective: Objective) -> Product:
    """Return the Hessian of the mean loss times a vector [parameters], in the order of ``network.parameters``.

    Keeps the graph of the gradient, so that each product is one backward pass. Does not change ``.grad``.
    """
    parameters = list(network.parameters.values())
    with network.examined():
        loss = objective.mean(network)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    pairs = [(g, p) for g, p in zip(gradients, parameters, strict=True) if g is not None and g.requires_grad]

    def product(vector: Tensor) -> Tensor:
        parts = dict(zip(parameters, vector.split([p.numel() for p in parameters]), strict=True))  # type: ignore[no-untyped-call]
        with network.examined():
            found = torch.autograd.grad(
                [g for g, _ in pairs],
                parameters,
                [parts[p].view_as(p) for _, p in pairs],
                retain_graph=True,
                allow_unused=True,
            )
        return flat(found, parameters)

    return product


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues estimated by Lanczos runs from several vectors: nodes and weights of a Gauss quadrature per run.

    :param nodes: [vectors, at most steps]; NaN after a run ended early
    :param weights: same shape; those of a run add up to 1
    :param size: number of eigenvalues
    """

    nodes: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    size: int

    @property
    def largest(self) -> float:
        """The largest node: a lower bound of the largest eigenvalue that gets closer with more steps."""
        return float(self.nodes.nan_to_num(-math.inf).max()) if self.is_finite else math.nan

    @property
    def smallest(self) -> float:
        return float(self.nodes.nan_to_num(math.inf).min()) if self.is_finite else math.nan

    @property
    def trace(self) -> float:
        """Estimate of the sum of all eigenvalues."""
        return self.size * float((self.nodes.nan_to_num(0.0) * self.weights).sum(1).mean())

    @property
    def is_finite(self) -> bool:
        """Whether all products with the matrix were finite."""
        return bool(torch.isfinite(self.weights).all())

    def density(self, at: Tensor, width: float) -> Tensor:
        """Return the density of the eigenvalues, each widened to a normal distribution. It integrates to 1.

        :param at: where to evaluate it, [points]
        :param width: standard deviation
        """
        points = at.double()[:, None, None]
        bumps = torch.exp(-0.5 * ((points - self.nodes.nan_to_num(0.0)) / width).pow(2)) / (width * math.sqrt(math.tau))
        return (bumps * self.weights).sum(2).mean(1)


def lanczos(product: Product, start: Tensor, steps: int, tolerance: float | None = None) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of the tridiagonal Lanczos matrix and their weights, [steps or fewer].

    Makes each new vector orthogonal to all earlier ones, twice, so that no eigenvalue is found more than once. Ends
    early when no direction is left.

    :param product: multiplies a vector by the matrix
    :param start: [entries], not all 0
    :param tolerance: also end when the largest eigenvalue is known to this relative error
    """
    basis = start.new_empty(steps, len(start))
    basis[0] = start / start.norm()
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        made = len(diagonal) + 1
        vector = product(basis[made - 1])
        diagonal.append(float(torch.dot(vector, basis[made - 1])))
        for _ in range(2):
            vector = vector - basis[:made].T @ (basis[:made] @ vector)
        left = float(vector.norm())
        # An upper bound of all eigenvalues (Gershgorin), close to the largest one.
        scale = max(map(abs, diagonal)) + 2 * max(beside, default=0.0)
        # A smaller remainder is rounding error.
        rounding = 100 * torch.finfo(start.dtype).eps * scale
        if made == steps or not left > rounding:
            break
        if tolerance is not None:
            nodes, vectors = _tridiagonal(diagonal, beside)
            if abs(left * float(vectors[-1, -1])) <= tolerance * abs(float(nodes[-1])):
                break
        beside.append(left)
        basis[made] = vector / left
    nodes, vectors = _tridiagonal(diagonal, beside)
    return nodes, vectors[0].pow(2)


def _tridiagonal(diagonal: Sequence[float], beside: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return eigenvalues in ascending order and eigenvectors, [entries, eigenvalues]. NaN if not finite."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    if not torch.isfinite(matrix).all():
        return torch.full((len(matrix),), torch.nan, dtype=torch.float64), torch.full_like(matrix, torch.nan)
    nodes, vectors = torch.linalg.eigh(matrix)
    return nodes, vectors


def spectrum(product: Product, starts: Sequence[Tensor], steps: int) -> Spectrum:
    """Run stochastic Lanczos quadrature.

    See Ghorbani et al. 2019, "An investigation into neural net optimization via Hessian eigenvalue density".

    :param product: multiplies a vector by the matrix
    :param starts: start vectors, each [entries]. Unit vectors of all directions give the exact density.
    :param steps: Lanczos steps from each. Each needs memory for a vector.
    """
    runs = [lanczos(product, start, steps) for start in starts]
    longest = max(len(nodes) for nodes, _ in runs)
    nodes = torch.full((len(runs), longest), torch.nan, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for row, (found, share) in enumerate(runs):
        nodes[row, : len(found)], weights[row, : len(found)] = found, share
    return Spectrum(nodes, weights, len(starts[0]))


def hessian_spectrum(
    network: Network, objective: Objective, *, steps: int = 40, vectors: int = 2, seed: int = 0
) -> Spectrum:
    """Return the spectrum of the Hessian of the mean loss, from random vectors.

    :param steps: Lanczos steps; each is one product with the Hessian
    :param vectors: number of start vectors
    :param seed: of the vectors
    """
    return spectrum(hessian_product(network, objective), _random_vectors(network, vectors, seed), steps)


def sharpness(
    network: Network, objective: Objective, *, steps: int = 100, tolerance: float = 1e-3, seed: int = 0
) -> float:
    """Return the largest eigenvalue of the Hessian of the mean loss.

    :param steps: Lanczos steps, at most
    :param tolerance: relative error of the eigenvalue
    :param seed: of the start vector
    """
    start = _random_vectors(network, 1, seed)[0]
    nodes, _ = lanczos(hessian_product(network, objective), start, steps, tolerance)
    return float(nodes[-1])


def _random_vectors(network: Network, vectors: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    like = next(iter(network.parameters.values()))
    return [torch.randn(network.size, generator=generator).to(like) for _ in range(vectors)]
