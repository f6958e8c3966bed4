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
    """Q-values of a head, plus injected pairs that begin without influence: ``Q = h(x) + Σ (a(x) - s(x))``.

    h is the head that SB3 builds. In each pair, a (in ``added``) and s (in ``subtracted``) are the same fresh head at
    the injection. Then a is trained; s and all earlier heads are frozen. The features before the heads are still
    trained, through all heads. Heads that are not injected yet are not run.

    All heads exist from the beginning. So the optimizer holds them, target networks follow them, and weights saved
    after an injection fit a network built before it. The number of injections is part of the state dict.

    :param settings: of :class:`stable_baselines3.dqn.policies.QNetwork`
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.added = nn.ModuleList()
        self.subtracted = nn.ModuleList()
        self.injections = 0
        """Number of injected pairs."""

    def reserve(self, head: nn.Module) -> None:
        """Keep a fresh head for an injection."""
        self.added.append(head)
        self.subtracted.append(copy.deepcopy(head))
        self._freeze()

    def forward(self, obs: Any) -> Tensor:
        """Return Q-values, [batch, actions]."""
        features = self.extract_features(obs, self.features_extractor)
        values: Tensor = self.q_net(features)
        for number in range(self.injections):
            # The difference first: it is exactly 0 at the injection. A sum would be rounded.
            values = values + (self.added[number](features) - self.subtracted[number](features))
        return values

    def inject(self) -> None:
        """Freeze the trained head and activate the next pair, in place. No output changes.

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
        """Freeze all heads except the latest."""
        self.subtracted.requires_grad_(False)
        for number, head in enumerate((self.q_net, *self.added)):
            head.requires_grad_(number == self.injections)
        for parameter in self.parameters():
            if not parameter.requires_grad:
                parameter.grad = None  # otherwise an optimizer would continue with it

    def get_extra_state(self) -> Tensor:
        """Return the number of injected pairs. Not a buffer, which resets and averages would change."""
        return torch.tensor(self.injections)

    def set_extra_state(self, state: Any) -> None:
        """:param state: of :meth:`get_extra_state`"""
        self.injections = int(state)
        self._freeze()


class Injectable(BasePolicy):
    """Mixed in before one of our DQN policies. Keeps heads for plasticity injection.

    Until the first injection, training is bit for bit the same as without them.

    :param injections: number of possible injections
    :param settings: of the policy
    :raises TypeError: on a setting of the wrong type; :raises ValueError: on a wrong value
    """

    q_net: Any
    q_net_target: Any

    def __init__(self, *spaces_and_schedule: Any, injections: int = 1, **settings: Any):
        self.room = positive_integer("injections", injections)
        super().__init__(*spaces_and_schedule, **settings)

    def make_q_net(self) -> InjectableQNetwork:
        """Build a network with a fresh head for each injection."""
        network: InjectableQNetwork = super().make_q_net()  # type: ignore[misc]
        with _own_stream():
            for _ in range(self.room):
                network.reserve(super().make_q_net().q_net)  # type: ignore[misc]
        return network

    def inject_plasticity(self) -> int:
        """Freeze the trained head and add a fresh one, in place, also in the target network.

        No output of either network changes. The optimizer holds the fresh head, without state yet.

        :return: number of injections so far
        :raises RuntimeError: when there is no room left
        """
        self.q_net.inject()
        self.q_net_target.inject()
        return int(self.q_net.injections)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "injections": self.room}


@contextmanager
def _own_stream() -> Iterator[None]:
    """Draw random numbers from a stream derived from torch's, without moving torch's."""
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
    """For DQN and its variants on vectors. The head is the whole network."""


class InjectableDQNCnnPolicy(Injectable, DQNCnnPolicy, _Networks):
    """For DQN and its variants on images. The head is everything after the convolutions, sized by ``net_arch``.

    :param net_arch: hidden layers of the head. Default: ``[512]``.
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
        """Build the convolutions only."""
        extractor = super().make_features_extractor()
        if isinstance(extractor, (NatureCNN, ImpalaCNN)):
            dense = extractor.linear[0]
            assert isinstance(dense, nn.Linear)
            extractor._features_dim = dense.in_features
            extractor.linear = nn.Sequential()
        return extractor


class InjectableDQNMultiInputPolicy(Injectable, DQNMultiInputPolicy, _Networks):
    """For DQN and its variants on dictionaries. The head is all layers after the features extractor."""
