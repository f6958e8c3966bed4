"""Recycling changes what it must, as it must, and nothing else."""

import copy
from functools import cache

import pytest
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from sb3_redo.dormancy.meter import Meter
from sb3_redo.recycling.compensation import measured_contributions
from sb3_redo.recycling.initial_weights import InitialWeights
from sb3_redo.recycling.optimizer_state import OPTIMIZER_STATE
from sb3_redo.recycling.step import Surgery, recycle
from sb3_redo.wiring.tracing import trace_wiring
from tests.helpers import networks
from tests.helpers.marks import alternating

every_network = pytest.mark.parametrize("name", networks.NETWORKS)
exact_networks = pytest.mark.parametrize(
    "name", [name for name in networks.NETWORKS if all(layer.exact for layer in networks.build(name).known.values())]
)


def outputs_of(network, batch):
    network.eval()
    with torch.no_grad():
        result = network(batch)
    return [result] if isinstance(result, torch.Tensor) else list(result)


def kill(network, neurons=2):
    """Silence the first neurons of every hidden layer for good."""
    with torch.no_grad():
        for name in network.known:
            layer = network.get_submodule(name)
            if isinstance(layer.weight, nn.Parameter) and layer.weight.requires_grad:
                layer.weight[:neurons] = 0.0
                if layer.bias is not None:
                    layer.bias[:neurons] = 0.0


def trained(network, optimizer_class=torch.optim.Adam, steps=3, **settings):
    optimizer = optimizer_class(network.parameters(), lr=1e-3, **settings)
    for step in range(steps):
        optimizer.zero_grad()
        result = network(network.observations(8, seed=step))
        sum(part.square().sum() for part in ([result] if isinstance(result, torch.Tensor) else result)).backward()
        optimizer.step()
    return optimizer


@cache
def wiring_of(name):
    """The wiring of the network that :func:`prepared` returns, read once for all tests of it."""
    network = networks.build(name)
    trained(network)
    kill(network)
    return trace_wiring(network, network.observations(2, seed=1))


def report_on(network, batch, threshold=0.0, wiring=None):
    wiring = wiring or trace_wiring(network, network.observations(2, seed=1))
    return Meter(network, wiring, {layer.name: "net" for layer in wiring}).measure(network, batch, threshold)


def recycled(network, report, optimizers=(), seed=0, build=None, **surgery):
    initial = InitialWeights(build or (lambda: copy.deepcopy(network)))
    generator = torch.Generator().manual_seed(seed)
    contributions = measured_contributions(network, report.wiring, network, report.batch)
    neurons = report.dormant_neurons()
    chosen = (network, report.wiring, neurons, optimizers, initial, generator, Surgery(**surgery))
    return recycle(*chosen, contributions=contributions)


def prepared(name, threshold=0.0, **optimizer):
    """A trained network with dead neurons, a batch, and a report on it."""
    network = networks.build(name)
    optimizer = trained(network, **optimizer)
    kill(network)
    batch = network.observations(16, seed=5)
    return network, optimizer, batch, report_on(network, batch, threshold, wiring_of(name))


@exact_networks
def test_recycling_dead_neurons_changes_no_output(name):
    network, optimizer, batch, report = prepared(name)
    before = outputs_of(network, batch)
    build = lambda: networks.build(name)  # noqa: E731
    record = recycled(network, report, [optimizer], build=build)
    assert record.recycled == sum(int(layer.dormant.sum()) for layer in report.layers if layer.recyclable)
    assert record.recycled > 0 or not any(layer.recyclable for layer in report.layers)
    for old, new in zip(before, outputs_of(network, batch), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-6)


