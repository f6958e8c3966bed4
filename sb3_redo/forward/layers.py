"""Defines which modules are layers, and on which axis of their inputs and outputs the neurons lie."""

from torch import nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYER_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def neuron_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's input positions and output neurons, counted from the end (-1 is the last)."""
    # Reading the weight's shape instead would compute a parametrised weight.
    kernel_size = getattr(layer, "kernel_size", ())
    return -1 - len(kernel_size)
