"""Features extractors with a width: the Nature CNN, the IMPALA ResNet, and either for dictionaries with images."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from sb3_redo.networks.activations import Concatenating
from sb3_redo.networks.layers import INITIALIZERS, feature_size, initialise, layer_norm, neurons_of, positive_width
from sb3_redo.validation import flag, one_of


@dataclass(frozen=True)
class _Style:
    """Builds the hidden layers of an extractor."""

    width: float
    layer_norm: bool
    activation_fn: type[nn.Module]

    def features(self, size: int) -> int:
        return feature_size(size, self.width, self.activation_fn)

    def neurons(self, features: int) -> int:
        return neurons_of(features, self.activation_fn)

    def normalised(self, layer: nn.Module) -> list[nn.Module]:
        return [layer, layer_norm(layer)] if self.layer_norm else [layer]

    def activated(self, layer: nn.Module) -> list[nn.Module]:
        return [*self.normalised(layer), self.activation_fn()]


class _ImageExtractor(BaseFeaturesExtractor, ABC):
    """Convolutions of a subclass, and a dense layer."""

    smallest: int

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 512,
        normalized_image: bool = False,
        *,
        width: float = 1.0,
        layer_norm: bool = False,
        activation_fn: type[nn.Module] = nn.ReLU,
        initializer: str | None = None,
    ) -> None:
        style = _Style(positive_width(width), flag("layer_norm", layer_norm), activation_fn)
        shape = self._image_shape(observation_space, normalized_image)
        super().__init__(observation_space, style.features(features_dim))
        self.cnn = self._convolutions(shape[0], style)
        with torch.no_grad():
            flattened = self.cnn(torch.zeros(1, *shape)).shape[1]
        self.linear = nn.Sequential(*style.activated(nn.Linear(flattened, style.neurons(self.features_dim))))
        if initializer is not None:
            initialise(self, one_of("initializer", initializer, INITIALIZERS))

    def _image_shape(self, space: spaces.Space[Any], normalized_image: bool) -> tuple[int, ...]:
        """:return: channels, height, width"""
        name = type(self).__name__
        is_image = is_image_space(space, check_channels=False, normalized_image=normalized_image)
        if not (isinstance(space, spaces.Box) and is_image):
            hint = "" if normalized_image else "; for images of another kind, set normalized_image=True"
            raise ValueError(f"{name} needs images of dtype uint8 in [0, 255], channels first, got {space}{hint}")
        if min(space.shape[1:]) < self.smallest:
            raise ValueError(
                f"{name} needs images, channels first, of at least {self.smallest} x {self.smallest} pixels, "
                f"got observations of shape {space.shape}"
            )
        return space.shape

    @abstractmethod
    def _convolutions(self, channels: int, style: _Style) -> nn.Sequential:
        """Return all layers before the dense one, including the flattening."""

    def forward(self, observations: Tensor) -> Tensor:
        """
        :param observations: [batch, channels, height, width]
        :return: [batch, features]
        """
        features: Tensor = self.linear(self.cnn(observations))
        return features


class NatureCNN(_ImageExtractor):
    """The network of Mnih et al. (2015): 32, 64, 64 channels and 512 neurons, times ``width``.

    At width 1 it equals SB3's in all names and weights.

    >>> NatureCNN(spaces.Box(0, 255, (4, 84, 84), "uint8"), width=0.25).features_dim
    128

    :param observation_space: images, channels first
    :param features_dim: neurons of the dense layer at width 1
    :param normalized_image: whether images are floating-point numbers, scaled already
    :param width: factor on the number of neurons of each layer, the dense one included
    :param layer_norm: whether layer norm follows each layer, before its activation
    :param activation_fn: class of all activations
    :param initializer: name of a distribution for all kernels, with biases 0. Default: torch's initialisation.
    :raises TypeError, ValueError: on a wrong setting, or if the observations are not images of sufficient size
    """

    smallest = 36

    def _convolutions(self, channels: int, style: _Style) -> nn.Sequential:
        layers: list[nn.Module] = []
        for outputs, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            outputs = style.features(outputs)
            layers += style.activated(nn.Conv2d(channels, style.neurons(outputs), kernel, stride))
            channels = outputs
        return nn.Sequential(*layers, nn.Flatten())


class ImpalaCNN(_ImageExtractor):
    """The ResNet of Espeholt et al. (2018), without the LSTM, as Sokar et al. use it.

    Three stacks of 32, 64, 64 channels (Espeholt et al.: 16, 32, 32) and 512 neurons (256), times ``width``. A stack
    is a convolution, a max-pooling that halves the image, and two residual blocks. Settings as for :class:`NatureCNN`.

    >>> ImpalaCNN(spaces.Box(0, 255, (4, 84, 84), "uint8"), width=0.25).cnn[0][0]
    Conv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    smallest = 1

    def _convolutions(self, channels: int, style: _Style) -> nn.Sequential:
        if issubclass(style.activation_fn, Concatenating):
            raise ValueError(
                f"{style.activation_fn.__name__} gives two features per neuron, and ImpalaCNN's residual blocks need "
                "one: use the nature extractor"
            )
        stacks: list[nn.Module] = []
        for outputs in (32, 64, 64):
            outputs = style.features(outputs)
            convolution = style.normalised(nn.Conv2d(channels, outputs, 3, padding=1))
            pooling = nn.MaxPool2d(3, stride=2, padding=1)
            stacks.append(nn.Sequential(*convolution, pooling, _Residual(outputs, style), _Residual(outputs, style)))
            channels = outputs
        return nn.Sequential(*stacks, style.activation_fn(), nn.Flatten())


