"""Defines which modules are layers, and on which axis of their inputs and outputs the neurons lie."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYER_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
"""Types of the layers whose outputs are neurons."""


def neuron_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's input positions and output neurons, counted from the end (-1 is the last)."""
    # Reading the weight's shape instead would compute a parametrised weight.
    kernel_size = getattr(layer, "kernel_size", ())
    return -1 - len(kernel_size)


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's own parameters and buffers by name. Includes those of children that torch runs invisibly."""
    is_whole = isinstance(module, torch.jit.ScriptModule)
    yield from module.named_parameters(recurse=is_whole)
    yield from module.named_buffers(recurse=is_whole)


def is_plain(layer: nn.Module) -> bool:
    """Return whether a layer has the forward pass of torch's class. Parametrised weights are allowed."""
    return "forward" not in layer.__dict__ and any(type(layer).forward is kind.forward for kind in LAYER_TYPES)
