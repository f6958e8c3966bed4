"""Which modules are layers, and on which axis of their inputs and outputs their neurons lie."""

from torch import nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


LAYER_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def neuron_axis(layer: nn.Module) -> int:
    """The axis of a layer's input or output on which its positions or neurons lie, counted from the end."""
    # Not by the weight's shape, since a parametrised weight is computed whenever it is asked for.
    kernel_size = getattr(layer, "kernel_size", ())
    return -1 - len(kernel_size)
