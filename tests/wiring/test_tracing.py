"""The wiring found by perturbation is the wiring that was built."""

import copy
import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN, PPO, SAC
from torch import nn
from torch.nn import functional

from sb3_redo import trace_wiring
from sb3_redo.wiring.prober import Prober
from tests.helpers import networks, sly_networks
from tests.helpers.marks import mostly_slow
from tests.helpers.stateful_networks import Passes

every_network = pytest.mark.parametrize("name", networks.NETWORKS)
# Of every kind of layer, join and normalisation one.
SOME = {
    *("Mlp", "Grouped", "TwinCritics", "Gate", "BatchNormalised", "OwnActivation", "Recurrent", "Attentive"),
}
some_networks = pytest.mark.parametrize("name", mostly_slow(list(networks.NETWORKS), SOME))


@every_network
def test_the_wiring_is_the_one_that_was_built(name):
    check_wiring(name)


@pytest.mark.parametrize("name", sly_networks.CAUTIOUS)
def test_a_wiring_that_is_not_read_whole_recycles_nothing_that_it_should_not(name):
    network = networks.build(name)
    wiring = trace_wiring(network, network.observations(2))
    assert {layer.name for layer in wiring} == set(network.known)
    for layer in wiring:
        known = network.known[layer.name]
        if layer.recyclable:
            assert known.reason is None
            found = {consumer: positions.tolist() for consumer, positions in layer.consumers.items()}
            assert found == known.consumers


def check_wiring(name):
    network = networks.build(name)
    wiring = trace_wiring(network, network.observations(2))
    assert {layer.name for layer in wiring.layers} == set(network.known)
    assert set(wiring.outputs) == set(network.outputs)
    for layer in wiring:
        known = network.known[layer.name]
        found = {consumer: positions.tolist() for consumer, positions in layer.consumers.items()}
        assert found == known.consumers, layer.name
        assert layer.recyclable == (known.reason is None), layer.reason
        assert layer.exact == known.exact or not layer.recyclable, layer.name
        assert known.reason is None or known.reason in layer.reason
        assert {key: owners.tolist() for key, owners in layer.normalisations.items()} == known.normalisations
    assert len(wiring.left_alone) == hasattr(network, "left_alone")
    assert getattr(network, "left_alone", "") in str(wiring)


@some_networks
def test_it_is_the_same_one_assignment_at_a_time(name, monkeypatch):
    network = networks.build(name)
    wiring = trace_wiring(network, network.observations(2))
    monkeypatch.setattr(Prober, "_rows_are_independent", lambda self: False)
    assert str(trace_wiring(network, network.observations(2))) == str(wiring)


@pytest.mark.parametrize(
    ("name", "apart"), [("Mlp", True), ("Branched", True), ("Mingled", False), ("Recurrent", False), ("Gru", False)]
)
def test_rows_that_do_not_stay_apart_are_noticed(name, apart, monkeypatch):
    seen, really = [], Prober._rows_are_independent
    monkeypatch.setattr(Prober, "_rows_are_independent", lambda self: seen.append(really(self)) or seen[-1])
    network = networks.build(name)
    trace_wiring(network, network.observations(2))
    assert seen == [apart]


@some_networks
def test_tracing_leaves_no_trace(name):
    network = networks.build(name)
    network.train()
    next(network.children()).eval()
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    hooks = [(*module._forward_hooks, *module._forward_pre_hooks) for module in network.modules()]
    torch.manual_seed(3)
    stream = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    trace_wiring(network, network.observations(3))
    assert torch.equal(stream[0], torch.get_rng_state())
    assert (np.random.get_state()[1].tolist(), random.getstate()) == stream[1:]
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert hooks == [(*module._forward_hooks, *module._forward_pre_hooks) for module in network.modules()]
    assert all("forward" not in module.__dict__ for module in network.modules())


def test_a_network_that_refuses_many_rows_is_read_one_assignment_at_a_time():
    class Refusing(networks.Mlp):
        def forward(self, x):
            x = functional.relu(self.first(x))
            if len(x) > 2:
                raise ValueError("only two rows")
            return self.out(functional.relu(self.second(x)))

    wiring = trace_wiring(Refusing(), torch.randn(2, 5))
    assert wiring["first"].consumers["second"].tolist() == list(range(6))
    assert wiring["second"].consumers["out"].tolist() == list(range(4))