def attached_entries(network, report):
    """Parameter name to the entries that belong to recycled neurons, worked out from what was built."""
    attached = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in network.named_parameters()}
    for layer in report.layers:
        if not layer.recyclable:
            continue
        for key, owners in network.known[layer.name].normalisations.items():
            if key in attached:
                attached[key] |= torch.isin(torch.tensor(owners), layer.dormant.nonzero().flatten())
        for part in ("weight", "bias"):
            if f"{layer.name}.{part}" in attached:
                attached[f"{layer.name}.{part}"][layer.dormant] = True
        for consumer, positions in network.known[layer.name].consumers.items():
            weight = attached[f"{consumer}.weight"]
            groups = getattr(network.get_submodule(consumer), "groups", 1)
            rows, columns = len(weight) // groups, weight.shape[1]
            for position, neuron in enumerate(positions):
                if neuron >= 0 and layer.dormant[neuron]:
                    group, column = divmod(position, columns)
                    weight[group * rows : (group + 1) * rows, column] = True
    return attached


@pytest.mark.parametrize(("optimizer_state", "name"), alternating(OPTIMIZER_STATE, list(networks.NETWORKS)))
def test_entries_of_other_neurons_stay_bit_for_bit(name, optimizer_state):
    network, optimizer, _, report = prepared(name, threshold=0.4)
    before = copy.deepcopy(dict(network.named_parameters()))
    state = {parameter: copy.deepcopy(entries) for parameter, entries in optimizer.state.items()}
    recycled(network, report, [optimizer], optimizer_state=optimizer_state)
    for key, attached in attached_entries(network, report).items():
        parameter = network.get_parameter(key)
        assert torch.equal(parameter[~attached], before[key][~attached]), key
        for moment in ("exp_avg", "exp_avg_sq"):
            if parameter in state:
                after = optimizer.state[parameter][moment]
                assert torch.equal(after[~attached], state[parameter][moment][~attached]), (key, moment)
                if moment == "exp_avg":
                    assert not after[attached].any(), key
        if parameter in state and optimizer_state != "restart":
            assert optimizer.state[parameter]["step"] == state[parameter]["step"]


@every_network
def test_outgoing_weights_are_zero_and_incoming_ones_new_in_every_consumer(name):
    network, _, _, report = prepared(name, threshold=0.4)
    before = copy.deepcopy(network)
    recycled(network, report, build=lambda: networks.build(name, seed=9))
    for layer in report.layers:
        dormant = layer.dormant.nonzero().flatten().tolist()
        if not layer.recyclable or not dormant:
            continue
        own, old = network.get_submodule(layer.name), before.get_submodule(layer.name)
        assert own.bias is None or not own.bias[dormant].any()
        fed_by_recycled = (own.weight[dormant] == 0).flatten(1)
        assert not torch.equal(own.weight[dormant], old.weight[dormant]) or fed_by_recycled.all()
        for consumer, positions in network.known[layer.name].consumers.items():
            cleared = torch.tensor([neuron in dormant for neuron in positions])
            weight = network.get_submodule(consumer).weight
            if getattr(network.get_submodule(consumer), "groups", 1) == 1:
                assert not weight[:, cleared].any()


@pytest.mark.parametrize("name", ["Normalised", "BatchNormalised", "NormalisedImages"])
def test_normalisations_on_a_recycled_neurons_way_become_fresh_and_others_stay(name):
    network, optimizer, _, report = prepared(name, threshold=0.4)
    before, fresh = copy.deepcopy(network.state_dict()), networks.build(name, seed=3).state_dict()
    recycled(network, report, [optimizer], build=lambda: networks.build(name, seed=3))
    after, seen = network.state_dict(), set()
    for layer in report.layers:
        for key, owners in network.known[layer.name].normalisations.items():
            theirs = torch.isin(torch.tensor(owners), layer.dormant.nonzero().flatten())
            assert torch.equal(after[key][theirs], fresh[key][theirs]), key
            assert torch.equal(after[key][~theirs], before[key][~theirs]), key
            seen |= {key} if not torch.equal(after[key], before[key]) else set()
    assert len(seen) > 1
    counters = [key for key in after if key.endswith(("num_batches_tracked", "steps"))]
    assert all(torch.equal(after[key], before[key]) for key in counters)


