"""Applies width, layer norm, activation and initialiser to layers."""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from sb3_redo.networks.activations import Concatenating, CReLU, Fourier
from sb3_redo.validation import non_negative_number, positive_integer

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "crelu": CReLU,
    "fourier": Fourier,
}

INITIALIZERS = ("xavier_uniform", "kaiming_uniform", "orthogonal")
"""Names of distributions: functions of torch.nn.init without the trailing underscore."""

# Networks of SB3's policies whose last layer is hidden. Their output layer is built elsewhere.
_WITHOUT_OUTPUT = ("latent_pi", "policy_net", "value_net")


def positive_width(width: Any) -> float:
    """:raises TypeError: on anything but a number; :raises ValueError: unless above 0 and finite"""
    number = non_negative_number("width", width)
    if number == 0:
        raise ValueError(f"width must be greater than 0, got {width!r}")
    return number


def scaled_size(size: int, width: float) -> int:
    """Return ``size * width`` rounded to the nearest number of neurons, halves up, at least 1."""
    return max(1, math.floor(size * width + 0.5))


def feature_size(size: int, width: float, activation_fn: type[nn.Module] = nn.ReLU) -> int:
    """Return the number of features of a hidden layer of ``size`` neurons: the same, or twice that."""
    if issubclass(activation_fn, Concatenating):
        return 2 * scaled_size(size, width * activation_fn.neurons)
    return scaled_size(size, width)


def neurons_of(features: int, activation_fn: type[nn.Module]) -> int:
    """Return the neurons of a hidden layer with a number of features."""
    return features // 2 if issubclass(activation_fn, Concatenating) else features


def scaled_net_arch(net_arch: Any, width: float, activation_fn: type[nn.Module] = nn.ReLU) -> Any:
    """Return a copy of ``net_arch``, in any of SB3's forms, with each layer's number of features at a width.

    >>> scaled_net_arch({"pi": [64], "qf": [400, 300]}, 0.5)
    {'pi': [32], 'qf': [200, 150]}

    :raises TypeError: unless all sizes are integers; :raises ValueError: on one below 1
    """
    if isinstance(net_arch, dict):
        return {name: scaled_net_arch(sizes, width, activation_fn) for name, sizes in net_arch.items()}
    if isinstance(net_arch, (list, tuple)):
        return [feature_size(positive_integer("a size in net_arch", size), width, activation_fn) for size in net_arch]
    raise TypeError(f"net_arch must be a list of sizes or a dictionary of such lists, got {net_arch!r}")


def layer_norm(layer: nn.Module) -> nn.Module:
    """Return a layer norm for the output of a linear layer or a convolution.

    For a convolution, mean and variance are over channels and positions, as those of Ba et al. (2016) are over all
    neurons of a layer. Scale and offset are learned per channel, so each belongs to one neuron.
    """
    if isinstance(layer, nn.Conv2d):
        return nn.GroupNorm(1, layer.out_channels)
    assert isinstance(layer, nn.Linear)
    return nn.LayerNorm(layer.out_features)


def mlps(network: nn.Module) -> Iterator[tuple[nn.Sequential, list[nn.Linear]]]:
    """Yield a network's own MLPs, each with its hidden linear layers. SB3's critics keep the same objects in a list."""
    for name, mlp in network.named_children():
        if isinstance(mlp, nn.Sequential):
            linear = [layer for layer in mlp if isinstance(layer, nn.Linear)]
            yield mlp, linear if name in _WITHOUT_OUTPUT else linear[:-1]


def halve_neurons(network: nn.Module) -> None:
    """Halve the neurons of hidden linear layers, in place, for an activation with two features per neuron."""
    for mlp, hidden in mlps(network):
        for layer in hidden:
            halved = nn.Linear(layer.in_features, layer.out_features // 2, bias=layer.bias is not None)
            mlp[list(mlp).index(layer)] = halved.to(layer.weight.device)


def add_layer_norm(network: nn.Module) -> None:
    """Insert layer norm after each hidden linear layer of a network's own MLPs, in place."""
    for mlp, hidden in mlps(network):
        for layer in hidden:
            mlp.insert(list(mlp).index(layer) + 1, layer_norm(layer).to(layer.weight.device))


def initialise(module: nn.Module, initializer: str) -> None:
    """Initialise the kernels of all linear layers and convolutions, in place, and set their biases to 0.

    :param initializer: a name in :data:`INITIALIZERS`. The paper's is ``xavier_uniform``, for output layers too.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            # Looked up at each call: code that watches initialisation replaces functions of nn.init.
            getattr(nn.init, f"{initializer}_")(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
