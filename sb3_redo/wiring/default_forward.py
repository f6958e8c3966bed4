"""The forward function of a module that is given without one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from sb3_redo.forward.contexts import seeded
from sb3_redo.forward.layers import LAYER_TYPES

Forward = Callable[[Any, Any], Any]
"""Runs every network of a module in one pass, given the module and its inputs, and returns all outputs."""


class ActorCriticInputs(NamedTuple):
    """The inputs of a module with an actor and a critic of actions.

    :param observations: for both, [batch, ...]
    :param actions: the actor's actions, for the critic, [batch, ...]
    """

    observations: Any
    actions: Any


def default_forward(module: nn.Module, observations: Any) -> tuple[Forward, Any]:
    """Return a module's forward function and its inputs.

    A module that consists of an ``actor`` and a ``critic`` runs both, the critic on the actor's actions if it takes
    actions. Any other module is called with the observations.

    :param module: the module
    :param observations: a batch of observations, [batch, ...]
    :raises ValueError: when the module cannot be called
    """
    actor, critic = getattr(module, "actor", None), getattr(module, "critic", None)
    if isinstance(observations, ActorCriticInputs):  # returned by an earlier call
        return _run_both, observations
    problem = "it has no forward()"
    has_forward = getattr(module.forward, "__func__", module.forward) is not nn.Module.forward
    if isinstance(actor, nn.Module) and isinstance(critic, nn.Module) and not (has_forward and _has_more(module)):
        try:
            return _run_both, _actor_critic_inputs(actor, critic, observations)
        except RuntimeError as error:  # for instance heads that take features instead of observations
            problem = f"its actor and critic do not take the observations ({error})"
    if has_forward:
        return _call, observations
    raise ValueError(
        f"{type(module).__name__} cannot be run: {problem}. Pass forward=, a function of the module and the "
        "observations that runs all its networks"
    )


def _has_more(module: nn.Module) -> bool:
    """Return whether a module has layers outside its actor, its critic and their target networks."""
    parts = [name.partition(".")[0] for name, part in module.named_modules() if isinstance(part, LAYER_TYPES)]
    return any(part.removesuffix("_target") not in ("actor", "critic") for part in parts)


def _actor_critic_inputs(actor: nn.Module, critic: nn.Module, observations: Any) -> Any:
    """Return the observations, with the actor's actions if the critic takes some."""
    # The actions are a separate input. Computed in the pass, they would make the critic a consumer of the actor's head.
    with seeded(0), torch.no_grad():
        actions = actor(observations)
        try:
            critic(observations, actions)
        except TypeError:
            critic(observations)
            return observations
    return ActorCriticInputs(observations, actions)


def _call(module: Any, inputs: Any) -> Any:
    return module(inputs)


def _run_both(module: Any, inputs: Any) -> Any:
    if isinstance(inputs, ActorCriticInputs):
        return module.actor(inputs.observations), module.critic(*inputs)
    return module.actor(inputs), module.critic(inputs)
