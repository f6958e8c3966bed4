"""Ranks, norms and units: what NumPy's decomposition and plain arithmetic say."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sb3_redo.plasticity import (
    distance_from,
    feature_matrices,
    feature_norm,
    feature_ranks,
    networks_of,
    ranks_of,
    read_network,
    units_of,
    update_ratio,
    weight_norm,
    weight_ranks,
)
from sb3_redo.plasticity.ranks import srank
from tests.helpers.algorithms import IMAGES, batch_of, build
from tests.helpers.runs import differences, fingerprint

CLOSE = 1e-4


def by_numpy(matrix):
    """The three ranks from NumPy's singular values, each by its definition."""
    values = np.linalg.svd(matrix.detach().double().numpy(), compute_uv=False)
    shares = values / values.sum()
    counted = next(k for k in range(1, len(values) + 1) if values[:k].sum() >= 0.99 * values.sum())
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    return counted, math.exp(entropy), (values**2).sum() / values[0] ** 2


@pytest.mark.parametrize("shape", [(20, 20), (64, 8), (8, 64), (1, 5)])
@pytest.mark.parametrize("rank", [1, 5, 64])
def test_ranks_are_those_of_numpys_singular_values(shape, rank):
    rows, columns = shape
    matrix = torch.randn(rows, rank, generator=torch.Generator().manual_seed(rank)) @ torch.randn(rank, columns)
    found = ranks_of(matrix)
    assert (found.srank, found.effective_rank, found.stable_rank) == pytest.approx(by_numpy(matrix), rel=CLOSE)


def test_the_three_ranks_are_told_apart():
    # Singular values 3, 1, 0.03: 4 of 4.03 is more than 99 %.
    found = ranks_of(torch.diag(torch.tensor([1.0, 3.0, 0.03])))
    entropy = -sum(x / 4.03 * math.log(x / 4.03) for x in (3, 1, 0.03))
    assert found.srank == 2
    assert found.effective_rank == pytest.approx(math.exp(entropy), rel=1e-6)
    assert found.stable_rank == pytest.approx((9 + 1 + 0.0009) / 9, rel=1e-6)


def test_a_share_that_is_met_exactly_asks_for_no_more():
    assert srank(torch.tensor([99.0, 1.0], dtype=torch.float64)) == 1
    assert srank(torch.tensor([98.9, 1.1], dtype=torch.float64)) == 2


@pytest.mark.parametrize("matrix", [torch.zeros(3, 4), torch.ones(5, 2), torch.eye(4)])
def test_ranks_of_zeros_are_0_and_of_an_identity_its_size(matrix):
    expected = {(3, 4): 0, (5, 2): 1, (4, 4): 4}[tuple(matrix.shape)]
    assert list(vars(ranks_of(matrix)).values()) == pytest.approx([expected] * 3)


def test_ranks_of_what_is_not_finite_are_nan():
    assert all(map(math.isnan, vars(ranks_of(torch.tensor([[1.0, torch.inf]]))).values()))


def test_features_are_what_the_output_layer_reads():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    batch = torch.randn(40, 3)
    (features,) = feature_matrices(read_network(net, batch), batch).values()
    expected = net[:4](batch)
    torch.testing.assert_close(features, expected.detach())
    assert feature_norm(features) == pytest.approx(np.linalg.norm(expected.detach(), axis=1).mean(), rel=CLOSE)
    assert tuple(vars(feature_ranks(features)).values()) == pytest.approx(by_numpy(expected), rel=CLOSE)


def test_an_actors_two_heads_read_one_matrix_and_two_critics_two():
    model = build("SAC")
    batch = batch_of(model)
    networks = networks_of(model, batch)
    assert list(feature_matrices(networks["actor"], batch)) == ["actor.mu"]
    assert list(feature_matrices(networks["critic"], batch)) == ["critic.qf0.4", "critic.qf1.4"]


def test_features_of_parts_are_put_together(monkeypatch):
    net, batch = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(10, 3)
    network = read_network(net, batch)
    whole = feature_matrices(network, batch)["2"]
    monkeypatch.setattr(type(network.wiring), "rows_at_once", 3)
    torch.testing.assert_close(feature_matrices(network, batch)["2"], whole)
    assert [layer.dead.tolist() for layer in units_of(network, batch)] == [(whole == 0).all(0).tolist()]


def test_weights_are_matrices_of_neurons_and_inputs():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2))
    network = read_network(net, torch.randn(3, 2, 4, 4))
    found = weight_ranks(network)
    assert list(found) == ["0", "3"]
    assert tuple(vars(found["0"]).values()) == pytest.approx(by_numpy(net[0].weight.reshape(4, 18)), rel=CLOSE)
    entries = np.concatenate([p.detach().numpy().ravel() for p in net.parameters()])
    assert weight_norm(network) == pytest.approx(np.linalg.norm(entries), rel=CLOSE)


def test_spectral_norm_is_left_where_it_was_by_looking_at_weights():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
    net = nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 2)).train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    weight_ranks(read_network(net, torch.randn(5, 3)))
    assert before
    assert all(torch.equal(before[name], buffer) for name, buffer in net.named_buffers())
    assert net.training


