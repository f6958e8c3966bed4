"""Activations that give two features per neuron."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn


class Concatenating(nn.Module):
    """Concatenates two functions of its input: ``[batch, neurons, ...]`` becomes ``[batch, 2 · neurons, ...]``.

    For the policies and extractors of :mod:`sb3_redo.networks`, as ``activation="crelu"`` and ``"fourier"``. SB3's own
    networks cannot use them: their layers have one input per neuron of the layer before.
    """

    neurons: ClassVar[float]
    """Neurons of a layer per requested neuron."""

    functions: ClassVar[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]
    """The two functions."""

    def forward(self, inputs: Tensor) -> Tensor:
        """
        :param inputs: [batch, neurons, ...]
        :return: [batch, 2 · neurons, ...]
        """
        return torch.cat([function(inputs) for function in self.functions], dim=1)


class CReLU(Concatenating):
    """Concatenated ReLU (Shang et al. 2016; in reinforcement learning Abbas et al. 2023): relu(x) and relu(-x).

    A layer keeps its number of neurons, and the next one gets twice the inputs. ``width: 0.5`` keeps the number of
    features instead.

    >>> CReLU()(torch.tensor([[1.0, -2.0]])).tolist()
    [[1.0, 0.0, 0.0, 2.0]]
    """

    neurons = 1.0
    functions = (torch.relu, lambda inputs: torch.relu(-inputs))


class Fourier(Concatenating):
    """Deep Fourier features (Lewandowski et al. 2024, arXiv 2410.20634): sin(x) and cos(x).

    A layer gets half the neurons, rounded up, so that it has the requested number of features.

    >>> Fourier()(torch.tensor([[0.0, torch.pi / 2]])).round().abs().tolist()
    [[0.0, 1.0, 1.0, 0.0]]
    """

    neurons = 0.5
    functions = (torch.sin, torch.cos)
