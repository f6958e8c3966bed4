"""Activations that make two features of every neuron."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn


class Concatenating(nn.Module):
    """Puts two functions of its input side by side: ``[batch, neurons, ...]`` becomes ``[batch, 2 · neurons, ...]``.

    SB3 builds networks whose layers have as many inputs as the one before has neurons, so these are for the policies
    and extractors of :mod:`sb3_redo.networks`, which know them as ``activation="crelu"`` and ``"fourier"``.
    """

    neurons: ClassVar[float]
    """How many neurons a layer gets for each that is asked for."""

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

    A layer keeps its neurons and the next one gets twice the inputs. ``width: 0.5`` keeps the features instead.

    >>> CReLU()(torch.tensor([[1.0, -2.0]])).tolist()
    [[1.0, 0.0, 0.0, 2.0]]
    """

    neurons = 1.0
    functions = (torch.relu, lambda inputs: torch.relu(-inputs))


class Fourier(Concatenating):
    """Deep Fourier features (Lewandowski et al. 2024, arXiv 2410.20634): sin(x) and cos(x).

    A layer gets half the neurons, so that there are as many features as asked for; an odd number is rounded up.

    >>> Fourier()(torch.tensor([[0.0, torch.pi / 2]])).round().abs().tolist()
    [[0.0, 1.0, 1.0, 0.0]]
    """

    neurons = 0.5
    functions = (torch.sin, torch.cos)
