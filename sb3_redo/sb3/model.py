"""Properties of a model: its gradient steps, its wiring and meter, its initial weights."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn

from sb3_redo.dormancy.meter import Meter
from sb3_redo.forward.contexts import evaluating, everything_seeded
from sb3_redo.forward.nested import map_tensors, tensors_in
from sb3_redo.forward.state import unchanged
from sb3_redo.recycling.initial_weights import InitialWeights
from sb3_redo.sb3.agents import agent_of, optimizers_of
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.memory import Memory
from sb3_redo.sb3.own_buffers import check_observations
from sb3_redo.wiring.exclusion import excluding
from sb3_redo.wiring.signature import network_signature
from sb3_redo.wiring.structure import Wiring
from sb3_redo.wiring.tracing import trace_wiring


def gradient_steps_of(model: BaseAlgorithm) -> int:
    """Return the gradient steps made so far, also before a model was loaded.

    Returns our clock's count. Falls back to the algorithm's counter, which can be off by an interrupted ``train()``.
    On-policy algorithms count epochs or rollouts under the same name, so the optimizer's step is used there. SGD keeps
    no step: without our clock the result is 0, see :func:`is_trained`.
    """
    remembered = Memory.gradient_steps_of(model)
    if isinstance(model, OnPolicyAlgorithm):
        states = model.policy.optimizer.state.values()
        counted = max((int(state["step"]) for state in states if "step" in state), default=0)
    else:
        counted = int(model._n_updates)
    return counted if remembered is None or counted > remembered + 1 else remembered


def is_trained(model: BaseAlgorithm) -> bool:
    """Return whether a model's weights may differ from its initial ones."""
    return gradient_steps_of(model) > 0 or model._n_updates > 0


def whole_batch(model: BaseAlgorithm, observations: Any) -> Batch:
    """Return a batch of given observations.

    :param model: any supported model
    :param observations: arrays or tensors [batch, ...] as the environment gives them, or as a replay buffer's
        ``sample(n, env=...)`` does. With ``VecNormalize`` these are normalised already. Rows of a replay buffer,
        [n, n_envs, ...], are normalised here. A dictionary of these, or the batch of a report.
    :raises ValueError: when they do not fit the model's observation space
    """
    try:
        if isinstance(observations, Batch):
            given: Batch = map_tensors(lambda tensor: tensor.to(model.device), observations)
            check_observations(given.observations, model.observation_space, len(next(tensors_in(given))))
        else:
            given = Batch(_normalised_tensors(model, observations))
        sizes = sorted({len(tensor) for tensor in tensors_in(given)})
        if len(sizes) > 1:
            raise ValueError(f"their parts hold {sizes[0]} to {sizes[-1]} rows")
    except (ValueError, TypeError, LookupError) as error:
        space = model.observation_space
        raise ValueError(f"observations do not fit the model's observation space {space}: {error}") from error
    agent, policy, tensors, size = agent_of(model), model.policy, given.observations, sizes[0]
    with everything_seeded(0), evaluating(policy.modules()), unchanged(policy):
        actions = agent.act(policy, tensors) if given.actions is None else given.actions
        return Batch(tensors, actions, given.states or agent.states(policy, size))


def _normalised_tensors(model: BaseAlgorithm, observations: Any) -> Any:
    """Return observations as the policy takes them, normalised."""
    space = model.observation_space
    if isinstance(space, spaces.Dict):
        arrays: Any = {key: _rows(observations[key], space[key]) for key in space}
    else:
        arrays = _rows(observations, space)
    env = model.get_vec_normalize_env()
    if env is not None and isinstance(model, OffPolicyAlgorithm) and _lies_in_buffer(observations, space):
        arrays = env.normalize_obs(arrays)
    return model.policy.obs_to_tensor(arrays)[0]


def _lies_in_buffer(observations: Any, space: spaces.Space[Any]) -> bool:
    """Return whether observations are rows of a replay buffer, [n, n_envs, ...], which are not normalised."""
    if isinstance(space, spaces.Dict):
        return any(_lies_in_buffer(observations[key], part) for key, part in space.items())
    return np.ndim(observations) == len(space.shape or ()) + 2


def _rows(observations: Any, space: spaces.Space[Any]) -> np.ndarray:
    """Return observations of a space as an array [batch, ...]."""
    if isinstance(observations, Tensor):
        observations = observations.detach().cpu().numpy()
    array = np.asarray(observations)
    if is_image_space(space) and np.issubdtype(array.dtype, np.floating) and (array % 1).any():
        raise ValueError(f"images are {array.dtype} with fractions, and whole numbers from 0 to 255 in the space")
    inner = len(space.shape or ())
    # Buffers hold [n, n_envs, ...], and [n, 1] for a discrete space.
    return array.reshape(-1, *array.shape[array.ndim - inner :]) if array.ndim > inner + 1 else array


def last_observations(model: BaseAlgorithm) -> Batch:
    """Return a batch of a training model's last observations."""
    return whole_batch(model, model._last_obs)


