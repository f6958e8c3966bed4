"""Gathers observations by running an agent, for models with an empty buffer, such as loaded ones."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_redo.forward.contexts import evaluating, everything_seeded
from sb3_redo.forward.state import all_parts, unchanged
from sb3_redo.sb3.agents import agent_of
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.players import Move, NoiseMatrices, noise_holder
from sb3_redo.sb3.seeds import integer_seed


def gather_batch(
    model: BaseAlgorithm,
    n: int,
    seed: int,
    env: VecEnv | None = None,
    progress: Callable[[int], Any] | None = None,
    on_episode: Callable[[float], Any] | None = None,
) -> Batch:
    """Run an agent with its exploration to gather ``n`` observations. Changes no weight or counter.

    The environment is seeded, reset and stepped, and its monitor records the episodes. If it is the model's own, a
    following ``learn()`` begins with a new episode from a new seed. Random streams, the policy's modes, the noise
    matrices of gSDE and the statistics of ``VecNormalize`` are restored.

    :param model: any supported model
    :param n: number of observations. With several environments the surplus of the last step is dropped.
    :param seed: of the environment, the actions and all other draws
    :param env: the environment, with the agent's training wrappers. Default: the model's own.
    :param progress: called after every step with the number of new observations
    :param on_episode: called at the end of every episode with its return, if a ``Monitor`` records it
    :return: observations as the networks take them. For critics of actions, the actions taken, in [-1, 1]. For
        recurrent policies, the states at each observation.
    :raises ValueError: when there is no environment
    """
    env = model.get_env() if env is None else env
    if env is None:
        raise ValueError(
            f"this {type(model).__name__} has no environment to run in: load it with env=, or call set_env()"
        )
    with everything_seeded(seed), _seeded_actions(model, seed), _frozen_statistics(env), _kept_noise(model):
        env.seed(seed)
        with evaluating(model.policy.modules()), unchanged(model.policy, all_parts(model.policy)):
            batch = _run(model, env, n, progress, on_episode)
        # Reseeded, so that training does not continue with our seed, which is equal in all runs.
        env.seed(integer_seed(None if model.seed is None else (model.seed, seed)))
        if env is model.get_env():
            _begin_anew(model, env)
    return batch


def _run(
    model: BaseAlgorithm,
    env: VecEnv,
    n: int,
    progress: Callable[[int], Any] | None,
    on_episode: Callable[[float], Any] | None,
) -> Batch:
    player, noise = agent_of(model).player(model, env), NoiseMatrices(model, env.num_envs)
    seen: list[Any] = []
    moves: list[Move] = []
    observations, starts = env.reset(), np.ones(env.num_envs, dtype=bool)
    for gathered in range(0, n, env.num_envs):
        noise.before_step(starts)
        move = player.move(observations, starts)
        seen.append(observations)
        moves.append(move)
        observations, _, starts, infos = env.step(move.actions)
        for info in infos:
            if on_episode is not None and "episode" in info:
                on_episode(float(info["episode"]["r"]))
        if progress is not None:
            progress(min(env.num_envs, n - gathered))
    return _batch(model, seen, moves, n)


def _batch(model: BaseAlgorithm, seen: list[Any], moves: list[Move], n: int) -> Batch:
    """Join observations and moves to one batch, ordered by step, then by environment."""
    joined: Any
    if isinstance(seen[0], dict):
        joined = {key: np.concatenate([observations[key] for observations in seen])[:n] for key in seen[0]}
    else:
        joined = np.concatenate(seen)[:n]
    tensors, _ = model.policy.obs_to_tensor(joined)
    scaled = [move.scaled for move in moves if move.scaled is not None]
    actions = torch.as_tensor(np.concatenate(scaled)[:n], device=model.device) if scaled else None
    states = tuple(torch.cat(steps)[:n] for steps in zip(*(move.states for move in moves), strict=True))
    return Batch(tensors, actions, states)


def _begin_anew(model: Any, env: VecEnv) -> None:
    """Make training continue with a new episode, because its last observation is outdated.

    A model without a last observation resets the environment itself when it learns. LSTM states are cleared at the
    start of an episode anyway.
    """
    if model._last_obs is None:
        return
    model._last_obs = env.reset()
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    if model.get_vec_normalize_env() is not None:
        model._last_original_obs = model.get_vec_normalize_env().get_original_obs()


@contextmanager
def _seeded_actions(model: BaseAlgorithm, seed: int) -> Iterator[None]:
    """Seed the model's action space within this context, and restore its random stream afterwards."""
    stream = model.action_space.np_random.bit_generator
    before = stream.state
    try:
        stream.state = type(stream)(seed).state
        yield
    finally:
        stream.state = before


@contextmanager
def _kept_noise(model: BaseAlgorithm) -> Iterator[None]:
    """Restore the noise matrices of state-dependent exploration afterwards."""
    held = vars(noise_holder(model).action_dist) if model.use_sde else {}
    before = dict(held)
    try:
        yield
    finally:
        held.clear()
        held.update(before)


@contextmanager
def _frozen_statistics(env: VecEnv) -> Iterator[None]:
    """Prevent every ``VecNormalize`` around an environment from updating its statistics within this context."""
    with ExitStack() as stack:
        layer: VecEnv | None = env
        while isinstance(layer, VecEnvWrapper):
            if isinstance(layer, VecNormalize):
                stack.callback(setattr, layer, "training", layer.training)
                layer.training = False
            layer = layer.venv
        yield
