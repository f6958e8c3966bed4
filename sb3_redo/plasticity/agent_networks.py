"""The networks of a Stable-Baselines3 model that can be examined, with their outputs."""

from collections.abc import Callable, Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BaseModel
from torch import Tensor
from torch.optim import Optimizer

from sb3_redo.plasticity.network import Network, read_network
from sb3_redo.sb3.agents import Agent, agent_of
from sb3_redo.sb3.batch import Batch
from sb3_redo.validation import UnknownNameError


def _actor(policy: Any, batch: Batch) -> Any:
    actor = policy.actor
    if not hasattr(actor, "get_action_dist_params"):
        return actor(batch.observations)
    mean, log_std, _ = actor.get_action_dist_params(batch.observations)
    # With state-dependent exploration, the deviation is a parameter, the same for all observations.
    return mean if getattr(actor, "use_sde", False) else (mean, log_std)


def _policy(policy: Any, batch: Batch) -> Tensor:
    features = BaseModel.extract_features(policy, batch.observations, policy.pi_features_extractor)
    if batch.states:
        features = _through_lstm(policy, features, batch.states[:2], batch.states[-1], policy.lstm_actor)
    actions: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(features))
    return actions


def _value(policy: Any, batch: Batch) -> Tensor:
    features = BaseModel.extract_features(policy, batch.observations, policy.vf_features_extractor)
    if batch.states and policy.lstm_critic is not None:
        features = _through_lstm(policy, features, batch.states[2:4], batch.states[-1], policy.lstm_critic)
    elif batch.states and policy.shared_lstm:
        features = _through_lstm(policy, features, batch.states[:2], batch.states[-1], policy.lstm_actor).detach()
    elif batch.states:
        features = policy.critic(features)
    values: Tensor = policy.value_net(policy.mlp_extractor.forward_critic(features))
    return values


def _through_lstm(policy: Any, features: Tensor, states: Sequence[Tensor], episode_starts: Tensor, lstm: Any) -> Tensor:
    memories = tuple(state.transpose(0, 1).contiguous() for state in states)
    latent: Tensor = policy._process_sequence(features, memories, episode_starts, lstm)[0]
    return latent


_FORWARD: dict[str, Callable[[Any, Batch], Any]] = {
    "q_net": lambda policy, batch: policy.q_net(batch.observations),
    "quantile_net": lambda policy, batch: policy.quantile_net(batch.observations),
    "actor": _actor,
    "critic": lambda policy, batch: policy.critic(batch.observations, batch.actions),
    "policy": _policy,
    "value": _value,
}
EXAMINED = tuple(_FORWARD)
"""Names of networks that can be examined. A shared part belongs to both networks, and is none itself."""


def networks_of(model: BaseAlgorithm, batch: Batch, names: Sequence[str] | None = None) -> dict[str, Network]:
    """Return the networks of a model, by name.

    Outputs are the Q-values or quantiles of all actions and critics, or the parameters of an actor's distribution.

    :param model: any supported model
    :param batch: the observations to read them on
    :param names: the networks to return. Default: all.
    :raises RuntimeError: when the algorithm is not supported or has no network of that name
    """
    known = [name for name in agent_of(model).networks if name in _FORWARD]
    for name in names or ():
        if name not in known:
            have = ", ".join(map(repr, known))
            raise UnknownNameError(f"networks names {name!r}, but the networks of {type(model).__name__} are {have}")
    return {name: read_network(model.policy, batch, _FORWARD[name], name) for name in names or known}


def trained_by(agent: Agent, optimizer: Optimizer, network: Network) -> bool:
    """Return whether an optimizer's steps change the whole network."""
    # TD3's critic optimizer holds an extractor that an actor may share, but not the whole actor. TRPO sets its policy
    # by a line search. Its optimizer changes only the value network.
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    return held.issuperset(network.parameters.values()) and (agent.by_gradients or network.name == "value")