@pytest.mark.parametrize("name", ["conv", "dense"])
def test_compensation_keeps_means_where_a_normalisation_lies_on_the_way_of_a_dead_neuron(name):
    network, optimizer, batch, _ = prepared("NormalisedImages")
    with torch.no_grad():
        network.batch.bias[:2] = -100.0
    report = only(report_on(network, batch), name)
    single = report.wiring[name]
    before = consumer_means(network, report, single, batch)
    record = recycled(network, report, [optimizer], compensate=True, build=lambda: networks.build("NormalisedImages"))
    assert record.neurons[name].tolist()[:2] == [0, 1]
    assert network.batch.bias[0] == (0 if name == "conv" else -100)
    for consumer, mean in consumer_means(network, report, single, batch).items():
        torch.testing.assert_close(mean, before[consumer], rtol=1e-4, atol=1e-5)


def only(report, name):
    """The report as it would be if no other layer had dormant neurons."""
    layers = (
        type(layer)(layer.name, "net", layer.scores, layer.dormant & (layer.name == name), layer.recyclable)
        for layer in report.layers
    )
    return type(report)(tuple(layers), report.dormancy_threshold, report.wiring, report.batch)


def two_layers():
    """Numbers that can be followed by hand: 2 inputs, 3 neurons, 2 neurons, 1 output."""
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    weights = [[[1.0, 1.0], [-1.0, -1.0], [2.0, 0.0]], [[1.0, 5.0, 1.0], [-1.0, 7.0, -1.0]], [[1.0, 1.0]]]
    with torch.no_grad():
        for layer, weight in zip((network[0], network[2], network[4]), weights, strict=True):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.zero_()
    network.known = {"0": None, "2": None}
    network.observations = lambda batch, seed=0: torch.ones(batch, 2)
    return network


def constant_weights():
    network = two_layers()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(9.0)
    return network


def test_worked_recycling():
    network = two_layers()
    report = report_on(network, torch.ones(4, 2))
    assert [layer.dormant.tolist() for layer in report.layers] == [[False, True, False], [False, True]]
    record = recycled(network, report, build=constant_weights)
    assert {name: neurons.tolist() for name, neurons in record.neurons.items()} == {"0": [1], "2": [1]}
    assert record.recycled == 2
    assert network[0].weight.tolist() == [[1.0, 1.0], [9.0, 9.0], [2.0, 0.0]]
    # Row 1 is new, and its entry from the recycled neuron below was cleared afterwards.
    assert network[2].weight.tolist() == [[1.0, 0.0, 1.0], [9.0, 0.0, 9.0]]
    assert network[4].weight.tolist() == [[1.0, 0.0]]


def filled_adam(network):
    """Adam whose moments are 10 i + j at row i, column j, after 5 steps."""
    optimizer = torch.optim.Adam(network.parameters())
    for parameter in network.parameters():
        rows = torch.arange(len(parameter), dtype=torch.float32) * 10
        moments = rows.view(-1, *[1] * (parameter.ndim - 1)) + torch.arange(parameter.shape[-1]) * (parameter.ndim - 1)
        optimizer.state[parameter] = {
            "step": torch.tensor(5.0),
            "exp_avg": moments.clone(),
            "exp_avg_sq": moments.clone(),
        }
    return optimizer


@pytest.mark.parametrize(
    ("optimizer_state", "step", "second_moments"),
    [
        ("clear", 5.0, {0: [[0, 1], [0, 0], [20, 21]], 2: [[0, 0, 2], [0, 0, 0]], 4: [[0, 0]]}),
        ("restart", 0.0, {0: [[0, 1], [0, 0], [20, 21]], 2: [[0, 0, 2], [0, 0, 0]], 4: [[0, 0]]}),
        # Rows get the mean over live rows, columns the mean over live columns, (0 + 2) / 2 in row 0 of the second
        # layer, and the entry between two recycled neurons the mean over both.
        ("match", 5.0, {0: [[0, 1], [10, 11], [20, 21]], 2: [[0, 1, 2], [0, 1, 2]], 4: [[0, 0]]}),
    ],
)
def test_worked_optimizer_state(optimizer_state, step, second_moments):
    network = two_layers()
    optimizer = filled_adam(network)
    recycled(network, report_on(network, torch.ones(4, 2)), [optimizer], optimizer_state=optimizer_state)
    for index, expected in second_moments.items():
        state = optimizer.state[network[index].weight]
        assert state["exp_avg_sq"].tolist() == expected
        assert state["step"] == step
    assert optimizer.state[network[0].weight]["exp_avg"].tolist() == [[0, 1], [0, 0], [20, 21]]
    assert optimizer.state[network[0].bias]["exp_avg"].tolist() == [0, 0, 20]
    assert optimizer.state[network[4].bias]["step"] == 5.0


