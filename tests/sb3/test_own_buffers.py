"""Buffers of people's own are measured on what training gets from them, and stay as they were."""

import pickle
import random
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import (
    DictReplayBuffer,
    DictRolloutBuffer,
    NStepReplayBuffer,
    ReplayBuffer,
    RolloutBuffer,
)
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_redo import DormancyCallback, ReDoCallback, measure_dormancy
from sb3_redo.sb3.buffers import available_batch_size, buffer_capacity, sample_batch, stored_observations
from sb3_redo.sb3.memory import Memory
from tests.helpers.algorithms import build
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import Corridor, differences, dqn, fingerprint, plain, random_streams, sac

SEED = (0, 1000)
IMAGE = spaces.Box(0, 255, (4, 6, 6), np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (3,))
PAIR = spaces.Dict({"one": VECTOR, "other": spaces.Box(-1.0, 1.0, (2,))})


class Untouched(ReplayBuffer):
    """Overrides a method without changing what it does."""

    def _get_samples(self, batch_inds, env=None):
        return super()._get_samples(batch_inds, env)


class OnDevice(ReplayBuffer):
    """Keeps tensors in place of arrays."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
            setattr(self, name, torch.as_tensor(getattr(self, name), device=self.device))

    def add(self, obs, next_obs, action, reward, done, infos):
        row = (obs, next_obs, action.reshape(self.n_envs, -1), reward, done)
        for name, value in zip(("observations", "next_observations", "actions", "rewards", "dones"), row, strict=True):
            getattr(self, name)[self.pos] = torch.as_tensor(value)
        self.pos = (self.pos + 1) % self.buffer_size
        self.full |= self.pos == 0

    def _get_samples(self, batch_inds, env=None):
        at = torch.as_tensor(batch_inds), torch.randint(self.n_envs, (len(batch_inds),))
        rest = self.dones[at][:, None], self.rewards[at][:, None]
        return ReplayBufferSamples(self.observations[at], self.actions[at], self.next_observations[at], *rest)


class OnDeviceByItsOwnSample(OnDevice):
    """Leaves the arrays of SB3 empty, and has a ``sample`` of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = self.observations
        self.observations = np.zeros((self.buffer_size, self.n_envs, *self.obs_shape), np.float32)

    def add(self, obs, *rest):
        self.kept[self.pos] = torch.as_tensor(obs)
        super().add(obs * 0, *rest)

    def sample(self, batch_size, env=None):
        rows = torch.randint(self.size(), (batch_size,)).numpy()
        return super()._get_samples(rows)._replace(observations=self.kept[rows, 0])

    _get_samples = ReplayBuffer._get_samples


class NewestFrame(ReplayBuffer):
    """Keeps the newest frame, and stacks them on sampling."""

    def __init__(self, buffer_size, observation_space, action_space, **kwargs):
        self.stack = observation_space.shape[0]
        frame = spaces.Box(0, 255, (1, *observation_space.shape[1:]), np.uint8)
        super().__init__(buffer_size, frame, action_space, **kwargs)

    def add(self, obs, next_obs, *rest):
        super().add(obs[:, -1:], next_obs[:, -1:], *rest)

    def _stacks(self, frames, rows):
        earlier = [frames[(rows - back) % self.buffer_size, 0] for back in reversed(range(self.stack))]
        return self.to_torch(np.concatenate(earlier, axis=1))

    def _get_samples(self, batch_inds, env=None):
        stacks = (self._stacks(frames, batch_inds) for frames in (self.observations, self.next_observations))
        changed = dict(zip(("observations", "next_observations"), stacks, strict=True))
        return super()._get_samples(batch_inds, env)._replace(**changed)


