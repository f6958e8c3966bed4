"""The base of scalable policies."""

import difflib
import inspect
from dataclasses import asdict, dataclass
from typing import Any

from gymnasium import spaces
from stable_baselines3.common import torch_layers
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_redo.networks.activations import Concatenating
from sb3_redo.networks.extractors import EXTRACTORS, CombinedExtractor
from sb3_redo.networks.layers import (
    ACTIVATIONS,
    INITIALIZERS,
    add_layer_norm,
    halve_neurons,
    initialise,
    positive_width,
    scaled_net_arch,
)
from sb3_redo.networks.optimizers import optimizer_named
from sb3_redo.networks.spectral import PLACES, add_spectral_norm
from sb3_redo.validation import flag, one_of


@dataclass(frozen=True)
class Scaling:
    """The settings that a scalable policy adds to SB3's, see :class:`Scalable`."""

    width: float = 1.0
    layer_norm: bool = False
    activation: str | None = None
    initializer: str | None = None
    extractor: str = "nature"
    spectral_norm: str | None = None

    def __post_init__(self) -> None:
        positive_width(self.width)
        flag("layer_norm", self.layer_norm)
        one_of("extractor", self.extractor, tuple(EXTRACTORS))
        choices_of = {"activation": ACTIVATIONS, "initializer": INITIALIZERS, "spectral_norm": PLACES}
        for name, choices in choices_of.items():
            if getattr(self, name) is not None:
                one_of(name, getattr(self, name), tuple(choices))

    def changed(self) -> str:
        """Return the differences from the defaults in words, or an empty string."""
        return ", ".join(f"{name}={value!r}" for name, value in asdict(self).items() if value != _DEFAULTS[name])

    @property
    def activation_fn(self) -> type[nn.Module] | None:
        """The activation of all hidden layers, if one was named."""
        return None if self.activation is None else ACTIVATIONS[self.activation]

    @property
    def concatenates(self) -> bool:
        """Whether the activation gives two features per neuron."""
        return self.activation_fn is not None and issubclass(self.activation_fn, Concatenating)

    def net_arch(self, net_arch: Any) -> Any:
        """Return a copy of ``net_arch`` with each layer's number of features."""
        return scaled_net_arch(net_arch, float(self.width), self.activation_fn or nn.ReLU)

    def of_extractor(self) -> dict[str, Any]:
        """Return keyword arguments of the features extractors."""
        activation = {} if self.activation_fn is None else {"activation_fn": self.activation_fn}
        return {"width": self.width, "layer_norm": self.layer_norm, "initializer": self.initializer, **activation}


_DEFAULTS = {name: field.default for name, field in Scaling.__dataclass_fields__.items()}


