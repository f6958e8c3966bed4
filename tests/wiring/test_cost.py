"""Neither reading a wiring nor measuring takes long or much memory."""

import time
import weakref
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sb3_redo import trace_wiring
from sb3_redo.dormancy.meter import Meter
from sb3_redo.forward.contexts import evaluating
from sb3_redo.forward.nested import map_tensors
from sb3_redo.sb3.agents import agent_of
from sb3_redo.sb3.model import whole_batch
from sb3_redo.wiring.frozen_network import FrozenNetwork


class Block(nn.Module):
    """A residual block of IMPALA."""

    def __init__(self, channels):
        super().__init__()
        self.conv0, self.conv1 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.conv1(torch.relu(self.conv0(torch.relu(x))))


class Impala(BaseFeaturesExtractor):
    """The large network of Espeholt et al. 2018, ``width`` times as wide."""

    def __init__(self, observation_space, width=4):
        super().__init__(observation_space, 256 * width)
        layers, channels = [], observation_space.shape[0]
        for outputs in (16 * width, 32 * width, 32 * width):
            stage = nn.Conv2d(channels, outputs, 3, padding=1), nn.MaxPool2d(3, 2, 1), Block(outputs), Block(outputs)
            layers, channels = [*layers, *stage], outputs
        self.cnn = nn.Sequential(*layers, nn.ReLU(), nn.Flatten())
        self.linear = nn.Sequential(nn.Linear(channels * 11 * 11, 256 * width), nn.ReLU())

    def forward(self, x):
        return self.linear(self.cnn(x))


class Room(gym.Env):
    """Any observations, no dynamics."""

    def __init__(self, observation_space):
        self.observation_space, self.action_space = observation_space, spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def pixels(channels, size):
    return spaces.Box(0, 255, (channels, size, size), np.uint8)


def impala():
    extractor = {"features_extractor_class": Impala}
    return DQN("CnnPolicy", Room(pixels(4, 84)), buffer_size=10, policy_kwargs=extractor, seed=0)


def dictionary():
    images = {f"image {i}": pixels(1, 36) for i in range(4)}
    vectors = {f"vector {i}": spaces.Box(-1, 1, (5,)) for i in range(16)}
    return DQN("MultiInputPolicy", Room(spaces.Dict(images | vectors)), buffer_size=10, seed=0)


every_policy = pytest.mark.parametrize("build", [pytest.param(impala, marks=pytest.mark.slow), dictionary])


def prepared(build):
    model = build()
    return model.policy, whole_batch(model, model.env.reset()), agent_of(model).forward


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and still alive."""

    def __init__(self):
        super().__init__()
        self.storages = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {self.key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and self.key(leaf) not in given and self.key(leaf) not in self.storages:
                storage = leaf.untyped_storage()
                self.storages[self.key(leaf)] = storage.nbytes()
                weakref.finalize(storage, self.storages.pop, self.key(leaf), None)
        self.peak = max(self.peak, sum(self.storages.values()))
        return result

    @staticmethod
    def key(tensor):
        return tensor.untyped_storage()._cdata


def processor_time(function):
    begun = time.process_time()
    function()
    return time.process_time() - begun


@pytest.mark.slow  # slow tests run one at a time: nothing runs beside this one
@pytest.mark.parametrize(("build", "passes"), [(impala, 100), (dictionary, 500)])
def test_tracing_takes_no_more_than_some_hundred_bare_passes(build, passes):
    policy, batch, forward = prepared(build)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    @torch.no_grad()
    def twenty_passes():
        for _ in range(20):
            forward(policy, batch)

    try:
        # The least of several, taken in turn: other processes slow a machine's memory down, both times alike.
        times = [
            (processor_time(lambda: trace_wiring(policy, batch, forward=forward)), processor_time(twenty_passes) / 20)
            for _ in range(5)
        ]
    finally:
        torch.set_num_threads(threads)
    tracing, passing = (min(column) for column in zip(*times, strict=True))
    assert tracing < passes * passing


@every_policy
def test_tracing_never_holds_more_than_two_copies_of_the_activations_of_two_observations(build):
    policy, batch, forward = prepared(build)
    row = map_tensors(lambda tensor: tensor[:1], batch)
    with evaluating(policy.modules()):
        elements = FrozenNetwork(policy, lambda: forward(policy, row)).size
    with LiveMemory() as memory:
        trace_wiring(policy, batch, forward=forward)
    assert memory.peak <= 2 * 2 * elements * torch.float32.itemsize


def test_the_number_of_elements_is_that_of_layers_and_activations():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 1))
    with torch.no_grad():
        assert FrozenNetwork(network, lambda: network(torch.ones(1, 1, 4, 4))).size == 2 * (8 + 3) + 1


def test_the_count_of_memory_sees_what_is_held_and_forgets_what_is_gone():
    with LiveMemory() as memory:
        for _ in range(3):
            passing = torch.ones(100) + 1
            del passing
        assert memory.peak == 2 * 400
        held = [torch.ones(100).view(10, 10) for _ in range(5)]
        assert memory.peak == len(held) * 400
        assert sum(memory.storages.values()) == 5 * 400


def measured(model, batch, rows_at_once=None):
    wiring = trace_wiring(model.policy, batch, forward=agent_of(model).forward)
    if rows_at_once is not None:
        wiring = replace(wiring, values_per_observation=2**26 // rows_at_once)
    meter = Meter(model.policy, wiring, {layer.name: "q_net" for layer in wiring})
    return meter.measure(lambda part: agent_of(model).forward(model.policy, part), batch, 0.1)


@pytest.mark.slow
def test_a_batch_too_large_for_one_pass_is_measured_in_bounded_memory():
    model = impala()
    images = np.random.default_rng(0).integers(0, 256, (120, 4, 84, 84), np.uint8)
    batch = whole_batch(model, images)
    with LiveMemory() as memory:
        parts = measured(model, batch)
    assert 2 <= 120 / parts.wiring.rows_at_once < 10
    assert memory.peak < 2**26 * torch.float32.itemsize
    whole = measured(model, batch, rows_at_once=120)
    for one, other in zip(parts.layers, whole.layers, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-6, atol=1e-6)