@pytest.mark.parametrize("number", [1, 2, 7, 30])
def test_an_interruption_while_tracing_leaves_no_trace(number):
    passes = Passes()

    class Failing(networks.Mlp):
        calls = 0

        def forward(self, x):
            self.calls += 1
            passes.made += 1
            if passes.made == number:
                raise KeyboardInterrupt
            return super().forward(x)

    network = Failing().train()
    with pytest.raises(KeyboardInterrupt):
        trace_wiring(network, network.observations(2))
    assert all("forward" not in module.__dict__ for module in network.modules())
    assert all(module.training for module in network.modules())
    assert network.calls == 0


def test_one_observation_is_enough_and_arrays_do():
    network = networks.build("Mlp")
    wiring = trace_wiring(network, np.ones((1, 5), np.float32))
    assert wiring["first"].consumers["second"].tolist() == list(range(6))


def test_a_network_without_layers_is_refused_with_what_it_holds():
    with pytest.raises(RuntimeError, match=r"no Linear or Conv layer of Sequential runs.*none at all"):
        trace_wiring(nn.Sequential(nn.ReLU()), torch.ones(2, 3))


def test_a_layer_that_no_observation_reaches_is_named():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.positive, self.negative = (nn.Linear(3, 3) for _ in range(3))

        def forward(self, observations):
            hidden, positive = torch.relu(self.first(observations)), observations[:, 0] > 0
            output = torch.zeros_like(hidden)
            output[positive] = self.positive(hidden[positive])
            output[~positive] = self.negative(hidden[~positive])
            return output

    with pytest.raises(RuntimeError, match=r"negative runs on none of the observations: .* cannot be read"):
        trace_wiring(Routed(), torch.ones(4, 3))


def test_a_network_with_only_output_layers_is_refused_by_name():
    with pytest.raises(RuntimeError, match=r"nothing to measure in Linear: it has only output layers"):
        trace_wiring(nn.Linear(3, 2), torch.ones(2, 3))


def test_a_layer_that_does_not_run_is_not_part_of_the_wiring():
    network = networks.build("Mlp")
    network.unused = nn.Linear(3, 3)
    wiring = trace_wiring(network, network.observations(2))
    assert "unused" not in str(wiring)


def test_an_unknown_layer_is_named_beside_those_that_exist():
    network = networks.build("Mlp")
    with pytest.raises(KeyError, match="no measured layer 'third'; there are first, second"):
        trace_wiring(network, network.observations(2))["third"]


def test_the_wiring_prints_as_a_table():
    network = networks.build("Residual")
    assert str(trace_wiring(network, network.observations(2))).splitlines() == [
        "layer  neurons  feeds       recyclable",
        "stem   4        inner, out  no: what it feeds into out is also fed by outer (a sum, a product or a skip)",
        "inner  4        outer       yes",
        "outer  4        out         no: what it feeds into out is also fed by stem (a sum, a product or a skip)",
        "out             (output)    no: output layers are neither measured nor recycled",
    ]