@pytest.mark.parametrize("optimizer_state", OPTIMIZER_STATE)
def test_recycling_nothing_is_nothing(optimizer_state):
    network, optimizer, batch, _ = prepared("Images")
    report = report_on(network, batch, threshold=0.0)
    alive = type(report)(
        tuple(type(layer)(layer.name, "net", layer.scores, layer.dormant & False, True) for layer in report.layers),
        0.0,
        report.wiring,
        batch,
    )
    before = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    record = recycled(network, alive, [optimizer], optimizer_state=optimizer_state, compensate=True)
    assert record.recycled == 0
    assert record.neurons == {}
    assert str(before) == str((network.state_dict(), optimizer.state_dict()))


@pytest.mark.parametrize(
    ("optimizer_class", "settings", "momentum"),
    [
        (torch.optim.Adam, {"amsgrad": True}, ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
        (torch.optim.AdamW, {}, ["exp_avg", "exp_avg_sq"]),
        (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}, ["square_avg", "grad_avg", "momentum_buffer"]),
        (torch.optim.SGD, {"momentum": 0.9}, ["momentum_buffer"]),
        (torch.optim.Adagrad, {"initial_accumulator_value": 0.5}, ["sum"]),
    ],
)
def test_every_optimizer_goes_back_to_its_initial_value(optimizer_class, settings, momentum):
    network, optimizer, _, report = prepared("Mlp", optimizer_class=optimizer_class, **settings)
    recycled(network, report, [optimizer], optimizer_state="clear")
    state = optimizer.state[network.first.weight]
    for key in momentum:
        initial = settings.get("initial_accumulator_value", 0.0)
        assert (state[key][:2] == initial).all(), key
        assert state[key][2:].any()
    trained(network, steps=1)


def test_state_that_starts_at_ones_goes_back_to_ones():
    network, optimizer, _, report = prepared("Mlp", optimizer_class=RMSpropTFLike)
    initial = InitialWeights(lambda: networks.build("Mlp"))
    generator = torch.Generator()
    recycle(
        network,
        report.wiring,
        report.dormant_neurons(),
        [optimizer],
        initial,
        generator,
        Surgery(optimizer_state="clear"),
    )
    assert (optimizer.state[network.first.weight]["square_avg"][:2] == 1.0).all()


def test_missing_state_is_tolerated_and_every_optimizer_is_looked_at():
    network, optimizer, _, report = prepared("Mlp")
    fresh, other = torch.optim.Adam(network.parameters()), torch.optim.Adam([network.first.weight])
    other.state[network.first.weight] = {"step": 3, "exp_avg": torch.ones(6, 5)}
    recycled(network, report, [fresh, other, optimizer], optimizer_state="restart")
    assert other.state[network.first.weight]["step"] == 0
    assert not other.state[network.first.weight]["exp_avg"][:2].any()
    assert not fresh.state


def test_state_that_overflowed_is_cleared_all_the_same():
    network, optimizer, _, report = prepared("Mlp")
    state = optimizer.state[network.second.weight]
    with torch.no_grad():
        network.out.weight[:, :2] = float("nan")  # no hidden layer's activations show it
    state["exp_avg"][:, 0] = state["exp_avg_sq"][:, 0] = state["exp_avg_sq"][0] = float("inf")
    recycled(network, report, [optimizer])
    assert not network.out.weight[:, :2].any()
    assert not state["exp_avg"][:, 0].any()
    assert torch.isfinite(state["exp_avg_sq"]).all()


