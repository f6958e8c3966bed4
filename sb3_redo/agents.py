"""What Stable-Baselines3 calls things: the networks, optimizers and gradient steps of an algorithm."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from torch.optim import Optimizer

from sb3_redo.forward_pass import evaluating, seeded
from sb3_redo.initial_weights import InitialWeights
from sb3_redo.recycling import zero_state
from sb3_redo.sampling import Batch

NETWORK_NAMES = ("q_net", "actor", "critic")
"""Every network that some supported algorithm has."""


@dataclass(frozen=True)
class Agent:
    """How one algorithm is measured and recycled.

    :param networks: attributes of the policy that are trained, without target networks
    :param optimizers: all that hold their parameters
    :param clock: the optimizer whose step ends a gradient step. Right after it no graph is alive that still needs
        the weights for a backward pass.
    :param forward: runs all networks of a policy in one pass and returns every output
    :param act: the actions that the policy takes for observations, for critics that need some
    """

    networks: tuple[str, ...]
    optimizers: tuple[Optimizer, ...]
    clock: Optimizer
    forward: Callable[[Any, Batch], Any]
    act: Callable[[Any, Any], torch.Tensor]

    def network_of(self, layer: str) -> str:
        """The network that a layer, named by its path below the policy, is counted with."""
        return layer.split(".")[0]


def _dqn(model: Any) -> Agent:
    return Agent(
        networks=("q_net",),
        optimizers=(model.policy.optimizer,),
        clock=model.policy.optimizer,
        forward=lambda policy, batch: policy.q_net(batch.observations),
        act=lambda policy, observations: policy(observations),
    )


def _sac(model: Any) -> Agent:
    return Agent(
        networks=("actor", "critic"),
        optimizers=(model.actor.optimizer, model.critic.optimizer),
        # The critic steps once per gradient step too, but then the actor's loss is still to be differentiated.
        clock=model.actor.optimizer,
        forward=lambda policy, batch: (policy.actor.get_action_dist_params(batch.observations), policy.critic(*batch)),
        act=lambda policy, observations: policy.actor(observations, deterministic=True),
    )


_AGENTS: dict[type[BaseAlgorithm], Callable[[Any], Agent]] = {DQN: _dqn, SAC: _sac}


def agent_of(model: BaseAlgorithm) -> Agent:
    """Networks, optimizers and clock of a model.

    :raises RuntimeError: when its algorithm is none that is known here
    """
    for algorithm in type(model).__mro__:
        if algorithm in _AGENTS:
            return _AGENTS[algorithm](model)
    known = ", ".join(algorithm.__name__ for algorithm in _AGENTS)
    raise RuntimeError(f"{type(model).__name__} is not supported, only {known} and subclasses of them are")


def gradient_steps_of(model: BaseAlgorithm) -> int:
    """Gradient steps made so far. Saved with the model; off-policy algorithms raise it at the end of ``train()``."""
    return int(model._n_updates)


def whole_batch(model: BaseAlgorithm, observations: Any) -> Batch:
    """A batch from observations as the environment gives them (already normalised, if ``VecNormalize`` is used)."""
    tensors, _ = model.policy.obs_to_tensor(observations)
    with seeded(0), evaluating(model.policy.modules()):
        return Batch(tensors, agent_of(model).act(model.policy, tensors))


def initial_weights_of(model: BaseAlgorithm) -> InitialWeights:
    """Draws weights as a freshly built policy of this model has them.

    Gives a model that has not been trained yet an attribute ``initial_weight_samples``, which is saved with it: once
    weights have changed, nothing else tells whether and how they were initialised by hand.
    """

    def build() -> BasePolicy:
        return model.policy_class(model.observation_space, model.action_space, model.lr_schedule, **model.policy_kwargs)

    known = model.__dict__.get("initial_weight_samples")
    if known is not None or gradient_steps_of(model) > 0:
        return InitialWeights(build, samples=known)
    initial_weights = InitialWeights(build, untrained=model.policy)
    model.__dict__["initial_weight_samples"] = initial_weights.samples
    return initial_weights


_INITIAL_STATE = {("RMSpropTFLike", "square_avg"): 1.0}


def initial_state(optimizer: Optimizer, key: str) -> float:
    """What an optimizer first fills its state with: SB3's ``RMSpropTFLike`` starts at ones."""
    return _INITIAL_STATE.get((type(optimizer).__name__, key), zero_state(optimizer, key))


def _callbacks_in(callback: Any) -> Iterator[BaseCallback]:
    """A callback and all that it holds."""
    if callback is None:
        return
    yield callback
    children: Iterable[Any] = getattr(callback, "callbacks", ())
    for child in (*children, getattr(callback, "callback", None)):
        if isinstance(child, BaseCallback):
            yield from _callbacks_in(child)


def refuse_parallel_training(callback: Any) -> None:
    """The zoo's ParallelTrainCallback trains a copy of the model and overwrites this one's weights with the copy's."""
    for other in _callbacks_in(callback):
        if type(other).__name__ == "ParallelTrainCallback":
            raise RuntimeError(
                "ParallelTrainCallback trains a copy of the model and overwrites the weights of this one: nothing "
                "recycled here would last, and no gradient step is seen. Remove one of the two callbacks."
            )


def at_training_end(root: BaseCallback, action: Callable[[], None]) -> None:
    """Do something when the callback that was given to ``learn()`` hears that training ends.

    For callbacks inside an ``EventCallback``, which passes on that training starts but not that it ends.
    """
    tell = root.on_training_end

    def on_training_end() -> None:
        root.__dict__.pop("on_training_end", None)
        tell()
        action()

    root.__dict__["on_training_end"] = on_training_end