class Room(gym.Env):
    """Any spaces, no dynamics."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
VECTOR = spaces.Box(-1, 1, (3,))
DICTIONARY = spaces.Dict({"image": IMAGE, "kind": spaces.Discrete(4), "vector": VECTOR})
MOVES, FORCES = spaces.Discrete(2), spaces.Box(-1, 1, (2,))


def policy_wiring(algorithm, policy, observation_space, action_space, use_sde=False, **policy_kwargs):
    size = {"n_steps": 64} if algorithm is PPO else {"buffer_size": 10}
    if use_sde:
        size["use_sde"] = True
    model = algorithm(policy, Room(observation_space, action_space), policy_kwargs=policy_kwargs, **size)
    observations, _ = model.policy.obs_to_tensor(model.env.reset())
    return trace_wiring(model.policy, observations)


def test_nature_cnn_has_672_neurons_and_flattens_channels_first():
    wiring = policy_wiring(DQN, "CnnPolicy", IMAGE, MOVES)
    assert [layer.neurons for layer in wiring] == [32, 64, 64, 512]
    assert all(layer.recyclable and layer.exact for layer in wiring)
    last_convolution = wiring["q_net.features_extractor.cnn.4"]
    assert list(last_convolution.consumers) == ["q_net.features_extractor.linear.0"]
    assert last_convolution.consumers["q_net.features_extractor.linear.0"].tolist() == list(range(64))


def test_nature_cnn_with_more_than_one_pixel_left_has_as_many_columns_per_channel():
    image = spaces.Box(0, 255, (1, 44, 52), np.uint8)
    wiring = policy_wiring(DQN, "CnnPolicy", image, MOVES)
    columns = wiring["q_net.features_extractor.cnn.4"].consumers["q_net.features_extractor.linear.0"]
    assert columns.tolist() == [channel for channel in range(64) for _ in range(2 * 3)]


def test_sac_actor_feeds_two_heads_and_actions_are_columns_of_nobody():
    wiring = policy_wiring(SAC, "MlpPolicy", VECTOR, FORCES, net_arch=[8, 6], n_critics=3)
    assert set(wiring["actor.latent_pi.2"].consumers) == {"actor.mu", "actor.log_std"}
    assert set(wiring.outputs) == {"actor.mu", "actor.log_std", *(f"critic.qf{i}.4" for i in range(3))}
    assert not any("critic_target" in layer.name for layer in wiring)


def test_a_shared_extractor_feeds_actor_and_critics_beside_the_actions():
    shared = {"share_features_extractor": True, "features_extractor_kwargs": {"cnn_output_dim": 16}}
    wiring = policy_wiring(SAC, "MultiInputPolicy", DICTIONARY, FORCES, net_arch=[8], **shared)
    features = wiring["actor.features_extractor.extractors.image.linear.0"]
    rest, actions = [-1] * (4 + 3), [-1] * 2
    expected = [*range(16), *rest]
    assert {consumer: positions.tolist() for consumer, positions in features.consumers.items()} == {
        "actor.latent_pi.0": expected,
        "critic.qf0.0": expected + actions,
        "critic.qf1.0": expected + actions,
    }


def test_state_dependent_exploration_makes_the_last_hidden_layer_measured_only():
    wiring = policy_wiring(SAC, "MlpPolicy", VECTOR, FORCES, net_arch=[8, 6], use_sde=True)
    assert wiring["actor.latent_pi.0"].recyclable
    assert "reaches an output" in wiring["actor.latent_pi.2"].reason


def test_an_on_policy_policy_is_read_too():
    wiring = policy_wiring(PPO, "CnnPolicy", IMAGE, MOVES)
    assert set(wiring["features_extractor.linear.0"].consumers) == {"action_net", "value_net"}


class Branches(nn.Module):
    """A random network made of branches over blocks of features, in random order, with its wiring kept alongside."""

    def __init__(self, plan):
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleDict()
        self.expected = {}
        owners = [("observation", i) for i in range(5)]
        for depth, branches in enumerate(plan):
            incoming, owners = owners, []
            for number, (width, form, start) in enumerate(branches):
                name = f"{depth}_{number}"
                taken = incoming[start % len(incoming) :] or incoming
                self.layers[name] = nn.Linear(len(taken), width, bias=form != "doubled")
                self._expect(f"layers.{name}", taken)
                owners += self._owners(f"layers.{name}", width, form)
        self.layers["out"] = nn.Linear(len(owners), 2)
        self._expect("layers.out", owners)

    def _expect(self, consumer, owners):
        for layer in {owner for owner, _ in owners} - {"observation"}:
            positions = [neuron if owner == layer else -1 for owner, neuron in owners]
            self.expected.setdefault(layer, {})[consumer] = positions

    @staticmethod
    def _owners(name, width, form):
        order = list(range(width))
        if form == "reversed":
            order.reverse()
        elif form == "doubled":
            order = order * 2
        elif form == "sliced":
            order = order[1:] or order
        return [(name, neuron) for neuron in order]

    @staticmethod
    def _shape(x, form):
        if form == "reversed":
            return torch.tanh(x).flip(-1)
        if form == "doubled":
            return torch.cat([x.relu(), (-x).relu()], -1)
        if form == "sliced":
            return nn.functional.leaky_relu(x)[:, 1 if x.shape[-1] > 1 else 0 :]
        return nn.functional.relu(x)

    def forward(self, x):
        for depth, branches in enumerate(self.plan):
            x = torch.cat(
                [
                    self._shape(self.layers[f"{depth}_{number}"](x[:, start % x.shape[1] :]), form)
                    for number, (_, form, start) in enumerate(branches)
                ],
                1,
            )
        return self.layers["out"](x)


branch = st.tuples(st.integers(1, 6), st.sampled_from(["plain", "reversed", "doubled", "sliced"]), st.integers(0, 3))
plans = st.lists(st.lists(branch, min_size=1, max_size=3), min_size=1, max_size=3)


@settings(max_examples=12, deadline=None)
@given(plans)
@example([[(1, "plain", 0)], [(1, "plain", 0), (1, "plain", 0)], [(1, "plain", 1)]])
def test_random_branching_networks_are_read_right(plan):
    network = Branches(plan)
    wiring = trace_wiring(network, torch.randn(2, 5))
    found = {layer.name: {name: p.tolist() for name, p in layer.consumers.items()} for layer in wiring}
    # A sliced-off neuron feeds nobody, and a layer whose consumers all start behind it is an output of nothing.
    expected = {
        layer: {name: positions for name, positions in consumers.items() if max(positions) >= 0}
        for layer, consumers in network.expected.items()
    }
    expected = {layer: consumers for layer, consumers in expected.items() if consumers}
    assert found == expected

    def is_trained(layer):
        return layer == "layers.out" or any(map(is_trained, expected.get(layer, ())))

    # What a layer feeds may end in neurons that are sliced off. No gradient reaches that part.
    assert {layer.name: layer.recyclable for layer in wiring} == {
        layer: all(map(is_trained, consumers)) for layer, consumers in expected.items()
    }


class Bilinear(nn.Module):
    """Two hidden layers whose activations meet in what ``meet`` makes of them."""

    def __init__(self, meet):
        super().__init__()
        self.left, self.right, self.meet = nn.Linear(5, 6), nn.Linear(5, 6), meet
        self.matrix = nn.Parameter(torch.randn(6, 2))

    def forward(self, x):
        return self.meet(self, torch.relu(self.left(x)), torch.relu(self.right(x)))


MEETINGS = {
    "bilinear form": lambda net, a, b: torch.einsum("bi,bj->bij", a, b),
    "dot product": lambda net, a, b: torch.bmm(a[:, None], b[:, :, None]).squeeze(-1),
    "similarities": lambda net, a, b: a @ b.T,
    "products added up": lambda net, a, b: (a * b).sum(1),
    "a matrix of its own": lambda net, a, b: torch.cat([a @ net.matrix, b @ net.matrix], 1),
    "cosines": lambda net, a, b: torch.cosine_similarity(a, b),
}


@pytest.mark.parametrize("kind", MEETINGS)
def test_hidden_layers_that_only_meet_each_other_are_measured_only(kind):
    net = Bilinear(MEETINGS[kind])
    wiring = trace_wiring(net, torch.randn(4, 5))
    reason = "it reaches an output of the policy without passing another layer"
    assert {layer.name: layer.reason for layer in wiring} == {"left": reason, "right": reason}
    assert not wiring.outputs


HEADS = {
    "dueling": lambda net, h: net.value(h) + (a := net.head(h)) - a.mean(1, keepdim=True),
    "a squashed head of two outputs": lambda net, h: (a := torch.tanh(net.head(h)), a.square().sum(1) + net.value(h)),
    "a masked head": lambda net, h: torch.sigmoid(net.head(h)) * h[:, :3],
    "a distribution": lambda net, h: (net.head(h).softmax(1) * torch.arange(3)).sum(1) + net.value(h)[:, 0],
    "sorted quantiles": lambda net, h: torch.nn.functional.softplus(net.head(h)).cumsum(1),
}


@pytest.mark.parametrize("kind", HEADS)
def test_heads_stay_outputs_whatever_is_made_of_them(kind):
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head, self.value = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 1)

        def forward(self, x):
            return HEADS[kind](self, torch.relu(self.first(x)))

    assert [layer.name for layer in trace_wiring(Headed(), torch.randn(4, 5))] == ["first"]
