"""Scores, masks, fractions and overlap are those of the paper."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sb3_redo.dormancy.meter import Meter
from sb3_redo.dormancy.scores import dormancy_scores, overlap, revived
from sb3_redo.wiring.tracing import trace_wiring
from tests.helpers import networks, own_calls

every_network = pytest.mark.parametrize("name", networks.NETWORKS)


@cache
def wiring_of(name):
    """The wiring of a network, read once for all tests of it."""
    network = networks.build(name)
    return trace_wiring(network, network.observations(2, seed=1))


def measured(network, batch, threshold=0.1, wiring=None):
    wiring = wiring or trace_wiring(network, network.observations(2, seed=1))
    meter = Meter(network, wiring, {layer.name: "net" for layer in wiring})
    return meter.measure(network, batch, threshold)


def reference_scores(activations):
    """The definition, one value at a time: mean \\|h\\| of a neuron over the mean of that over its layer."""
    means = []
    for neuron in range(activations[0].shape[1]):
        values = [abs(float(x)) for call in activations for sample in call for x in sample[neuron].flatten()]
        means.append(sum(values) / len(values))
    layer_mean = sum(means) / len(means)
    return [mean / layer_mean if layer_mean else 0.0 for mean in means]


def test_worked_scores():
    assert dormancy_scores(torch.tensor([0.0, 1.0, 3.0, 4.0])).tolist() == [0.0, 0.5, 1.5, 2.0]


def test_layers_are_scored_apart():
    values = torch.tensor([0.0, 1.0, 3.0, 4.0, 5.0, float("nan"), 0.0, 0.0])
    scores = dormancy_scores(values, [2, 3, 1, 2])
    expected = torch.tensor([0.0, 2.0, 0.75, 1.0, 1.25, float("nan"), 0.0, 0.0])
    torch.testing.assert_close(scores, expected, equal_nan=True)


def test_a_wholly_dead_layer_scores_zero_and_is_all_dormant():
    scores = dormancy_scores(torch.zeros(3))
    assert scores.tolist() == [0.0, 0.0, 0.0]
    assert (scores <= 0.0).all()


positive = st.lists(st.floats(0, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=30)


@given(positive)
def test_scores_average_one_unless_all_are_zero(values):
    scores = dormancy_scores(torch.tensor(values))
    assert scores.mean().item() == pytest.approx(1.0 if any(values) else 0.0, rel=1e-5)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(-10, 10))
def test_scaling_a_layer_changes_no_score(values, exponent):
    values = torch.tensor(values, dtype=torch.float32)
    assert torch.equal(dormancy_scores(values), dormancy_scores(values * 2.0**exponent))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 1, 0, 0], [1, 0, 1, 1], 1 / 2),
        ([1, 1, 1, 0], [1, 1, 0, 0], 1.0),
        ([1, 0, 0, 0], [0, 1, 1, 0], 0.0),
        ([0, 0, 0, 0], [0, 1, 1, 0], None),
    ],
)
def test_worked_overlaps(one, other, expected):
    one, other = torch.tensor(one).bool(), torch.tensor(other).bool()
    assert overlap([one], [other]) == expected
    # Pooled over layers: the same neurons in two layers are the same set.
    assert overlap([one[:1], one[1:]], [other[:1], other[1:]]) == expected


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        ([1, 1, 0, 0], [1, 0, 1, 1], 2 / 3),
        ([1, 1, 1, 1], [1, 1, 0, 0], 0.0),
        ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),
        ([1, 1, 0, 0], [0, 0, 0, 0], None),
    ],
)
def test_worked_shares_of_revived_neurons(now, before, expected):
    now, before = torch.tensor(now).bool(), torch.tensor(before).bool()
    assert revived([now], [before]) == expected
    assert revived([now[:1], now[1:]], [before[:1], before[1:]]) == expected


@pytest.mark.parametrize("name", [*networks.NETWORKS, *own_calls.MEASURED_ONLY])
def test_scores_equal_the_slow_reference(name):
    check_scores(name)


def check_scores(name):
    network = networks.build(name)
    batch = network.observations(7)
    report = measured(network, batch, wiring=wiring_of(name))
    network.eval()
    network.seen.clear()
    network(batch)
    for layer in report.layers:
        expected = torch.tensor(reference_scores(network.seen[layer.name]))
        torch.testing.assert_close(layer.scores, expected, rtol=1e-5, atol=1e-6)


@every_network
def test_order_of_the_batch_changes_no_mask_and_more_are_dormant_as_the_threshold_grows(name):
    network = networks.build(name)
    batch = network.observations(6)
    report = measured(network, batch, 0.5, wiring_of(name))
    counts = [report.fraction_at(threshold) for threshold in (0.0, 0.025, 0.1, 0.5, 1.0, 100.0)]
    assert counts == sorted(counts)
    assert counts[-1] == 1.0
    assert report.dormant_fraction == counts[3]
    turned = {key: value.flip(0) for key, value in batch.items()} if isinstance(batch, dict) else batch.flip(0)
    for layer, again in zip(report.layers, measured(network, turned, 0.5, wiring_of(name)).layers, strict=True):
        torch.testing.assert_close(layer.scores, again.scores)


@every_network
def test_measuring_in_parts_gives_the_scores_of_one_pass(name):
    network = networks.build(name)
    batch = network.observations(10)
    whole = measured(network, batch, wiring=wiring_of(name))
    passes = []
    wiring = replace(whole.wiring, values_per_observation=2**26 // 3)
    meter = Meter(network, wiring, {layer.name: "net" for layer in wiring})
    parts = meter.measure(lambda part: passes.append(network(part)), batch, 0.1)
    assert len(passes) == 4  # of three observations each but the last
    for one, other in zip(whole.layers, parts.layers, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-6, atol=1e-6)


def test_the_pooled_fraction_counts_neurons_not_layers():
    network = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]))
        network[0].bias.zero_()
        network[2].weight.fill_(1.0)
        network[2].bias.zero_()
    wiring = trace_wiring(network, torch.ones(2, 1))
    meter = Meter(network, wiring, {"0": "first", "2": "second"})
    report = meter.measure(network, torch.tensor([[1.0], [3.0]]), 0.0)
    assert report.layers[0].scores.tolist() == [2.0, 2.0, 0.0, 0.0]
    assert report.layers[1].scores.tolist() == [1.0]
    assert report.dormant_fraction == 2 / 5
    assert report.network_fraction("first") == 2 / 4
    assert report.to_frame().to_dict("records") == [
        {"layer": "0", "network": "first", "neurons": 4, "dormant": 2, "dormant_fraction": 0.5, "recyclable": True},
        {"layer": "2", "network": "second", "neurons": 1, "dormant": 0, "dormant_fraction": 0.0, "recyclable": True},
    ]
    assert str(report).splitlines() == [
        "2 of 5 neurons dormant (40.0%) at threshold 0, on 2 observations",
        "  0        2/4   50.0%",
        "  2        0/1    0.0%",
    ]


def test_a_channel_is_one_neuron_averaged_over_batch_and_space():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
        network[0].bias.zero_()
    wiring = trace_wiring(network, torch.ones(2, 1, 2, 2))
    report = Meter(network, wiring, {"0": "net"}).measure(network, torch.rand(3, 1, 2, 2), 0.1)
    torch.testing.assert_close(report.layers[0].scores, torch.tensor([0.5, 1.5]))


def test_activations_that_are_not_finite_are_named_and_count_as_not_dormant():
    network = networks.build("Mlp")
    with torch.no_grad():
        network.second.weight[0, 0] = float("nan")
    report = measured(network, network.observations(4), 10.0)
    assert report.not_finite == ("second",)
    assert not report.layers[1].dormant.any()


def test_half_precision_sums_do_not_overflow():
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).to(torch.bfloat16)
    with torch.no_grad():
        network[0].weight.fill_(0.0)
        network[0].bias.copy_(torch.tensor([1.0, 3.0]))
    wiring = trace_wiring(network, torch.ones(2, 1, dtype=torch.bfloat16))
    report = Meter(network, wiring, {"0": "net"}).measure(network, torch.ones(5000, 1, dtype=torch.bfloat16), 0.1)
    torch.testing.assert_close(report.layers[0].scores, torch.tensor([0.5, 1.5]))


def test_a_network_that_draws_noise_of_its_own_moves_no_stream():
    class Noisy(networks.Mlp):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    network = Noisy()
    stream = torch.get_rng_state()
    first, second = (measured(network, network.observations(6)) for _ in range(2))
    assert torch.equal(stream, torch.get_rng_state())
    assert all(torch.equal(x.scores, y.scores) for x, y in zip(first.layers, second.layers, strict=True))


def test_a_network_that_changes_from_pass_to_pass_is_refused():
    network = networks.build("Mlp")
    wiring = trace_wiring(network, network.observations(2))
    meter = Meter(network, wiring, {"first": "net"})
    with pytest.raises(RuntimeError, match=r"relu\(\) after out runs in some passes and not .* cannot be measured"):
        meter.measure(lambda x: torch.relu(network(x)), network.observations(2), 0.1)


def test_measuring_leaves_no_hook_when_the_network_fails():
    network = networks.build("OwnActivation")
    wiring = trace_wiring(network, network.observations(2))
    meter = Meter(network, wiring, {"first": "net"})
    network.train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        meter.measure(network, torch.ones(2, 3), 0.1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert network.training
