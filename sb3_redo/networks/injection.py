"""Networks with room for plasticity injection (Nikishin et al. 2023, "Deep RL with Plasticity Injection")."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import stable_baselines3.dqn.policies as dqn
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from sb3_redo.forward.contexts import seeded
from sb3_redo.networks.extractors import ImpalaCNN, NatureCNN
from sb3_redo.networks.policies import DQNCnnPolicy, DQNMlpPolicy, DQNMultiInputPolicy
from sb3_redo.validation import positive_integer


class InjectableQNetwork(dqn.QNetwork):
    """Q-values of a head to which others can be added that begin with no influence: ``Q = h(x) + Σ (a(x) - s(x))``.

    h is the head that SB3 builds. Of each pair, a (in ``added``) and s (in ``subtracted``) are the same fresh head
    when the pair is injected; then a is trained, and s and all that came before are frozen. The features in front of
    the heads go on being trained, through all of them. Heads that are not injected yet are not run.

    All heads are there from the beginning. So an optimizer holds them, target networks follow them, and what was saved
    after an injection fits a network built before it. How many are injected is part of the state dict.

    :param settings: of :class:`stable_baselines3.dqn.policies.QNetwork`
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.added = nn.ModuleList()
        self.subtracted = nn.ModuleList()
        self.injections = 0
        """How many pairs are injected."""

    def reserve(self, head: nn.Module) -> None:
        """Keep a fresh head for an injection."""
        self.added.append(head)
        self.subtracted.append(copy.deepcopy(head))
        self._freeze()

    def forward(self, obs: Any) -> Tensor:
        """Q-values, [batch, actions]."""
        features = self.extract_features(obs, self.features_extractor)
        values: Tensor = self.q_net(features)
        for number in range(self.injections):
            # The difference first: it is exactly 0 at the injection, where a sum would be rounded.
            values = values + (self.added[number](features) - self.subtracted[number](features))
        return values

    def inject(self) -> None:
        """Freeze what is trained and let the next pair take part, in place. No output changes.

        :raises RuntimeError: when there is no pair left
        """
        if self.injections == len(self.added):
            raise RuntimeError(
                f"plasticity was injected {self.injections} times already, and the policy has room for no more: "
                f"give policy_kwargs={{'injections': {self.injections + 1}}}"
            )
        self.subtracted[self.injections].load_state_dict(self.added[self.injections].state_dict())
        self.injections += 1
        self._freeze()

    def _freeze(self) -> None:
        """Only the latest head is trained."""
        self.subtracted.requires_grad_(False)
        for number, head in enumerate((self.q_net, *self.added)):
            head.requires_grad_(number == self.injections)
        for parameter in self.parameters():
            if not parameter.requires_grad:
                parameter.grad = None  # with which an optimizer would go on

    def get_extra_state(self) -> Tensor:
        """Return how many pairs are injected. Resets and averages would change a buffer."""
        return torch.tensor(self.injections)

    def set_extra_state(self, state: Any) -> None:
        """:param state: of :meth:`get_extra_state`"""
        self.injections = int(state)
        self._freeze()


class Injectable(BasePolicy):
    """Comes before one of our DQN policies in the bases of a class, and keeps heads for plasticity injection.

    Until the first injection, training is bit for bit what it is without them.

    :param injections: how many there can be
    :param settings: of the policy
    :raises TypeError: on a setting of the wrong type; :raises ValueError: on a wrong value
    """

    q_net: Any
    q_net_target: Any

    def __init__(self, *spaces_and_schedule: Any, injections: int = 1, **settings: Any):
        self.room = positive_integer("injections", injections)
        super().__init__(*spaces_and_schedule, **settings)

    def make_q_net(self) -> InjectableQNetwork:
        """A network with a fresh head for each injection."""
        network: InjectableQNetwork = super().make_q_net()  # type: ignore[misc]
        with _own_stream():
            for _ in range(self.room):
                network.reserve(super().make_q_net().q_net)  # type: ignore[misc]
        return network

    def inject_plasticity(self) -> int:
        """Freeze the head that is trained and add a fresh one to it, in place, in the target network, too.

        No output of either network changes. The optimizer holds the fresh head, and has no state of it yet.

        :return: how many injections there were so far
        :raises RuntimeError: when there is no room left
        """
        self.q_net.inject()
        self.q_net_target.inject()
        return int(self.q_net.injections)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "injections": self.room}


@contextmanager
def _own_stream() -> Iterator[None]:
    """Draw random numbers from a stream that follows from torch's, and leave torch's as it is."""
    before = torch.get_rng_state()
    seed = int(torch.randint(2**62, ()))
    torch.set_rng_state(before)
    with seeded(seed):
        yield


class _Networks(dqn.DQNPolicy):
    def make_q_net(self) -> Any:
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return InjectableQNetwork(**net_args).to(self.device)


class InjectableDQNMlpPolicy(Injectable, DQNMlpPolicy, _Networks):
    """For DQN and its kin on vectors. The head is the whole network."""


class InjectableDQNCnnPolicy(Injectable, DQNCnnPolicy, _Networks):
    """For DQN and its kin on images. The head is all that follows the convolutions: the dense layer is in ``net_arch``.

    :param net_arch: hidden layers of the head, ``[512]`` if not given
    :param settings: see :class:`Injectable`
    """

    def __init__(self, *spaces_and_schedule: Any, net_arch: Any = None, **settings: Any):
        if "features_dim" in (settings.get("features_extractor_kwargs") or {}):
            raise ValueError(
                f"features_dim is the size of the extractor's dense layer, which is part of {type(self).__name__}'s "
                "head: give net_arch=[512] instead"
            )
        super().__init__(*spaces_and_schedule, net_arch=[512] if net_arch is None else net_arch, **settings)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """The convolutions alone."""
        extractor = super().make_features_extractor()
        if isinstance(extractor, (NatureCNN, ImpalaCNN)):
            dense = extractor.linear[0]
            assert isinstance(dense, nn.Linear)
            extractor._features_dim = dense.in_features
            extractor.linear = nn.Sequential()
        return extractor


class InjectableDQNMultiInputPolicy(Injectable, DQNMultiInputPolicy, _Networks):
    """For DQN and its kin on dictionaries. The head is what follows the features extractor."""