class Compressed(ReplayBuffer):
    """Keeps compressed bytes, the latest decoded ones in a cache, and gives the same memory each time."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.observations = self.next_observations = None
        self.stored, self.cache, self.scratch = {}, {}, torch.zeros(0)

    def add(self, obs, next_obs, *rest):
        self.stored[self.pos] = [zlib.compress(array.tobytes()) for array in (obs, next_obs)]
        self.observations, self.next_observations = (np.zeros((self.buffer_size, 1, *self.obs_shape)) for _ in "ab")
        super().add(obs, next_obs, *rest)
        self.observations = self.next_observations = None

    def _get_samples(self, batch_inds, env=None):
        both = [[zlib.decompress(data) for data in self.stored[row]] for row in batch_inds]
        dtype, shape = self.observation_space.dtype, self.obs_shape
        arrays = np.stack([[np.frombuffer(data, dtype).reshape(shape) for data in pair] for pair in both])
        self.cache[len(self.cache)] = arrays
        if self.scratch.numel() != arrays[:, 0].size:
            self.scratch = torch.zeros(arrays[:, 0].shape, dtype=torch.as_tensor(arrays).dtype)
        self.scratch.copy_(torch.as_tensor(arrays[:, 0]))
        rest = self.to_torch(self.dones[batch_inds]), self.to_torch(self.rewards[batch_inds])
        next_observations = torch.as_tensor(arrays[:, 1])
        return ReplayBufferSamples(self.scratch, self.to_torch(self.actions[batch_inds, 0]), next_observations, *rest)


class PrioritisedSamples(NamedTuple):
    observations: torch.Tensor
    actions: torch.Tensor
    next_observations: torch.Tensor
    dones: torch.Tensor
    rewards: torch.Tensor
    discounts: torch.Tensor | None
    weights: torch.Tensor


class SumTree:
    def __init__(self, size):
        self.priorities, self.asked = np.ones(size), [0]


class Prioritised(ReplayBuffer):
    """Draws from generators of its own, changes priorities as it draws, and counts."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tree, self.beta = SumTree(self.buffer_size), 0.4
        self.numpy, self.torch, self.python = np.random.default_rng(3), torch.Generator(), random.Random(3)
        self.old = [np.random.RandomState(3)]

    def sample(self, batch_size, env=None):
        chances = self.tree.priorities[: self.size()] / self.tree.priorities[: self.size()].sum()
        rows = self.numpy.choice(self.size(), batch_size, p=chances)
        rows[0] = torch.randint(self.size(), (), generator=self.torch)
        rows[1] = self.python.randrange(self.size())
        rows[2] = self.old[0].randint(self.size())
        self.beta *= 1.1
        self.tree.asked.append(batch_size)
        self.tree.priorities[rows] *= 0.9
        self.latest = rows
        return self._get_samples(rows, self.beta, env=env)

    def _get_samples(self, batch_inds, beta, env=None):
        samples = super()._get_samples(batch_inds, env)
        return PrioritisedSamples(*samples, torch.full((len(batch_inds),), beta))

    def state(self):
        generators = self.numpy.bit_generator.state, self.torch.get_state().tolist(), self.python.getstate()
        return [
            *generators,
            self.old[0].get_state(),
            self.tree.priorities.tolist(),
            self.tree.asked,
            self.beta,
            vars(self).get("latest"),
        ]


class Relabelling(HerReplayBuffer):
    """Decodes what it keeps in a method that SB3's class has."""

    def _get_real_samples(self, batch_indices, env_indices, env=None):
        samples = super()._get_real_samples(batch_indices, env_indices, env)
        return samples._replace(observations={key: value + 0 for key, value in samples.observations.items()})


class DecodedDict(DictReplayBuffer):
    def _get_samples(self, batch_inds, env=None):
        samples = super()._get_samples(batch_inds, env)
        return samples._replace(observations={key: value.clone() for key, value in samples.observations.items()})


class Foreign:
    """Shares no class with SB3, and has neither ``size`` nor ``n_envs`` nor ``buffer_size``."""

    def __init__(self, buffer_size, observation_space, action_space, **kwargs):
        self.rows = []

    def add(self, *row):
        self.rows.append(row[:5])

    def extend(self, *rows):
        raise NotImplementedError

    def sample(self, batch_size, env=None):
        rows = random.choices(self.rows, k=batch_size)
        obs, next_obs, actions, rewards, dones = (
            torch.as_tensor(np.stack(parts)[:, 0]) for parts in zip(*rows, strict=True)
        )
        return ReplayBufferSamples(
            obs.float(), actions[:, None], next_obs.float(), dones[:, None].float(), rewards[:, None].float()
        )


def stacked(**settings):
    return dqn(Corridor(observation_space=IMAGE), "MlpPolicy", replay_buffer_class=NewestFrame, **settings)


