"""CReLU and deep Fourier features: two features of each neuron, in every policy, read and recycled as one neuron."""

import doctest
from dataclasses import replace

import pytest
import torch
from torch import nn

from sb3_redo import ReDoCallback, measure_dormancy, recycle_dormant
from sb3_redo.networks import NatureCNN, activations
from sb3_redo.networks.activations import Concatenating, CReLU, Fourier
from sb3_redo.networks.layers import ACTIVATIONS, feature_size, scaled_net_arch
from sb3_redo.sb3.model import initial_weights_of
from tests.helpers.algorithms import (
    ALGORITHMS,
    DICTIONARIES,
    IMAGE,
    IMAGES,
    OBSERVATIONS,
    VECTORS,
    build,
    learn,
    scalable,
)
from tests.helpers.marks import alternating
from tests.helpers.runs import differences, fingerprint, reloaded

CONCATENATING = [name for name, kind in ACTIVATIONS.items() if issubclass(kind, Concatenating)]
EACH = pytest.mark.parametrize("activation", CONCATENATING)
FAST = {("DQN", VECTORS), ("DQN", IMAGES), ("SAC", VECTORS)}
ALGORITHMS_WITH_POLICIES = ("DQN", "QR-DQN", "SAC", "TD3", "TQC", "CrossQ", "PPO")


def agent(name="DQN", kind=VECTORS, activation="crelu", **policy_kwargs):
    return build(name, kind, policy=scalable(name, kind), policy_kwargs={"activation": activation, **policy_kwargs})


# What is computed


def test_worked_numbers():
    network = agent(net_arch=[2]).q_net
    first, last = network.q_net[0], network.q_net[2]
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 1.0]]))
        first.bias.copy_(torch.tensor([0.5, -1.0]))
        last.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]] * 3))
        last.bias.zero_()
    # Neurons: 1 + 0.5 = 1.5 and 2 * -1 + 0 - 1 = -3; then -1.5 and 2 * 2 + 1 - 1 = 4.
    q_values = network(torch.tensor([[1.0, -1.0, 0.0], [-2.0, 2.0, 1.0]]))
    assert q_values[:, 0].tolist() == [1.5 + 1000 * 3, 100 * 1.5 + 10 * 4]


def test_a_fourier_network_computes_sines_beside_cosines():
    network = agent(net_arch=[6], activation="fourier").q_net
    first, last = network.q_net[0], network.q_net[2]
    observations = torch.randn(5, 3)
    inner = observations @ first.weight.T + first.bias
    assert inner.shape == (5, 3)
    expected = inner.sin() @ last.weight[:, :3].T + inner.cos() @ last.weight[:, 3:].T + last.bias
    torch.testing.assert_close(network(observations), expected)


def test_features_of_channels_lie_behind_one_another():
    maps = torch.randn(2, 3, 4, 5)
    assert torch.equal(CReLU()(maps), torch.cat([maps.clamp(min=0), (-maps).clamp(min=0)], 1))
    assert torch.equal(Fourier()(maps)[:, 3:], maps.cos())


# Sizes


