"""Recycling changes nothing that is not trained, however it was kept from training."""

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import nn

from sb3_redo import measure_dormancy, recycle_dormant, trace_wiring
from sb3_redo.recycling.step import Surgery, recycle
from sb3_redo.wiring.tracing import trace_wiring as trace
from tests.helpers.random_networks import RandomNetwork, plans
from tests.wiring.test_random_networks import Fresh, few, same

X = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))


def mlp(norm=None):
    between = [nn.Linear(5, 8), nn.ReLU()] if norm is None else [nn.Linear(5, 8), norm, nn.ReLU()]
    return nn.Sequential(nn.Sequential(*between), nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)))


def state_of(net):
    return copy.deepcopy(net.state_dict())


def changed(before, net):
    return {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}


FIRST = {"0.0.weight", "0.0.bias", "1.0.weight"}
SECOND = {"1.0.weight", "1.0.bias", "1.2.weight"}


@pytest.mark.parametrize(
    ("frozen", "message", "left"),
    [
        ("0.0.weight", "0.0 is not recycled: the weight of 0.0 was frozen since it was measured", SECOND),
        ("0.0.bias", "0.0 is not recycled: the bias of 0.0 was frozen since it was measured", SECOND),
        ("1.2.weight", "1.0 is not recycled: the weight of 1.2 was frozen since it was measured", FIRST),
        ("1.2.bias", None, FIRST | SECOND),
    ],
)
def test_what_was_frozen_since_the_measurement_is_left_out_with_a_warning(frozen, message, left):
    net = mlp()
    report = measure_dormancy(net, 0.9, observations=X)
    net.get_parameter(frozen).requires_grad_(False)
    before = state_of(net)
    if message is None:
        record = recycle_dormant(net, report, optimizers=[], seed=0)
    else:
        with pytest.warns(RuntimeWarning, match=message):
            record = recycle_dormant(net, report, optimizers=[], seed=0)
    assert changed(before, net) == left
    assert record.neurons.keys() == {name.rpartition(".")[0] for name in left if name.endswith("bias")}


def test_what_was_thawed_since_is_recycled_once_it_is_measured_again():
    net = mlp()
    net[0].requires_grad_(False)
    assert recycle_dormant(net, measure_dormancy(net, 0.9, observations=X), optimizers=[]).neurons.keys() == {"1.0"}
    net[0].requires_grad_(True)
    assert recycle_dormant(net, measure_dormancy(net, 0.9, observations=X), optimizers=[]).neurons.keys() >= {"0.0"}


def test_what_no_optimizer_holds_is_left_out_with_a_warning():
    net = mlp()
    report, before = measure_dormancy(net, 0.9, observations=X), state_of(net)
    with pytest.warns(RuntimeWarning, match="0.0 is not recycled: the weight of 0.0 is in none of the optimizers"):
        record = recycle_dormant(net, report, optimizers=torch.optim.Adam(net[1].parameters()))
    assert changed(before, net) == SECOND
    assert record.neurons.keys() == {"1.0"}


def test_a_frozen_bias_of_a_consumer_is_not_compensated():
    net = mlp()
    report = measure_dormancy(net, 0.9, observations=X)
    net[1][2].bias.requires_grad_(False)
    before = state_of(net)
    with pytest.warns(RuntimeWarning, match="1.0 is not recycled: the bias of 1.2 was frozen"):
        recycle_dormant(net, report, optimizers=[], compensate=True)
    assert "1.2.bias" not in changed(before, net)


def frozen(norm):
    norm.requires_grad_(False)


def tied(norm):
    norm.other = nn.Module()
    norm.other.scale = norm.weight


def of_another(norm):
    norm.other = nn.Module()
    norm.other.scale = nn.Parameter(norm.weight.detach()[2:])


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(8), lambda: nn.BatchNorm1d(8)])
@pytest.mark.parametrize(("keep", "late"), [(frozen, False), (frozen, True), (tied, False), (of_another, False)])
def test_a_normalisation_that_is_not_trained_or_shared_stays_as_it_is(make, keep, late):
    norm = make()
    net = mlp(norm)
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            tensor += 2
    if not late:
        keep(norm)
    report = measure_dormancy(net, 0.9, observations=X)
    if late:
        keep(norm)
    before = state_of(net)
    record = recycle_dormant(net, report, optimizers=[], seed=0)
    assert "0.0" in record.neurons
    assert not report.wiring["0.0"].exact
    assert not any(name.startswith("0.1") for name in changed(before, net))


def test_statistics_that_share_their_memory_stay_as_they_are():
    norm = nn.BatchNorm1d(8)
    norm.running_mean += 2
    norm.running_var += 2
    net = mlp(norm)
    net.register_buffer("means", norm.running_mean[:2])
    report, before = measure_dormancy(net, 0.9, observations=X), state_of(net)
    recycle_dormant(net, report, optimizers=[], seed=0)
    found = changed(before, net)
    assert "0.1.running_var" in found
    assert not found & {"means", "0.1.running_mean"}


