"""Observations come from the buffer's own arrays, as training sees them, and nothing else notices."""

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_redo.sb3.buffers import buffer_capacity, sample_batch, stored_observations
from sb3_redo.sb3.seeds import torch_generator
from tests.helpers.runs import Corridor, dqn, plain, random_streams, sac

SEED = (0, 1000)


def model_with(rows, *, n_envs=1, capacity=12, observations=None, wrap=lambda env: env, **settings):
    """A DQN model to whose buffer this many rows were added, each observation spelling (row, environment)."""
    space = observations or spaces.Box(-np.inf, np.inf, (2,))
    env = wrap(DummyVecEnv([lambda: Corridor(observation_space=space)] * n_envs))
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    model = dqn(env, policy, buffer_size=capacity * n_envs, **settings)
    for row in range(rows):
        now, then = (spelt(number, n_envs, space) for number in (row, row + 1))
        nothing = np.zeros(n_envs)
        model.replay_buffer.add(now, then, np.full(n_envs, row % 2), nothing, nothing, [{}] * n_envs)
    return model


def spelt(row, n_envs, space):
    pairs = np.array([[row, env] for env in range(n_envs)], dtype=np.float32)
    return dict.fromkeys(space, pairs) if isinstance(space, spaces.Dict) else pairs


def pairs_in(observations):
    return [tuple(pair) for pair in observations.int().tolist()]


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    ("rows", "saves_memory", "there"),
    [
        (5, False, range(5)),
        (12, False, range(12)),
        (20, False, range(8, 20)),
        # Saving memory, the latest next observation takes the place of the oldest observation.
        (5, True, range(5)),
        (20, True, range(9, 21)),
    ],
    ids=["partly filled", "just full", "overwritten", "saving memory", "saving memory, overwritten"],
)
def test_a_batch_of_all_that_is_stored_holds_each_observation_once(n_envs, rows, saves_memory, there):
    replay = {"optimize_memory_usage": saves_memory}
    replay["replay_buffer_kwargs"] = {"handle_timeout_termination": not saves_memory}
    model = model_with(rows, n_envs=n_envs, **replay)
    assert stored_observations(model) == len(there) * n_envs
    assert buffer_capacity(model) == 12 * n_envs
    batch = sample_batch(model, stored_observations(model), SEED)
    assert sorted(pairs_in(batch.observations)) == [(row, env) for row in there for env in range(n_envs)]


def test_a_batch_is_drawn_without_replacement_and_from_everywhere():
    model = model_with(12, n_envs=3)
    drawn = [pairs_in(sample_batch(model, 10, (0, step)).observations) for step in range(50)]
    assert all(len(set(pairs)) == 10 for pairs in drawn)
    assert {pair for pairs in drawn for pair in pairs} == {(row, env) for row in range(12) for env in range(3)}


def test_actions_belong_to_their_observations():
    batch = sample_batch(model_with(12, n_envs=3), 20, SEED)
    assert [row % 2 for row, _ in pairs_in(batch.observations)] == batch.actions.flatten().tolist()


def test_the_parts_of_a_dictionary_stay_together():
    parts = spaces.Dict({name: spaces.Box(-np.inf, np.inf, (2,)) for name in ("one", "other")})
    observations = sample_batch(model_with(12, n_envs=2, observations=parts), 10, SEED).observations
    assert set(observations) == {"one", "other"}
    assert pairs_in(observations["one"]) == pairs_in(observations["other"])
    assert len(set(pairs_in(observations["one"]))) == 10


def test_observations_are_normalised_as_training_sees_them_and_statistics_stay():
    model = model_with(12, n_envs=2, wrap=VecNormalize)
    statistics = model.env.obs_rms
    statistics.mean, statistics.var, statistics.count = np.array([4.0, 0.5]), np.array([9.0, 0.25]), 100.0
    observations = sample_batch(model, 24, SEED).observations
    restored = observations * torch.tensor([3.0, 0.5]) + torch.tensor([4.0, 0.5])
    assert sorted(pairs_in(restored.round())) == [(row, env) for row in range(12) for env in range(2)]
    assert torch.allclose(restored, restored.round(), atol=1e-3)
    assert (statistics.mean.tolist(), statistics.var.tolist(), statistics.count) == ([4.0, 0.5], [9.0, 0.25], 100.0)


def test_the_batch_is_what_the_networks_take():
    model = sac(make_vec_env("Pendulum-v1", 2, seed=0))
    model.learn(20)
    batch = sample_batch(model, 10, SEED)
    assert batch.observations.shape == (10, 3)
    assert batch.actions.shape == (10, 1)
    assert batch.actions.abs().max() <= 1
    assert [values.shape for values in model.critic(batch.observations, batch.actions)] == [(10, 1), (10, 1)]


def test_hindsight_replay_is_read_without_touching_the_environment(monkeypatch):
    env = DummyVecEnv([lambda: BitFlippingEnv(n_bits=4)] * 2)
    model = DQN("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, buffer_size=100, learning_starts=1000)
    model.learn(2)  # not a single episode is over yet, so the buffer's own sample() would fail

    def refuse(*_, **__):
        raise AssertionError("the environment was asked")

    for method in ("env_method", "get_attr", "set_attr", "step_async", "reset"):
        monkeypatch.setattr(env, method, refuse)
    observations = sample_batch(model, 2, SEED).observations
    assert set(observations) == {"observation", "achieved_goal", "desired_goal"}
    assert torch.equal(observations["observation"], observations["achieved_goal"])


def test_a_draw_depends_on_seed_and_gradient_step_alone():
    model = model_with(12, n_envs=3)

    def drawn(seed):
        return pairs_in(sample_batch(model, 10, seed).observations)

    first = drawn((0, 1000))
    np.random.seed(1)
    torch.manual_seed(1)
    assert drawn((0, 1000)) == first
    assert drawn((0, 2000)) != first
    assert drawn((1, 1000)) != first


def test_no_random_stream_moves():
    model = model_with(12)
    before = plain(random_streams(model))
    sample_batch(model, 5, SEED)
    torch_generator(SEED)
    assert plain(random_streams(model)) == before


def test_fresh_weights_are_drawn_apart_from_observations_and_from_other_steps():
    def drawn(seed):
        return torch.rand(4, generator=torch_generator(seed)).tolist()

    assert drawn((0, 1000)) == drawn((0, 1000))
    assert len({tuple(drawn(seed)) for seed in [(0, 1000), (0, 2000), (1, 1000), (1000, 0)]}) == 4


@pytest.mark.parametrize(("rows", "stored"), [(0, 0), (4, 8)])
def test_too_few_observations_are_told_of_with_both_numbers(rows, stored):
    message = f"batch_size is 9, but the replay buffer holds {stored} observations: collect more first"
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_batch(model_with(rows, n_envs=2), 9, SEED)