def vectors(cls, n_envs=1, wrap=lambda env: env, **settings):
    env = wrap(DummyVecEnv([lambda: Corridor(observation_space=VECTOR)] * n_envs))
    return dqn(env, replay_buffer_class=cls, gradient_steps=2, **settings)


def hindsight(cls):
    env = BitFlippingEnv(n_bits=4)
    env.np_random = np.random.default_rng(0)
    return dqn(env, "MultiInputPolicy", replay_buffer_class=cls)


SAVES_MEMORY = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
OWN = {
    "untouched": lambda: vectors(Untouched),
    "untouched, two environments, normalised": lambda: vectors(Untouched, 2, VecNormalize),
    "saving memory": lambda: vectors(Untouched, buffer_size=40, **SAVES_MEMORY),
    "tensors": lambda: vectors(OnDevice, 2),
    "tensors, own sample": lambda: vectors(OnDeviceByItsOwnSample),
    "stacks": stacked,
    "compressed": lambda: vectors(Compressed),
    "prioritised": lambda: vectors(Prioritised),
    "prioritised, of continuous actions": lambda: sac(replay_buffer_class=Prioritised),
    "n steps": lambda: vectors(NStepReplayBuffer, 2),
    "hindsight": lambda: hindsight(Relabelling),
    "dictionary": lambda: dqn(
        Corridor(observation_space=PAIR), "MultiInputPolicy", replay_buffer_class=DecodedDict, gradient_steps=2
    ),
    "foreign": lambda: vectors(Foreign),
}
SLOW = {"untouched", "n steps", "prioritised, of continuous actions"}


def trained(make, callback=None):
    model = make()
    model.learn(60, callback=callback)
    buffer = model.replay_buffer
    return model, fingerprint(model), buffer.state() if isinstance(buffer, Prioritised) else None


@pytest.mark.parametrize("make", mostly_slow(OWN, OWN.keys() - SLOW))
def test_training_with_an_own_buffer_is_bit_for_bit_the_same_when_measured(make):
    callback = DormancyCallback(measuring_period=5, batch_size=16)
    (_, bare, state), (_, measured, measured_state) = trained(make), trained(make, callback)
    assert callback.report is not None
    assert differences(bare, measured) == []
    assert str(state) == str(measured_state)


def is_among(observations, stored):
    stored = torch.as_tensor(stored).flatten(1).float()
    return all((stored == row).all(1).any() for row in observations.flatten(1).float())


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_method_that_changes_nothing_gives_what_is_read_directly(n_envs):
    direct, own = (trained(lambda cls=cls: vectors(cls, n_envs))[0] for cls in (ReplayBuffer, Untouched))
    batches = [sample_batch(model, 20, SEED) for model in (direct, own)]
    if n_envs == 1:
        assert torch.equal(*(batch.observations for batch in batches))
        assert torch.equal(*(batch.actions for batch in batches))
    stored = own.replay_buffer.observations[: own.replay_buffer.size()].reshape(-1, 3)
    assert is_among(batches[1].observations, stored)


def test_stacks_are_those_that_training_gets():
    model, *_ = trained(stacked)
    observations = sample_batch(model, 10, SEED).observations
    frames = model.replay_buffer.observations[:, 0, 0]
    stacks = np.stack([[frames[row - back] for back in (3, 2, 1, 0)] for row in range(60)])
    assert observations.shape == (10, 4, 6, 6)
    assert is_among(observations, stacks)


@pytest.mark.parametrize("cls", [OnDevice, OnDeviceByItsOwnSample, Compressed, Prioritised, Foreign])
def test_what_is_stored_is_measured(cls):
    met = []

    class Noting(cls):
        def add(self, obs, *rest):
            met.append(obs.copy())
            super().add(obs, *rest)

    model, *_ = trained(lambda: vectors(Noting))
    batch = sample_batch(model, 16, SEED)
    assert batch.observations.shape == (16, 3)
    assert batch.actions.shape == (16, 1)
    assert is_among(batch.observations, np.concatenate(met))
    assert len(torch.unique(batch.observations, dim=0)) > 5
    again, other = (sample_batch(model, 16, seed).observations for seed in (SEED, (0, 2000)))
    assert torch.equal(again, batch.observations)
    assert not torch.equal(other, batch.observations)


