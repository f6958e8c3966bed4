"""Networks whose values are means of distributions over bins, for :class:`sb3_redo.algorithms.CategoricalDQN`.

See Imani & White 2018, "Improving Regression Performance with Distributional Losses", and Farebrother et al. 2024,
"Stop Regressing", section 3.
"""

from dataclasses import asdict, dataclass
from typing import Any

import stable_baselines3.dqn.policies as dqn
import torch
from stable_baselines3.common.torch_layers import create_mlp
from torch import Tensor, nn

from sb3_redo.networks.policies import DQNCnnPolicy, DQNMlpPolicy, DQNMultiInputPolicy
from sb3_redo.networks.scalable import Scalable
from sb3_redo.validation import finite_number, positive_integer


@dataclass(frozen=True)
class Support:
    """The centres of the bins: evenly spaced from ``v_min`` to ``v_max``."""

    n_bins: int = 51
    v_min: float = -10.0
    v_max: float = 10.0

    def __post_init__(self) -> None:
        if positive_integer("n_bins", self.n_bins) < 2:
            raise ValueError("n_bins must be at least 2, got 1: one bin can hold a single value")
        if finite_number("v_min", self.v_min) >= finite_number("v_max", self.v_max):
            raise ValueError(f"v_min must be below v_max, got {self.v_min!r} and {self.v_max!r}")

    def centres(self) -> Tensor:
        """[bins], in ascending order."""
        return torch.linspace(float(self.v_min), float(self.v_max), int(self.n_bins))


def two_hot(values: Tensor, centres: Tensor) -> Tensor:
    """Return each value as a distribution over its two nearest bins. The value is the distribution's mean.

    >>> two_hot(torch.tensor([0.25, 1.0, 7.0]), torch.tensor([0.0, 1.0, 2.0]))
    tensor([[0.7500, 0.2500, 0.0000],
            [0.0000, 1.0000, 0.0000],
            [0.0000, 0.0000, 1.0000]])

    :param values: [batch]. Values beyond the outermost centres are clipped to them.
    :param centres: [bins], evenly spaced in ascending order
    :return: [batch, bins]
    """
    width = (centres[-1] - centres[0]) / (len(centres) - 1)
    places = (values.clamp(centres[0], centres[-1]) - centres[0]) / width
    # A bin's mass falls from 1 to 0 with its distance in bins. At most two bins are closer than 1.
    bins = torch.arange(len(centres), device=centres.device)
    return (1 - (places[:, None] - bins).abs()).clamp(min=0)


class CategoricalQNetwork(dqn.QNetwork):
    """A network of Q-values that are means of distributions: ``Q = sum(softmax(logits) * centres)``.

    :param support: the centres of the bins
    :param settings: of :class:`stable_baselines3.dqn.policies.QNetwork`
    """

    centres: Tensor
    learns_by_logits = False
    """Whether the algorithm trains distributions. A policy is not told for which algorithm it is built."""

    def __init__(self, *args: Any, support: Support, **settings: Any):
        super().__init__(*args, **settings)
        self.support = support
        # A buffer, so that weights are always loaded with their centres.
        self.register_buffer("centres", support.centres())
        outputs = int(self.action_space.n) * len(self.centres)
        self.q_net = nn.Sequential(*create_mlp(self.features_dim, outputs, self.net_arch, self.activation_fn))

    def logits(self, obs: Any) -> Tensor:
        """Return the logits of the bins of each action's value, [batch, actions, bins]."""
        outputs: Tensor = super().forward(obs)
        return outputs.view(len(outputs), -1, len(self.centres))

    def forward(self, obs: Any) -> Tensor:
        """Return Q-values, [batch, actions].

        Differentiating them in training mode raises a RuntimeError, unless the algorithm is categorical.
        """
        values = self.logits(obs).softmax(2) @ self.centres
        if self.training and values.requires_grad and not self.learns_by_logits:
            values.register_hook(_refuse)  # type: ignore[no-untyped-call]
        return values

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "support": self.support}


def _refuse(gradient: Tensor) -> None:
    raise RuntimeError(
        "this network learns distributions by cross-entropy, but this loss, like DQN's, is one of their means: use "
        "sb3_redo.algorithms.CategoricalDQN, or a policy that is not categorical"
    )


class _Categorical(Scalable):
    """Mixed in before a scalable policy of DQN.

    :param n_bins: of each action's distribution, at least 2
    :param v_min: centre of the first bin, and the lowest value that can be learnt
    :param v_max: centre of the last bin, and the highest value that can be learnt
    :param settings: of the scalable policy
    :raises TypeError, ValueError: on a wrong setting
    """

    net_args: dict[str, Any]

    # 51 bins from -10 to 10 are C51's (Bellemare et al. 2017) for Atari games, where rewards are clipped to [-1, 1].
    def __init__(
        self, *spaces_and_schedule: Any, n_bins: int = 51, v_min: float = -10.0, v_max: float = 10.0, **settings: Any
    ):
        self.support = Support(n_bins, v_min, v_max)
        super().__init__(*spaces_and_schedule, **settings)

    def make_q_net(self) -> Any:
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return self._finish(CategoricalQNetwork(**net_args, support=self.support).to(self.device))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **asdict(self.support)}


class CategoricalDQNMlpPolicy(_Categorical, DQNMlpPolicy):
    """For categorical DQN on vectors."""


class CategoricalDQNCnnPolicy(_Categorical, DQNCnnPolicy):
    """For categorical DQN on images."""


class CategoricalDQNMultiInputPolicy(_Categorical, DQNMultiInputPolicy):
    """For categorical DQN on dictionaries."""