def test_distances_and_updates_are_lengths_of_differences():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    network = read_network(net, torch.randn(5, 3))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        net[0].weight += 0.5
        net[2].bias += 1.0
    length = math.sqrt(12 * 0.25 + 2)
    assert distance_from(network, before) == pytest.approx(length, rel=CLOSE)
    norm = math.sqrt(sum(float(p.double().pow(2).sum()) for p in before.values()))
    assert update_ratio(network, before) == pytest.approx(length / norm, rel=CLOSE)


def test_a_network_is_the_parameters_that_its_outputs_depend_on():
    model = build("PPO", IMAGES)
    networks = networks_of(model, batch_of(model))
    shared = {name for name in networks["policy"].parameters if name.startswith("features_extractor")}
    assert shared
    assert set(networks["policy"].parameters) - shared == {"action_net.weight", "action_net.bias"}
    assert set(networks["value"].parameters) - shared == {"value_net.weight", "value_net.bias"}


def test_a_network_run_with_other_weights_keeps_its_own():
    model = build("PPO", IMAGES)  # whose extractor is there under three names
    batch, before = batch_of(model), fingerprint(model)
    network = networks_of(model, batch)["value"]
    with network.examined(), torch.no_grad():
        own = network(batch)
        zeros = network(batch, {name: torch.zeros_like(p) for name, p in network.parameters.items()})
        again = network(batch)
    assert not zeros.any()
    assert own.any()
    assert torch.equal(own, again)
    assert differences(before, fingerprint(model)) == []


class Activated(nn.Module):
    """Pre-activations are the observation itself: four neurons, whose activation is given."""

    def __init__(self, activation):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4))
            self.first.bias.zero_()
        self.activation = activation

    def forward(self, x):
        return self.last(self.activation(self.first(x)))


# The first neuron is far on the right, the second on the left, the third on either side, the fourth near 0.
BATCH = torch.tensor([[9.0, -9.0, 9.0, 0.3], [8.0, -8.0, -8.0, -0.2]])
EXPECTED = {
    "relu": (functional.relu, [1], [1]),
    "relu module": (nn.ReLU(), [1], [1]),
    "relu in place": (nn.ReLU(inplace=True), [1], [1]),
    "tanh": (torch.tanh, [], [0, 1, 2]),
    "tanh module": (nn.Tanh(), [], [0, 1, 2]),
    "sigmoid": (torch.sigmoid, [], [0, 1, 2]),
    "relu6": (nn.ReLU6(), [1], [0, 1, 2]),
    "elu": (nn.ELU(), [], [1]),
    "leaky relu": (nn.LeakyReLU(0.01), [], []),
    "written out": (lambda x: x * 0.5, [], []),
}


@pytest.mark.parametrize(("activation", "dead", "saturated"), EXPECTED.values(), ids=EXPECTED)
def test_dead_neurons_give_nothing_and_saturated_ones_learn_nothing(activation, dead, saturated):
    (layer,) = units_of(read_network(Activated(activation), BATCH), BATCH)
    assert layer.dead.nonzero().flatten().tolist() == dead
    assert layer.saturated.nonzero().flatten().tolist() == saturated


def test_a_tanh_is_saturated_beyond_the_slope_that_is_asked_for():
    x = math.atanh(math.sqrt(0.9))  # where the slope is 0.1
    batch = torch.tensor([[x - 0.01, x + 0.01, -x - 0.01, 0.0]])
    (layer,) = units_of(read_network(Activated(torch.tanh), BATCH), batch, slope=0.1)
    assert layer.saturated.tolist() == [False, True, True, False]


def test_one_observation_is_enough_to_live_and_a_channel_has_space():
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.copy_(torch.tensor([0.0, -1.5, -9.0]))
    batch = torch.zeros(3, 1, 2, 2)
    batch[2, 0, 1, 1] = 2.0
    (layer,) = units_of(read_network(net, batch), batch)
    assert layer.dead.tolist() == [False, False, True]
    assert layer.saturated.tolist() == [False, False, True]


def test_the_shared_activation_module_keeps_its_layers_apart():
    act = nn.ReLU()
    net = nn.Sequential(nn.Linear(2, 4), act, nn.Linear(4, 4), act, nn.Linear(4, 1))
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([-9.0, -9.0, 9.0, 9.0]))
        net[2].bias.fill_(99.0)
    batch = torch.randn(5, 2)
    assert [layer.dead.sum().item() for layer in units_of(read_network(net, batch), batch)] == [2, 0]


def test_a_network_that_calls_other_activations_than_when_it_was_read_is_refused():
    module = Activated(nn.ReLU())
    network = read_network(module, BATCH)
    module.last.register_forward_hook(lambda layer, args, output: torch.tanh(output))
    with pytest.raises(RuntimeError, match=r"tanh\(\) after last runs in some passes and not in others"):
        units_of(network, BATCH)


def test_a_network_without_anything_that_is_trained_is_refused():
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).requires_grad_(False)
    with pytest.raises(RuntimeError, match="depend on no parameter that is trained"):
        read_network(net, torch.randn(5, 2))
