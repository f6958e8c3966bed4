"""Spectral normalisation (Miyato et al. 2018) of single layers, as used in reinforcement learning."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from sb3_redo.networks.layers import mlps

PLACES = ("penultimate", "first")
"""Which linear layers can be normalised."""

_OF_AVERAGES = 5
"""Power iterations on the weights of a network in evaluation mode."""


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value, estimated by one power iteration per training pass.

    Equals ``torch.nn.utils.parametrizations.spectral_norm`` with other buffer names. SB3 copies buffers that begin with
    ``running_`` to target networks, which need the singular vectors of their weights. In evaluation mode, as for target
    networks, a few more iterations follow, and their result is not kept: an average of earlier weights has other
    singular vectors.

    :param weight: [neurons, inputs]
    :param iterations: number of power iterations before training
    """

    running_u: Tensor
    running_v: Tensor

    def __init__(self, weight: Tensor, iterations: int = 15):
        super().__init__()
        with torch.no_grad():
            self.register_buffer("running_u", functional.normalize(torch.randn_like(weight[:, 0]), dim=0))
            self.register_buffer("running_v", functional.normalize(weight.mT @ self.running_u, dim=0))
            for _ in range(iterations):
                self._iterate(weight)

    def _iterate(self, weight: Tensor) -> None:
        # In place: SB3 holds these tensors, not their names.
        u, v = _iterated(weight, self.running_v)
        self.running_u.copy_(u)
        self.running_v.copy_(v)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight divided by its norm. Changes the buffers in training mode."""
        with torch.no_grad():
            if self.training:
                self._iterate(weight)
            # Copies, so that a later pass does not change them before this one is differentiated.
            u, v = self.running_u.clone(), self.running_v.clone()
            if not self.training:
                for _ in range(_OF_AVERAGES):
                    u, v = _iterated(weight, v)
        return weight / torch.dot(u, weight @ v)


def _iterated(weight: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Make one power iteration."""
    u = functional.normalize(weight @ v, dim=0)
    return u, functional.normalize(weight.mT @ u, dim=0)


def add_spectral_norm(place: str, network: nn.Module, extractors: Iterable[nn.Module]) -> None:
    """Normalise some linear layers of a network, in place. Its parameters remain the same objects.

    :param place: ``penultimate`` for the last hidden layers of its MLPs, or of the extractor if the MLPs have none.
        ``first`` for the first ones of the extractor, or of the MLPs if the extractor has none.
    :param network: has the MLPs
    :param extractors: the extractors before them
    :raises ValueError: when there is no hidden linear layer
    """
    end = -1 if place == "penultimate" else 0
    own = [hidden for _, hidden in mlps(network) if hidden]
    before = [linear for extractor in extractors for linear in _chains(extractor) if linear]
    chains = (own or before) if place == "penultimate" else (before or own)
    if not chains:
        raise ValueError(f"spectral_norm={place!r} needs a hidden linear layer, and there is none: give a net_arch")
    for layer in (chain[end] for chain in chains):
        # An extractor may be shared.
        if not parametrize.is_parametrized(layer):
            parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight.detach()))


def _chains(extractor: nn.Module) -> Iterator[list[nn.Linear]]:
    """Yield the linear layers of an extractor, or of each part of a dictionary's extractor."""
    parts = getattr(extractor, "extractors", None)
    for part in parts.values() if isinstance(parts, nn.ModuleDict) else [extractor]:
        yield [layer for layer in part.modules() if isinstance(layer, nn.Linear)]