class _Residual(nn.Module):
    """Adds two convolutions of its input to it, each after an activation."""

    def __init__(self, channels: int, style: _Style) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            style.activation_fn(),
            *style.activated(nn.Conv2d(channels, channels, 3, padding=1)),
            *style.normalised(nn.Conv2d(channels, channels, 3, padding=1)),
        )

    def forward(self, stream: Tensor) -> Tensor:
        summed: Tensor = stream + self.branch(stream)
        return summed


EXTRACTORS: dict[str, type[_ImageExtractor]] = {"nature": NatureCNN, "impala": ImpalaCNN}


class CombinedExtractor(BaseFeaturesExtractor):
    """Concatenates features of a dictionary's observations: each image through a CNN, everything else flattened.

    At width 1 it equals SB3's.

    :param observation_space: a dictionary
    :param cnn_output_dim: neurons of each CNN's dense layer at width 1
    :param normalized_image: as for the CNNs
    :param extractor: which CNN: ``nature`` or ``impala``
    :param settings: of the CNNs: ``width``, ``layer_norm``, ``activation_fn``, ``initializer``
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        cnn_output_dim: int = 256,
        normalized_image: bool = False,
        *,
        extractor: str = "nature",
        **settings: Any,
    ) -> None:
        cnn = EXTRACTORS[one_of("extractor", extractor, tuple(EXTRACTORS))]
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(f"{type(self).__name__} needs observations that are a dictionary, got {observation_space}")
        super().__init__(observation_space, features_dim=1)  # placeholder until all parts are known, as in SB3
        self.extractors = nn.ModuleDict()
        features = 0
        for key, space in observation_space.spaces.items():
            if is_image_space(space, normalized_image=normalized_image):
                self.extractors[key] = part = cnn(space, cnn_output_dim, normalized_image, **settings)
                features += part.features_dim
            else:
                self.extractors[key] = nn.Flatten()
                features += get_flattened_obs_dim(space)
        self._features_dim = features

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """
        :param observations: key to tensor [batch, ...]
        :return: [batch, features]
        """
        return torch.cat([part(observations[key]) for key, part in self.extractors.items()], dim=1)