def test_a_wholly_dormant_layer_has_nobody_to_match():
    network, optimizer, batch, _ = prepared("Mlp")
    recycled(network, report_on(network, batch, threshold=100.0), [optimizer], optimizer_state="match")
    assert not optimizer.state[network.first.weight]["exp_avg_sq"].any()


@every_network
def test_random_outgoing_weights_come_from_the_consumers_distribution(name):
    network, optimizer, _, report = prepared(name, threshold=0.4)
    before = copy.deepcopy(network)
    recycled(network, report, [optimizer], outgoing="random", build=lambda: networks.build(name, seed=4))
    for key, attached in attached_entries(network, report).items():
        if key.endswith("weight") and attached.any():
            drawn, old = network.get_parameter(key)[attached], before.get_parameter(key)[attached]
            assert drawn.all()
            assert not torch.equal(drawn, old)
            assert drawn.abs().max() <= networks.build(name).get_parameter(key).abs().max() * 3


@every_network
def test_compensation_keeps_the_mean_input_of_the_next_layer(name):
    network, optimizer, batch, report = prepared(name, threshold=0.6)
    recyclable = [layer for layer in report.layers if layer.recyclable and layer.dormant.any()]
    if not recyclable:
        pytest.skip("nothing in it can be recycled")
    consumers = {consumer for layer in recyclable for consumer in report.wiring[layer.name].consumers}
    if any(network.get_submodule(consumer).bias is None for consumer in consumers):
        with pytest.raises(ValueError, match=r"adds to the bias of \w+, which has none"):
            recycled(network, report, [optimizer], compensate=True)
        return
    # One layer at a time, since the layers behind a changed one see other inputs.
    single = recyclable[-1]
    alone = only(report, single.name)
    before = consumer_means(network, alone, single, batch)
    recycled(network, alone, [optimizer], compensate=True)
    for consumer, mean in consumer_means(network, alone, single, batch).items():
        torch.testing.assert_close(mean, before[consumer], rtol=1e-4, atol=1e-5)


def consumer_means(network, report, layer, batch):
    """Mean output of every consumer of a layer, over batch and space."""
    means, handles = {}, []
    for consumer in report.wiring[layer.name].consumers:

        def record(module, args, output, name=consumer):
            means.setdefault(name, []).append(output.movedim(1, 0).flatten(1).mean(1))

        handles.append(network.get_submodule(consumer).register_forward_hook(record))
    outputs_of(network, batch)
    for handle in handles:
        handle.remove()
    return {name: torch.stack(each).mean(0) for name, each in means.items()}


def test_the_same_seed_draws_the_same_weights_and_moves_no_global_stream():
    drawn = []
    for _ in range(2):
        network, _, _, report = prepared("Images", threshold=0.4)
        stream = torch.get_rng_state()
        recycled(network, report, seed=7, build=lambda: networks.build("Images"))
        assert torch.equal(stream, torch.get_rng_state())
        drawn.append(network.state_dict())
    assert all(torch.equal(drawn[0][key], drawn[1][key]) for key in drawn[0])


def test_an_error_while_recycling_leaves_the_policy_whole():
    class Broken(InitialWeights):
        def draw(self, name, *args):
            if name == "dense.weight":
                raise MemoryError("no room")
            return super().draw(name, *args)

    network, optimizer, _, report = prepared("Images", threshold=0.4)
    before = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    initial = Broken(lambda: networks.build("Images"))
    with pytest.raises(MemoryError, match="no room"):
        recycle(network, report.wiring, report.dormant_neurons(), [optimizer], initial, torch.Generator(), Surgery())
    assert str(before) == str((network.state_dict(), optimizer.state_dict()))


def test_training_goes_on_after_recycling():
    network, optimizer, batch, report = prepared("Images")
    recycled(network, report, [optimizer], build=lambda: networks.build("Images"))
    optimizer.zero_grad()
    network(batch).square().sum().backward()
    optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