def test_a_crelu_layer_keeps_its_neurons_and_a_fourier_layer_its_features():
    sizes = {
        (activation, width): [
            (layer.in_features, layer.out_features)
            for layer in agent(activation=activation, width=width, net_arch=[8, 6]).q_net.q_net
            if isinstance(layer, nn.Linear)
        ]
        for activation in CONCATENATING
        for width in (1, 0.5)
    }
    assert sizes["crelu", 1] == [(3, 8), (16, 6), (12, 3)]
    assert sizes["crelu", 0.5] == [(3, 4), (8, 3), (6, 3)] == sizes["fourier", 1]
    assert sizes["fourier", 0.5] == [(3, 2), (4, 2), (4, 3)]
    assert scaled_net_arch({"pi": [5], "vf": [1]}, 1, Fourier) == {"pi": [6], "vf": [2]}
    assert feature_size(5, 1, CReLU) == 10
    cnn = NatureCNN(IMAGE, activation_fn=Fourier)
    assert [layer.out_channels for layer in cnn.cnn if isinstance(layer, nn.Conv2d)] == [16, 32, 32]
    assert (cnn.linear[0].out_features, cnn.features_dim) == (256, 512)
    assert NatureCNN(IMAGE, activation_fn=CReLU).features_dim == 1024


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in FAST else pytest.mark.slow)
        for name in ALGORITHMS_WITH_POLICIES
        for kind in OBSERVATIONS
        if kind in ALGORITHMS[name].cls.policy_aliases
    ],
)
@EACH
def test_every_hidden_layer_of_every_policy_is_measured_and_recycled(name, kind, activation):
    model = agent(name, kind, activation)
    model.learn(ALGORITHMS[name].settings.get("n_steps", 20) * 2)
    report = measure_dormancy(model, batch_size=8)
    assert len(report.layers) > 1
    hidden = [layer for layer in report.wiring if layer.name in {measured.name for measured in report.layers}]
    assert {path for path, layer in model.policy.named_modules() if is_kernel(layer) and "_target" not in path} == {
        *(layer.name for layer in hidden),
        *report.wiring.outputs,
    }
    for layer in hidden:
        assert layer.recyclable, layer
        for positions in layer.consumers.values():
            owners = positions[positions >= 0]
            each = torch.bincount(owners, minlength=layer.neurons)
            # Two features of each neuron, at every place of an image.
            assert each.min() == each.max() > 0
            assert each.min() % 2 == 0
            assert torch.equal(owners[: len(owners) // 2], owners[len(owners) // 2 :])


def is_kernel(module):
    return isinstance(module, (nn.Linear, nn.Conv2d))


# Recycling


@pytest.mark.parametrize("kind", [VECTORS, IMAGES])
def test_recycling_dead_crelu_neurons_changes_no_output_and_clears_both_columns(kind):
    model = agent(kind=kind, net_arch=[8, 8])
    model.learn(40)
    path, following = {
        VECTORS: ("q_net.0", "q_net.2"),
        IMAGES: ("features_extractor.cnn.4", "features_extractor.linear.0"),
    }[kind]
    layer, consumer = model.q_net.get_submodule(path), model.q_net.get_submodule(following)
    with torch.no_grad():
        layer.weight[[1, 3]] = 0
        layer.bias[[1, 3]] = 0
    report = measure_dormancy(model, 0.0, batch_size=16)
    (dead,) = [seen.dormant for seen in report.layers if seen.name == f"q_net.{path}"]
    assert dead.nonzero().flatten().tolist() == [1, 3]
    observations = model.replay_buffer.sample(16).observations
    before, weights = model.q_net(observations), consumer.weight.clone()
    record = recycle_dormant(model, report, optimizer_state="clear")
    assert record.neurons[f"q_net.{path}"].tolist() == [1, 3]
    assert torch.equal(model.q_net(observations), before)
    assert layer.weight[[1, 3]].flatten(1).abs().amin(1).gt(0).all()
    owners = report.wiring[f"q_net.{path}"].consumers[f"q_net.{following}"]
    cleared = torch.isin(owners, torch.tensor([1, 3]))
    assert int(cleared.sum()) == {VECTORS: 4, IMAGES: 16}[kind]
    assert not consumer.weight[:, cleared].any()
    assert torch.equal(consumer.weight[:, ~cleared], weights[:, ~cleared])
    for moment in ("exp_avg", "exp_avg_sq"):
        state = model.policy.optimizer.state[consumer.weight][moment]
        assert not state[:, cleared].any()
        assert state[:, ~cleared].any()


def test_a_crelu_neuron_with_one_silent_half_is_not_dead():
    model = agent(net_arch=[8])
    model.learn(40)
    with torch.no_grad():
        model.q_net.q_net[0].bias.fill_(-1000.0)
    report = measure_dormancy(model, 0.0, batch_size=16)
    assert report.dormant_fraction == 0


def test_a_fourier_neuron_is_never_dormant_and_scored_on_both_its_features():
    model = agent(activation="fourier", net_arch=[8])
    model.learn(40)
    with torch.no_grad():
        model.q_net.q_net[0].weight.zero_()
        model.q_net.q_net[0].bias.copy_(torch.tensor([0.0, torch.pi / 4, torch.pi / 2, torch.pi]))
    report = measure_dormancy(model, 0.0, batch_size=16)
    # |sin| + |cos| is 1 for all but pi / 4, where it is the root of 2.
    magnitudes = torch.tensor([1.0, 2**0.5, 1.0, 1.0])
    torch.testing.assert_close(report.layers[0].scores, magnitudes / magnitudes.mean())
    assert report.dormant_fraction == 0


@EACH
def test_a_recycled_neuron_feeds_nothing_through_either_feature(activation):
    model = agent(activation=activation, net_arch=[8, 8])
    model.learn(40)
    report = measure_dormancy(model, batch_size=16)
    layers = tuple(replace(layer, dormant=torch.arange(len(layer.dormant)) == 2) for layer in report.layers)
    recycle_dormant(model, replace(report, layers=layers))
    neurons = len(layers[0].dormant)
    for consumer in (model.q_net.q_net[2], model.q_net.q_net[4]):
        assert not consumer.weight[:, [2, 2 + neurons]].any()
        assert consumer.weight[:, [0, neurons]].all()


def test_fresh_weights_are_drawn_for_the_doubled_inputs():
    model = agent(net_arch=[8, 8])
    weight, rows = model.q_net.q_net[2].weight, torch.arange(8)
    drawn = [
        initial_weights_of(model).draw("q_net.q_net.2.weight", weight, rows, torch.Generator().manual_seed(seed))
        for seed in range(40)
    ]
    largest = torch.stack(drawn).abs().max()
    # Torch draws uniformly up to the inverse root of the inputs, which are 16.
    assert 0.98 * 16**-0.5 < largest <= 16**-0.5
    assert model.__dict__["initial_weight_samples"] == {}


# In use


@pytest.mark.parametrize(("name", "activation"), alternating(["DQN", "PPO", "SAC"], CONCATENATING))
def test_a_run_saved_and_continued_is_the_uninterrupted_run(name, activation, tmp_path):
    steps = 48 if name == "PPO" else 40

    def recycling():
        return ReDoCallback(1.0, recycling_period=11, measuring_period=11, batch_size=8)

    uninterrupted = fingerprint(learn(agent(name, activation=activation), recycling(), 2 * steps))
    first = learn(agent(name, activation=activation), recycling(), steps)
    continued = learn(reloaded(first, tmp_path), recycling(), steps)
    assert continued.dormancy_memory["recycled_total"] > 0
    assert differences(uninterrupted, fingerprint(continued)) == []


def test_layer_norm_and_initialiser_fit_the_halved_layers():
    network = agent(activation="fourier", layer_norm=True, initializer="orthogonal", net_arch=[8]).q_net.q_net
    assert [type(module).__name__ for module in network] == ["Linear", "LayerNorm", "Fourier", "Linear"]
    assert network[1].normalized_shape == (4,)
    torch.testing.assert_close(network[0].weight.T @ network[0].weight, torch.eye(3))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (IMAGES, {"extractor": "impala"}, "CReLU gives two features per neuron, and ImpalaCNN's residual"),
        (DICTIONARIES, {"extractor": "impala"}, "use the nature extractor"),
        (VECTORS, {"activation": None, "activation_fn": CReLU}, "is given by name: activation='crelu'"),
        (VECTORS, {"activation": None, "activation_fn": Fourier}, "is given by name: activation='fourier'"),
    ],
)
def test_what_does_not_fit_is_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        agent(kind=kind, **settings)


def test_examples_in_docstrings_hold():
    assert doctest.testmod(activations) == doctest.TestResults(failed=0, attempted=2)
