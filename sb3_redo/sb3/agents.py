"""The table of algorithms: the networks, optimizers, clock and player of each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn
from torch.optim import Optimizer

from sb3_redo.forward.contexts import uncompiled_name
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.players import MaskedPlayer, Player, RecurrentPlayer, ScaledPlayer
from sb3_redo.wiring.structure import Wiring

NETWORK_NAMES = ("q_net", "quantile_net", "actor", "critic", "policy", "value", "shared")
"""The names of networks of all supported algorithms."""


def _reached(wiring: Wiring, layer: str) -> set[str]:
    """Return the layer and all layers that it feeds, directly or indirectly."""
    consumers = {measured.name: measured.consumers for measured in wiring}
    reached: set[str] = set()
    ahead = [layer]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += consumers.get(name, ())
    return reached


def _by_path(wiring: Wiring, layer: str) -> str:
    """Return the network of a layer, or ``shared`` if it also feeds another one."""
    networks = {uncompiled_name(name).split(".")[0] for name in _reached(wiring, layer)}
    return networks.pop() if len(networks) == 1 else "shared"


@dataclass(frozen=True)
class Agent:
    """Describes how one algorithm is measured and recycled.

    :param networks: names of the trained networks, without target networks
    :param optimizers: those of the algorithm, see also :func:`optimizers_of`
    :param clock: the optimizer whose steps are counted as gradient steps. For off-policy algorithms it is safe to edit
        weights right after its step: no pending backward pass needs them.
    :param forward: runs all networks of a policy in one pass and returns every output
    :param act: the policy's actions for observations, for critics that take actions
    :param network_of: the network that a layer counts towards
    :param states: the initial states of a recurrent policy for a number of episodes, see
        :class:`~sb3_redo.sb3.batch.Batch`
    :param at_rollout_end: whether to measure at a rollout's end instead of inside ``train()``. The next rollout
        overwrites its observations.
    :param player: acts like the algorithm while it collects experience
    :param by_gradients: whether only optimizer steps change the networks
    """

    networks: tuple[str, ...]
    optimizers: tuple[Optimizer, ...]
    clock: Optimizer
    forward: Callable[[Any, Batch], Any]
    act: Callable[[Any, Any], Tensor | None] = lambda policy, observations: None
    network_of: Callable[[Wiring, str], str] = _by_path
    states: Callable[[Any, int], tuple[Tensor, ...]] = lambda policy, batch_size: ()
    at_rollout_end: bool = False
    player: Callable[[Any, Any], Player] = Player
    by_gradients: bool = True


def _q_learner(model: Any, network: str) -> Agent:
    return Agent(
        networks=(network,),
        optimizers=(model.policy.optimizer,),
        clock=model.policy.optimizer,
        forward=lambda policy, batch: getattr(policy, network)(batch.observations),
    )


def _actor_critic(model: Any, clock: str, act: Callable[[Any, Any], Any]) -> Agent:
    """Describe an actor and critics of continuous actions.

    :param clock: the network whose optimizer ends a gradient step. The critic, which may step more often. The actor, if
        its loss is computed before the critic's step and differentiated after it.
    :param act: the actor's output for observations, before an action is drawn
    """
    is_shared = getattr(model.policy, "share_features_extractor", False)
    return Agent(
        networks=("actor", "critic", "shared") if is_shared else ("actor", "critic"),
        optimizers=(model.actor.optimizer, model.critic.optimizer),
        clock=getattr(model, clock).optimizer,
        forward=lambda policy, batch: (
            act(policy.actor, batch.observations),
            policy.critic(batch.observations, batch.actions),
        ),
        act=lambda policy, observations: policy(observations, deterministic=True),
        player=ScaledPlayer,
    )


def _gaussian(actor: Any, observations: Any) -> Any:
    return actor.get_action_dist_params(observations)


def _on_policy(model: Any, player: type[Player] = Player, by_gradients: bool = True) -> Agent:
    return Agent(
        networks=("policy", "value", "shared"),
        optimizers=(model.policy.optimizer,),
        clock=model.policy.optimizer,
        forward=lambda policy, batch: policy(batch.observations, deterministic=True),
        network_of=_by_head,
        at_rollout_end=True,
        player=player,
        by_gradients=by_gradients,
    )


def _recurrent(model: Any) -> Agent:
    def forward(policy: Any, batch: Batch) -> Any:
        *states, episode_starts = batch.states
        actor_hidden, actor_cell, critic_hidden, critic_cell = (state.transpose(0, 1).contiguous() for state in states)
        memories = RNNStates((actor_hidden, actor_cell), (critic_hidden, critic_cell))
        with _sequences_of_one_step(policy):
            return policy(batch.observations, memories, episode_starts, deterministic=True)[:3]

    def states(policy: Any, batch_size: int) -> tuple[Tensor, ...]:
        layers, _, size = policy.lstm_hidden_state_shape
        zeros = torch.zeros(batch_size, layers, size, device=policy.device)
        return zeros, zeros, zeros, zeros, torch.ones(batch_size, device=policy.device)

    return replace(_on_policy(model, RecurrentPlayer), forward=forward, states=states)


@contextmanager
def _sequences_of_one_step(policy: Any) -> Iterator[None]:
    """Make a recurrent policy treat each row as a separate sequence.

    A probe drives a layer with many rows per observation. The policy would treat them as time steps of one sequence,
    because it counts the states. So the states are repeated for each row.
    """
    real = getattr(policy, "_process_sequence", None)
    if real is None:
        yield
        return

    def process(features: Tensor, states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: nn.LSTM) -> Any:
        rows = len(features)
        if states[0].shape[1] == 1 < rows:
            states = (states[0].repeat(1, rows, 1), states[1].repeat(1, rows, 1))
            episode_starts = episode_starts.repeat(rows)
        return real(features, states, episode_starts, lstm)

    replaced = vars(policy).get("_process_sequence")
    vars(policy)["_process_sequence"] = process
    try:
        yield
    finally:
        del vars(policy)["_process_sequence"]
        if replaced is not None:
            vars(policy)["_process_sequence"] = replaced


def _by_head(wiring: Wiring, layer: str) -> str:
    """Return ``policy``, ``value`` or ``shared``, by the heads that a layer feeds."""
    heads = _reached(wiring, layer) & set(wiring.outputs)
    serves_value = {uncompiled_name(name).split(".")[0] == "value_net" for name in heads}
    return "shared" if len(serves_value) == 2 else "value" if True in serves_value else "policy"


_AGENTS: dict[type[BaseAlgorithm], Callable[[Any], Agent]] = {
    DQN: partial(_q_learner, network="q_net"),
    QRDQN: partial(_q_learner, network="quantile_net"),
    SAC: partial(_actor_critic, clock="actor", act=_gaussian),
    TQC: partial(_actor_critic, clock="actor", act=_gaussian),
    CrossQ: partial(_actor_critic, clock="critic", act=_gaussian),
    # And DDPG, a subclass.
    TD3: partial(_actor_critic, clock="critic", act=lambda actor, observations: actor(observations)),
    PPO: _on_policy,
    A2C: _on_policy,
    TRPO: partial(_on_policy, by_gradients=False),  # a line search along natural gradients sets its policy
    MaskablePPO: partial(_on_policy, player=MaskedPlayer),
    RecurrentPPO: _recurrent,
}

_REFUSED: dict[type[BaseAlgorithm], str] = {
    ARS: "it changes its weights without gradients, from a vector of its own that would overwrite recycled ones",
}


def agent_of(model: BaseAlgorithm) -> Agent:
    """Return the networks, optimizers and clock of a model.

    :raises RuntimeError: when its algorithm is not supported
    """
    return _AGENTS[known_algorithm(type(model))](model)


def optimizers_of(model: BaseAlgorithm) -> tuple[Optimizer, ...]:
    """Return all optimizers that hold parameters of a model's policy: those of its algorithm first, then users' own.

    A user's own optimizer is an attribute of the model or its policy, or lies in a list or dictionary that is one.

    :raises RuntimeError: when its algorithm is not supported
    """
    known = agent_of(model).optimizers
    kept = [value for holder in (model, model.policy) for value in vars(holder).values()]
    kept += [each for value in kept if isinstance(value, (list, tuple)) for each in value]
    kept += [each for value in kept if isinstance(value, dict) for each in value.values()]
    others = {id(each): each for each in kept if isinstance(each, Optimizer) and not any(each is own for own in known)}
    if not others:
        return known
    theirs = set(map(id, model.policy.parameters()))
    held = {key: {id(each) for group in one.param_groups for each in group["params"]} for key, one in others.items()}
    return known + tuple(one for key, one in others.items() if held[key] & theirs)


def known_algorithm(kind: type) -> type[BaseAlgorithm]:
    """Return the algorithm that a class is or extends.

    :param kind: a class of models
    :raises RuntimeError: when it is not supported
    """
    for algorithm in kind.__mro__:
        if algorithm in _AGENTS:
            return algorithm
        if algorithm in _REFUSED:
            raise RuntimeError(f"{kind.__name__} is not supported: {_REFUSED[algorithm]}")
    known = ", ".join(algorithm.__name__ for algorithm in _AGENTS)
    raise RuntimeError(f"{kind.__name__} is not supported, only {known} and subclasses of them are")