def test_a_trained_normalisation_becomes_fresh():
    net = mlp(nn.LayerNorm(8))
    with torch.no_grad():
        net[0][1].weight += 2
    report, before = measure_dormancy(net, 0.9, observations=X), state_of(net)
    recycle_dormant(net, report, optimizers=torch.optim.Adam(net.parameters()), seed=0)
    assert "0.1.weight" in changed(before, net)
    report, before = measure_dormancy(net, 0.9, observations=X), state_of(net)
    rest = [parameter for name, parameter in net.named_parameters() if not name.startswith("0.1")]
    recycle_dormant(net, report, optimizers=torch.optim.Adam(rest), seed=1)
    assert "0.0.weight" in changed(before, net)
    assert "0.1.weight" not in changed(before, net)


WAYS = ("weight", "bias", "detach", "no_grad", "left out")


def keep_from_training(network, layers, ways):
    """Freeze layers of a network, each in its own way. Returns the parameters that are to go into an optimizer."""
    left_out = set()
    for name, way in zip(layers, ways, strict=True):
        layer = network.get_submodule(name)
        if way == "weight":
            layer.weight.requires_grad_(False)
        elif way == "bias" and layer.bias is not None:
            layer.bias.requires_grad_(False)
        elif way == "detach":
            layer.register_forward_hook(lambda layer, args, output: output.detach())
        elif way == "no_grad":
            layer.register_forward_pre_hook(lambda layer, args: torch._C._set_grad_enabled(False))
            layer.register_forward_hook(lambda layer, args, output: torch._C._set_grad_enabled(True))
        else:
            left_out.update(map(id, layer.parameters()))
    return [parameter for parameter in network.parameters() if id(parameter) not in left_out]


def trained_parameters(network, optimized):
    """Names of the parameters that a training of the network moves: a real backward pass tells."""
    network.zero_grad()
    loss = sum(part.square().sum() for part in network(network.observations(4, seed=3)))
    if loss.requires_grad:
        loss.backward()
    held = set(map(id, optimized))
    return {name for name, each in network.named_parameters() if each.grad is not None and id(each) in held}


@settings(few, max_examples=4)
@same
@given(plans, st.data())
def test_no_untrained_tensor_of_a_random_network_changes(plan, data):
    check_untrained(plan, data, Counter())


def check_untrained(plan, data, census):
    network = RandomNetwork(plan)
    note(str(network))
    plain = [name for name in network.ledger.names if isinstance(network.get_submodule(name).weight, nn.Parameter)]
    if not network.known or not plain:
        return
    # 1. What could be recycled with nothing kept from training, and some layers that are kept from it.
    free = {layer.name for layer in trace(network, network.observations(2, seed=1)) if layer.recyclable}
    layers = data.draw(st.lists(st.sampled_from(plain), min_size=1, max_size=3, unique=True))
    ways = data.draw(st.lists(st.sampled_from(WAYS), min_size=len(layers), max_size=len(layers)))
    optimized = keep_from_training(network, layers, ways)
    if not optimized:
        return
    # 2. All layers whose parameters are trained can be recycled, and no other ones.
    optimizer = torch.optim.SGD(optimized, lr=0.1)
    wiring = trace(network, network.observations(2, seed=1), optimizers=[optimizer])
    moved = trained_parameters(network, optimized)
    kept = {name for name, _ in network.named_parameters()} - moved
    for layer in wiring:
        written = [f"{name}.{part}" for name in (layer.name, *layer.consumers) for part in ("weight", "bias")]
        assert layer.recyclable == (layer.name in free and not kept.intersection(written)), (layer, ways)
    # 3. Nothing that is not trained changes, even if everything is recycled.
    before = copy.deepcopy(network.state_dict())
    chosen = {layer.name: torch.arange(layer.neurons) for layer in wiring if layer.recyclable}
    recycle(network, wiring, chosen, [optimizer], Fresh(network), torch.Generator(), Surgery())
    for name in kept:
        assert torch.equal(network.get_parameter(name), before[name]), name
    census.update(ways)
    census["recycled"] += bool(chosen)
    census["measured only"] += len(free) - len(chosen)


@pytest.mark.slow
def test_no_untrained_tensor_of_thousands_of_random_networks_changes():
    census = Counter()

    @settings(few, max_examples=500, database=None)
    @given(plans, st.data())
    def check(plan, data):
        check_untrained(plan, data, census)

    check()
    print(census)


def test_a_wiring_with_optimizers_says_why():
    net = mlp()
    wiring = trace_wiring(net, X, optimizers=torch.optim.Adam(net[1].parameters()))
    assert "no: its weights are in none of the optimizers" in str(wiring)