_READ: WeakKeyDictionary[nn.Module, list[tuple[Any, Wiring]]] = WeakKeyDictionary()
"""Policies to their latest wirings, each with the policy's signature at that time."""


def wiring_of(model: BaseAlgorithm, batch: Batch | None = None, exclude: Sequence[str] = ()) -> Wiring:
    """Read the wiring of a model, or return the previous one if the network has not changed.

    :param batch: the observations to read it on. Default: the last ones of a training model.
    :param exclude: see :func:`~sb3_redo.wiring.exclusion.excluding`, which also lists the errors
    """
    agent, batch = agent_of(model), last_observations(model) if batch is None else batch
    signature = signature_of(model, batch)
    read = _READ.setdefault(model.policy, [])
    known = next((wiring for before, wiring in read if before == signature), None)
    if known is None:
        known = trace_wiring(model.policy, batch, forward=agent.forward, optimizers=optimizers_of(model))
        read[:] = [(signature, known), *read[:3]]
    return excluding(known, model.policy, exclude)


def signature_of(model: BaseAlgorithm, batch: Batch) -> Any:
    """Return a signature of the wiring's inputs, see :func:`~sb3_redo.wiring.signature.network_signature`."""
    agent = agent_of(model)
    try:
        return network_signature(model.policy, agent.forward, batch, optimizers_of(model))
    except Exception:  # reading the network will raise the error
        return object()


def meter_of(
    model: BaseAlgorithm, batch: Batch, networks: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> Meter:
    """Read a model's wiring, and return a meter of it.

    :param batch: the observations to read it on
    :param networks: the networks to measure. Default: all.
    :param exclude: see :func:`~sb3_redo.wiring.exclusion.excluding`
    :raises ValueError: when a pattern matches no layer
    :raises RuntimeError: when nothing in them can be measured
    """
    agent = agent_of(model)
    wiring = wiring_of(model, batch, exclude)
    wanted = networks or agent.networks
    network_of = {layer.name: agent.network_of(wiring, layer.name) for layer in wiring if not layer.excluded}
    measured = {layer: network for layer, network in network_of.items() if network in wanted}
    if not measured:
        raise RuntimeError(f"nothing to measure in {', '.join(wanted)}; the policy's wiring is\n{wiring}")
    return Meter(model.policy, wiring, measured)


def initial_weights_of(model: BaseAlgorithm, initial_weights: str = "auto") -> InitialWeights:
    """Return a source of new weights, distributed as in a new policy or as in the model's initialisation by hand.

    Sets the attribute ``initial_weight_samples`` on an untrained model, which is saved with it. After training, only
    these samples show whether and how weights were initialised by hand.

    :param initial_weights: ``fresh`` draws as in a new policy. ``auto`` draws from the untrained model's own weights if
        they were initialised by hand.
    """
    build = partial(_fresh_policy, model)
    if initial_weights == "fresh":
        return InitialWeights(build, live=model.policy)
    known = model.__dict__.get("initial_weight_samples")
    if known is not None or is_trained(model) or _took_over_weights(model):
        return InitialWeights(build, samples=known, live=model.policy)
    begun = InitialWeights(build, untrained=model.policy)
    model.__dict__["initial_weight_samples"] = begun.samples
    return begun


def _fresh_policy(model: BaseAlgorithm) -> BasePolicy:
    """Build a new policy from copies of this model's settings.

    Modules and tensors of the live policy among the settings are not copied. The caller restores them.

    :raises RuntimeError: when it cannot be built
    """
    policy: Any = model.policy
    # Off-policy algorithms already have use_sde among the keywords, and some policies do not take it.
    settings = {**({"use_sde": True} if model.use_sde else {}), **model.policy_kwargs}
    memo = {id(each): each for each in (*policy.modules(), *policy.parameters(), *policy.buffers())}
    # Copies, because extractors sample the observation space to find its shape.
    spaces = copy.deepcopy((model.observation_space, model.action_space))
    try:
        return model.policy_class(
            *spaces, model.lr_schedule, **{name: _copied(value, memo) for name, value in settings.items()}
        )
    except Exception as error:
        raise RuntimeError(
            f"new weights are drawn from a fresh {model.policy_class.__name__}, and none can be built from the "
            f"model's policy_kwargs ({type(error).__name__}: {error}): give settings that can be used twice"
        ) from error


def _copied(setting: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(setting, memo)
    except Exception:  # locks, iterators and handles cannot be copied
        return setting


def _took_over_weights(model: BaseAlgorithm) -> bool:
    """Return whether a model without gradient steps has trained weights.

    ``set_parameters()`` also loads the optimizers: their state and their groups. In a loaded group the parameters come
    last, in a new optimizer's first. A custom training loop leaves gradients.
    """
    optimizers = agent_of(model).optimizers
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return (
        any(state and state.get("step", 1) > 0 for state in states)  # Adagrad has state before its first step
        or any(next(reversed(group)) == "params" for optimizer in optimizers for group in optimizer.param_groups)
        or any(parameter.grad is not None for parameter in model.policy.parameters())
    )