def test_a_batch_does_not_change_with_the_memory_that_a_buffer_uses_again():
    model, *_ = trained(lambda: vectors(Compressed))
    first = sample_batch(model, 8, SEED).observations
    before = first.clone()
    model.replay_buffer.sample(8)
    assert torch.equal(first, before)


def test_no_random_stream_and_nothing_in_the_buffer_moves():
    model, *_ = trained(lambda: vectors(Prioritised))
    before, state = plain(random_streams(model)), str(model.replay_buffer.state())
    names = set(vars(model.replay_buffer))
    sample_batch(model, 5, SEED)
    assert plain(random_streams(model)) == before
    assert str(model.replay_buffer.state()) == state
    assert set(vars(model.replay_buffer)) == names


SHIFTS = np.random.default_rng(0)


class Shift(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stream, self.norm, self.calls = torch.Generator(), torch.nn.BatchNorm1d(3), 0

    def forward(self, observations):
        self.calls += 1
        return self.norm(observations).detach() + torch.rand(observations.shape, generator=self.stream)


class Tree:
    __slots__ = ("asked", "chances")

    def __init__(self):
        self.asked, self.chances = 0, np.ones(10)


class Augmenting(Untouched):
    """Draws from generators that a global, a closure, its class, a module and a long list hold, and has slots."""

    rows = np.random.default_rng(0)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        stream = torch.Generator()
        self.shift, self.tree, self.many = Shift(), Tree(), [random.Random(i) for i in range(1001)]
        self.noise, self.stream = lambda shape: torch.rand(shape, generator=stream), stream.get_state

    def _get_samples(self, batch_inds, env=None):
        samples = super()._get_samples(self.rows.permutation(batch_inds), env)
        self.tree.asked += 1
        self.tree.chances *= self.many[0].random()
        seen = self.shift(samples.observations) + self.noise(samples.observations.shape)
        return samples._replace(observations=seen + SHIFTS.normal())

    def state(self):
        streams = self.rows.bit_generator.state, SHIFTS.bit_generator.state, self.stream().tolist()
        norm = self.shift.norm.running_mean.tolist(), self.shift.calls, self.shift.stream.get_state().tolist()
        return *streams, *norm, self.tree.asked, self.tree.chances.tolist(), self.many[0].getstate()


def test_what_an_augmentation_draws_from_is_put_back_wherever_it_lies():
    model, *_ = trained(lambda: vectors(Augmenting))
    before = model.replay_buffer.state()
    batches = [sample_batch(model, 8, seed).observations for seed in (SEED, SEED, (0, 2000))]
    assert model.replay_buffer.state() == before
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_a_network_that_a_buffer_trains_while_it_samples_is_put_back():
    class Curious(Untouched):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.net = torch.nn.Linear(3, 2)
            self.optimizer = torch.optim.Adam(self.net.parameters())

        def _get_samples(self, batch_inds, env=None):
            samples = super()._get_samples(batch_inds, env)
            surprise = self.net(samples.observations).square().mean(1, keepdim=True)
            self.optimizer.zero_grad()
            surprise.mean().backward()
            self.optimizer.step()
            return samples._replace(rewards=surprise.detach())

    model, *_ = trained(lambda: vectors(Curious))
    buffer = model.replay_buffer
    before = str((buffer.net.state_dict(), buffer.optimizer.state_dict()))
    sample_batch(model, 8, SEED)
    assert str((buffer.net.state_dict(), buffer.optimizer.state_dict())) == before


def test_a_buffer_that_takes_rows_from_an_iterator_is_refused():
    class Iterating(Untouched):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.orders = (np.random.permutation(20) for _ in range(1000))

        def sample(self, batch_size, env=None):
            return self._get_samples(next(self.orders)[:batch_size], env)

    model, *_ = trained(lambda: vectors(Iterating, batch_size=8, learning_starts=30))
    with pytest.raises(RuntimeError, match=r"Iterating \(TypeError: it holds a generator, .*pass observations="):
        sample_batch(model, 8, SEED)
    assert len(list(model.replay_buffer.orders)) == 1000 - model._n_updates


def test_a_pool_of_threads_that_decodes_is_left_alone():
    class Parallel(Untouched):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.pool = ThreadPoolExecutor(2)

        def _get_samples(self, batch_inds, env=None):
            return self.pool.submit(super()._get_samples, batch_inds, env).result()

    model, *_ = trained(lambda: vectors(Parallel, learning_starts=100))
    for step in range(5):
        sample_batch(model, 8, (0, step))
    assert 1 <= len(model.replay_buffer.pool._threads) <= 2
    model.replay_buffer.pool.shutdown()


def test_an_own_hindsight_buffer_does_not_ask_the_environment(monkeypatch):
    model, *_ = trained(lambda: hindsight(Relabelling))

    def refuse(*_, **__):
        raise AssertionError("the environment was asked")

    monkeypatch.setattr(model.env, "env_method", refuse)
    assert set(sample_batch(model, 8, SEED).observations) == {"observation", "achieved_goal", "desired_goal"}


def test_arrays_mapped_from_a_file_are_read(tmp_path):
    class Mapped(ReplayBuffer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            shape = self.observations.shape
            self.observations = np.memmap(tmp_path / "observations", np.float32, "w+", shape=shape)

    mapped, direct = (trained(lambda cls=cls: vectors(cls))[0] for cls in (Mapped, ReplayBuffer))
    assert torch.equal(*(sample_batch(model, 20, SEED).observations for model in (mapped, direct)))


# Rollouts


class Decoding:
    """Keeps halves of observations, and doubles them for training."""

    def add(self, obs, *rest, **kwargs):
        halves = {key: value / 2 for key, value in obs.items()} if isinstance(obs, dict) else obs / 2
        super().add(halves, *rest, **kwargs)

    def _get_samples(self, *args, **kwargs):
        samples = super()._get_samples(*args, **kwargs)
        seen = samples.observations
        twice = {key: 2 * value for key, value in seen.items()} if isinstance(seen, dict) else 2 * seen
        return samples._replace(observations=twice)


def same_scores(one, other):
    return all(torch.equal(*(each.scores for each in pair)) for pair in zip(one.layers, other.layers, strict=True))


def decoding(base):
    return type("Decoding" + base.__name__, (Decoding, base), {})


ROLLOUTS = {
    "PPO": (RolloutBuffer, VECTOR),
    "A2C": (RolloutBuffer, VECTOR),
    "MaskablePPO": (MaskableRolloutBuffer, VECTOR),
    "PPO, dictionary": (DictRolloutBuffer, PAIR),
    "RecurrentPPO": (RecurrentRolloutBuffer, VECTOR),
}


def on_policy(name, cls, space):
    algorithm = name.partition(",")[0]
    env = DummyVecEnv([lambda: Corridor(7, space, spaces.Discrete(3))] * 2)
    model = build(
        algorithm, "MultiInputPolicy" if space is PAIR else "MlpPolicy", env, {"features_extractor_kwargs": {}}
    )
    buffer = model.rollout_buffer
    shape = (buffer.hidden_state_shape,) if algorithm == "RecurrentPPO" else ()
    made = cls(buffer.buffer_size, space, model.action_space, *shape, device="cpu", n_envs=2)
    made.gamma, made.gae_lambda = buffer.gamma, buffer.gae_lambda
    model.rollout_buffer = made
    return model


@pytest.mark.parametrize("name", mostly_slow(list(ROLLOUTS), {"MaskablePPO", "PPO, dictionary", "RecurrentPPO"}))
def test_own_rollouts_are_decoded_and_training_stays_the_same(name):
    base, space = ROLLOUTS[name]
    left, reports = [], []
    for cls, callback in ((decoding(base), None), (decoding(base), True), (base, True)):
        model, callback = on_policy(name, cls, space), callback and DormancyCallback(measuring_period=2, batch_size=8)
        model.learn(40, callback=callback)
        left.append(fingerprint(model))
        reports.append(callback and callback.report)
    assert differences(left[0], left[1]) == []
    batch, expected = reports[1].batch, reports[2].batch
    assert [tuple(state.shape) for state in batch.states] == [tuple(state.shape) for state in expected.states]
    if name == "RecurrentPPO":  # and the same rows, which the states belong to
        assert torch.equal(batch.observations, expected.observations)
        assert all(map(torch.equal, batch.states, expected.states))
        assert same_scores(reports[1], reports[2])
    elif space is VECTOR:
        assert batch.observations.shape == (8, 3)
        assert batch.observations.abs().max() > 0.5


# What cannot be read


class Undecoded(NewestFrame):
    _get_samples = ReplayBuffer._get_samples

    def sample(self, batch_size, env=None):
        return ReplayBuffer.sample(self, batch_size, env)


class Bytes(Untouched):
    def _get_samples(self, batch_inds, env=None):
        samples = super()._get_samples(batch_inds, env)
        return samples._replace(observations=samples.observations.byte())


class Nameless(Untouched):
    def _get_samples(self, batch_inds, env=None):
        return tuple(super()._get_samples(batch_inds, env))


class Short(Untouched):
    def _get_samples(self, batch_inds, env=None):
        return super()._get_samples(batch_inds[::2], env)


class Failing(Untouched):
    def _get_samples(self, batch_inds, env=None):
        raise KeyError("episode 7")


@pytest.mark.parametrize(
    ("cls", "space", "message"),
    [
        (Undecoded, IMAGE, "observations are [8, 1, 6, 6] and not [8, 4, 6, 6]"),
        (Bytes, VECTOR, "observations are torch.uint8 where the observation space is of float32"),
        (Short, VECTOR, "observations are [4, 3] and not [8, 3]"),
        (Nameless, VECTOR, "'tuple' object has no attribute 'observations'"),
        (Failing, VECTOR, "KeyError: 'episode 7'"),
    ],
)
def test_a_buffer_that_cannot_be_read_is_refused_by_the_name_of_its_class(cls, space, message):
    model = dqn(Corridor(observation_space=space), "MlpPolicy", replay_buffer_class=cls, learning_starts=100)
    model.learn(40)
    expected = f"observations cannot be drawn from a {cls.__name__} ("
    with pytest.raises(RuntimeError, match=re.escape(expected) + f".*{re.escape(message)}.*: pass observations="):
        sample_batch(model, 8, SEED)
    assert measure_dormancy(model, observations=np.stack([space.sample() for _ in range(8)])).layers


def test_a_foreign_buffer_is_counted_by_what_it_tells():
    model, *_ = trained(lambda: vectors(Foreign, buffer_size=500))
    assert buffer_capacity(model) == 500
    assert available_batch_size(model, 500, "") == 500
    assert stored_observations(model) == 60
    model.replay_buffer.__class__ = type("Counted", (Foreign,), {"__len__": lambda self: len(self.rows) - 1})
    assert stored_observations(model) == 59


# Fixed observations


@pytest.mark.parametrize("kind", ["array", "tensor", "list", "batch"])
def test_a_fixed_set_is_measured_on_whole_and_without_waiting(kind):
    observations = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    model = vectors(Failing if kind == "array" else ReplayBuffer, buffer_size=30, learning_starts=4)
    model._setup_learn(1)
    given = {"array": observations, "tensor": torch.as_tensor(observations), "list": observations.tolist()}
    given["batch"] = measure_dormancy(model, observations=observations).batch
    callback = DormancyCallback(measuring_period=10**6, batch_size=10**4, observations=given[kind])
    expected = measure_dormancy(model, observations=observations)
    if kind == "array":
        with pytest.raises(KeyError, match="episode 7"):  # from SB3, once it trains
            model.learn(8, callback=callback)
    else:
        model.learn(8, callback=callback)
    assert torch.equal(callback.report.batch.observations, torch.as_tensor(observations))
    assert same_scores(callback.report, expected)


def test_a_fixed_set_is_a_copy():
    observations = np.ones((4, 3), np.float32)
    callback = DormancyCallback(observations=observations)
    observations[:] = 7
    assert callback.observations.max() == 1


def test_a_fixed_set_leaves_training_as_it_is():
    observations = np.ones((4, 3), np.float32)
    callback = DormancyCallback(measuring_period=5, observations=observations)
    bare, measured = (
        trained(lambda: sac(Corridor(observation_space=VECTOR, action_space=VECTOR)), each)[1]
        for each in (None, callback)
    )
    assert callback.report is not None
    assert differences(bare, measured) == []


@pytest.mark.parametrize("name", ["RecurrentPPO", "PPO"])
def test_on_policy_agents_are_measured_on_a_fixed_set(name):
    observations = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    callback = DormancyCallback(measuring_period=1, observations=observations)
    model = build(name)
    model.learn(40, callback=callback)
    assert torch.equal(callback.report.batch.observations, torch.as_tensor(observations))
    if name == "RecurrentPPO":
        assert [len(state) for state in callback.report.batch.states] == [50] * 5
        assert callback.report.batch.states[-1].all()


def test_a_dictionary_is_shown_by_its_shapes_and_pickled_once():
    observations = {"one": np.ones((1000, 3), np.float32), "other": np.zeros((1000, 2), np.float32)}
    callback = DormancyCallback(observations=observations)
    assert "observations={'one': <float32 [1000, 3]>, 'other': <float32 [1000, 2]>}" in repr(callback)
    pickled = pickle.dumps(callback)
    assert 20_000 < len(pickled) < 30_000
    assert torch.equal(pickle.loads(pickled).observations["one"], torch.ones(1000, 3))


@pytest.mark.parametrize(
    "wrong", ["abc", 5, object(), {}, {"one": "two"}, np.array(["a"]), [[1], [1, 2]], np.array(3.0)]
)
def test_what_is_no_set_of_observations_is_refused(wrong):
    with pytest.raises(TypeError, match=r"^observations must be an array or tensor \[batch, ...\]"):
        DormancyCallback(observations=wrong)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="observations must hold at least one row, got none"):
        DormancyCallback(observations=np.ones((0, 3)))


@pytest.mark.parametrize("wrong", [np.ones((8, 5)), {"one": np.ones((8, 3))}, np.ones(4)])
def test_a_set_of_another_space_is_refused_when_training_starts(wrong):
    with pytest.raises(RuntimeError, match="observations do not fit the model's observation space Box"):
        vectors(ReplayBuffer).learn(8, callback=ReDoCallback(observations=wrong))


def test_a_dictionary_of_lists_is_measured_on():
    observations = {"one": [[0.1, 0.2, 0.3]] * 4, "other": [[0.4, 0.5]] * 4}
    model = dqn(Corridor(observation_space=PAIR), "MultiInputPolicy")
    callback = DormancyCallback(measuring_period=10, observations=observations)
    model.learn(30, callback=callback)
    assert {key: each.tolist() for key, each in callback.report.batch.observations.items()} == {
        key: torch.tensor(each, dtype=torch.float64).tolist() for key, each in observations.items()
    }


def test_parts_of_a_dictionary_with_other_numbers_of_rows_are_refused():
    observations = {"one": np.ones((4, 3), np.float32), "other": np.ones((5, 2), np.float32)}
    model = dqn(Corridor(observation_space=PAIR), "MultiInputPolicy")
    with pytest.raises(ValueError, match=r"^observations do not fit .*: their parts hold 4 to 5 rows$"):
        measure_dormancy(model, observations=observations)


def test_images_that_were_scaled_are_refused():
    image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    model = dqn(Corridor(observation_space=image), "CnnPolicy", buffer_size=10)
    whole = np.stack([image.sample() for _ in range(4)])
    assert measure_dormancy(model, observations=whole.astype(np.float32)).layers
    with pytest.raises(ValueError, match=r"images are float32 with fractions, and whole numbers from 0 to 255"):
        measure_dormancy(model, observations=whole.astype(np.float32) / 255)


def test_a_fixed_set_as_it_lies_in_a_buffer_is_normalised_as_training_sees_it_now():
    observations = np.random.default_rng(0).uniform(-1, 1, (20, 2, 3)).astype(np.float32)
    callback = ReDoCallback(0.5, recycling_period=10, observations=observations)
    model = vectors(ReplayBuffer, 2, VecNormalize)
    model.learn(60, callback=callback)
    statistics = model.get_vec_normalize_env().obs_rms
    expected = (observations.reshape(-1, 3) - statistics.mean) / np.sqrt(statistics.var)
    assert callback.measurer.sampler.batch_size == 40
    assert np.allclose(callback.measurer.sampler.draw(0).observations, expected, atol=1e-3)
    assert Memory.recycled_total_of(model) > 0