class Scalable(BasePolicy):
    """Mixed in before one of SB3's policies. Builds its networks, scaled.

    With default settings, the networks are SB3's, bit for bit.

    :param width: factor on the number of neurons of each hidden layer: those of ``net_arch`` (given, or the
        algorithm's default), convolutions, and the features extractor's dense layer
    :param layer_norm: whether layer norm follows each hidden layer and convolution, before its activation
    :param activation: name of the activation of all hidden layers, including those of the features extractor, which
        SB3's ``activation_fn`` does not change. ``crelu`` and ``fourier`` give two features per neuron. Default: the
        algorithm's.
    :param initializer: name of the distribution of all kernels, output layers included, with biases 0:
        ``xavier_uniform`` (the paper's), ``kaiming_uniform``, ``orthogonal`` (gain 1). Default: the algorithm's.
    :param extractor: the extractor for images: ``nature`` or ``impala``. As in SB3, ``features_extractor_kwargs`` takes
        precedence.
    :param spectral_norm: linear layers whose weights are divided by their largest singular value. ``penultimate`` for
        the last hidden ones (Gogianu et al. 2021), or ``first`` (Lyle et al. 2023), see
        :func:`~sb3_redo.networks.spectral.add_spectral_norm`
    :param settings: of SB3's policy. ``optimizer_class`` may be a dotted path, as YAML has it.
    :raises TypeError, ValueError: on a wrong setting, or one that does not apply to the given features extractor
    """

    scaling: Scaling
    net_arch: Any

    def __init__(self, *spaces_and_schedule: Any, **settings: Any) -> None:
        _check_names(type(self).__name__, settings, {*inspect.signature(super().__init__).parameters, *_DEFAULTS})
        self.scaling = Scaling(**{name: settings.pop(name) for name in _DEFAULTS if name in settings})
        activation = self.scaling.activation
        if activation is not None:
            if "activation_fn" in settings:
                raise ValueError(f"activation={activation!r} and activation_fn exclude each other: give one of them")
            settings["activation_fn"] = ACTIVATIONS[activation]
        for name, kind in ACTIVATIONS.items():
            if issubclass(kind, Concatenating) and settings.get("activation_fn") is kind and activation != name:
                raise ValueError(f"an activation with two features per neuron is given by name: activation={name!r}")
        if isinstance(settings.get("optimizer_class"), str):
            settings["optimizer_class"] = optimizer_named(settings["optimizer_class"])
        super().__init__(*spaces_and_schedule, **settings)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """Build the features extractor, ours instead of SB3's."""
        # Not passed to the constructor: SB3 chooses net_arch by comparing the extractor's class with NatureCNN.
        kind, given, scaling = self.features_extractor_class, self.features_extractor_kwargs, self.scaling
        own = scaling.of_extractor()
        if kind is torch_layers.NatureCNN:
            return EXTRACTORS[scaling.extractor](self.observation_space, **{**own, **given})
        if kind is torch_layers.CombinedExtractor:
            assert isinstance(self.observation_space, spaces.Dict)
            return CombinedExtractor(self.observation_space, **{"extractor": scaling.extractor, **own, **given})
        if scaling.extractor != "nature":
            raise ValueError(
                f"extractor={scaling.extractor!r} is for policies that see images through SB3's NatureCNN or "
                f"CombinedExtractor, but this {type(self).__name__} uses {kind.__name__}"
            )
        if issubclass(kind, (*EXTRACTORS.values(), CombinedExtractor)):
            image = {} if self.normalize_images else {"normalized_image": True}
            return kind(self.observation_space, **{**own, **image, **given})
        if kind is not torch_layers.FlattenExtractor and scaling.changed():
            raise ValueError(
                f"{scaling.changed()} would leave features_extractor_class={kind.__name__} as it is: "
                "give an extractor of sb3_redo.networks, or scale the layers behind yours with net_arch"
            )
        return super().make_features_extractor()

    def _build(self, lr_schedule: Schedule) -> None:
        # SB3's constructor has set net_arch, but has built nothing from it yet.
        self._unscaled_net_arch = self.net_arch
        self.net_arch = self.scaling.net_arch(self.net_arch)
        for name in ("net_args", "actor_kwargs", "critic_kwargs"):
            if name in self.__dict__:
                self.__dict__[name]["net_arch"] = self.scaling.net_arch(self.__dict__[name]["net_arch"])
        super()._build(lr_schedule)  # type: ignore[misc]

    def _finish(self, network: Any) -> Any:
        """Apply all settings except width to a network just built by SB3, in place. Its extractor has them already."""
        if self.scaling.concatenates:
            halve_neurons(network)
        if self.scaling.layer_norm:
            add_layer_norm(network)
        if self.scaling.initializer is not None:
            for name, part in network.named_children():
                if not name.endswith("features_extractor"):
                    initialise(part, self.scaling.initializer)
        # Last, since initialisers would fill a copy of normalised weights.
        extractor = getattr(network, "features_extractor", None)
        if self.scaling.spectral_norm is not None and extractor is not None:
            add_spectral_norm(self.scaling.spectral_norm, network, [extractor])
        return network

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(asdict(self.scaling), net_arch=self._unscaled_net_arch)
        if self.scaling.activation is not None:
            del data["activation_fn"]
        return data


def _check_names(policy: str, settings: dict[str, Any], known: set[str]) -> None:
    for name in settings:
        if name not in known:
            nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise TypeError(f"{policy} has no setting {name!r}{hint}")
