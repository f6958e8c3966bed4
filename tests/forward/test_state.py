"""What a forward pass changes in a network is put back after reading, measuring and recycling it."""

import copy
import functools
import itertools
import pickle
import random
import threading

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from sb3_redo import measure_dormancy, recycle_dormant, trace_wiring
from sb3_redo.dormancy.meter import Meter
from sb3_redo.forward.contexts import evaluating
from sb3_redo.forward.state import unchanged
from tests.helpers.stateful_networks import STATEFUL, Answer, Counting, Hooked, OfBatches, Stateful, everything_of

every_kind = pytest.mark.parametrize("kind", STATEFUL)
OBSERVATIONS = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


@every_kind
@pytest.mark.parametrize("mode", [True, False])
def test_reading_and_measuring_change_nothing(kind, mode):
    network = kind().train(mode)
    before = everything_of(network)
    wiring = trace_wiring(network, OBSERVATIONS)
    assert everything_of(network) == before
    meter = Meter(network, wiring, {layer.name: "net" for layer in wiring})
    for _ in range(4):
        meter.measure(network, OBSERVATIONS, 0.1)
        assert everything_of(network) == before
    meter.deviations(network, OBSERVATIONS)
    measure_dormancy(network, observations=OBSERVATIONS)
    assert everything_of(network) == before


@every_kind
def test_training_is_the_same_with_measurements(kind):
    def trained(is_measured):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        torch.utils.hooks.RemovableHandle.next_id = 0
        Hooked.passes = 0
        Hooked.by_class.clear()
        network = kind()
        if kind.__name__ == "Growing":
            network.scale = nn.PReLU()
        optimizer = torch.optim.Adam(network.parameters())
        wiring = trace_wiring(network, OBSERVATIONS)
        meter = Meter(network, wiring, {layer.name: "net" for layer in wiring})
        for step in range(8):
            outputs = network(OBSERVATIONS + step)
            loss = (outputs.values if isinstance(outputs, Answer) else outputs).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if is_measured:
                meter.measure(network, OBSERVATIONS, 0.1)
        return everything_of(network)

    assert trained(True) == trained(False)


@every_kind
def test_the_wiring_is_that_of_the_same_network_without_state(kind):
    torch.manual_seed(0)
    wiring = trace_wiring(kind(), OBSERVATIONS)
    assert [layer.name for layer in wiring] == ["first", "second"]
    assert wiring["first"].consumers["second"].tolist() == list(range(6))
    changes_weights = kind.__name__ in ("Renormalised", "OldSpectral")
    assert wiring["first"].recyclable != changes_weights


@every_kind
def test_two_measurements_agree(kind):
    network = kind()
    one = measure_dormancy(network, observations=OBSERVATIONS)
    torch.rand(1), np.random.random(), random.random()  # draws of training in between
    other = measure_dormancy(network, observations=OBSERVATIONS)
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(one.layers, other.layers, strict=True))


def test_compensation_changes_no_more_than_it_says():
    network = Counting()
    with torch.no_grad():
        network.first.weight[0] = 0.0
        network.first.bias[0] = -1.0
    report = measure_dormancy(network, 0.0, observations=OBSERVATIONS)
    before = pickle.dumps((network.calls, network.seen, network.cache, network.sizes))
    assert recycle_dormant(network, report, compensate=True, optimizers=[]).recycled >= 1
    assert pickle.dumps((network.calls, network.seen, network.cache, network.sizes)) == before


def test_only_the_parts_that_change_are_put_back_from_the_third_measurement_on():
    network = OfBatches()
    wiring = trace_wiring(network, OBSERVATIONS)
    assert wiring.stateful == ()  # two observations change nothing
    meter = Meter(network, wiring, {layer.name: "net" for layer in wiring})
    meter.measure(network, OBSERVATIONS, 0.1)
    assert list(meter._stateful) == [("", "statistics")]


def test_what_changes_at_some_passes_only_is_put_back_at_all_of_them():
    class Rarely(Stateful):
        def __init__(self):
            super().__init__()
            self.calls, self.seen = 0, []
            self.register_buffer("mean", torch.zeros(5))

        def normalise(self, x):
            self.calls += 1
            if self.calls % 7 == 0:
                self.mean += x.detach().mean(0)
                self.seen.append(self.calls)
            return x - self.mean

    network = Rarely()
    wiring = trace_wiring(network, OBSERVATIONS)
    meter = Meter(network, wiring, {layer.name: "net" for layer in wiring})
    for _ in range(12):
        meter.measure(network, OBSERVATIONS, 0.1)
        assert (network.seen, network.mean.any()) == (list(range(7, network.calls + 1, 7)), network.calls >= 7)
        network(OBSERVATIONS)


def test_an_error_puts_everything_back():
    network = Counting()
    before = everything_of(network)
    with pytest.raises(RuntimeError), unchanged(network):
        network(torch.ones(3, 4))
    assert everything_of(network) == before


def test_objects_stay_the_same_objects():
    network = Counting()
    network(OBSERVATIONS)
    objects = [id(network.seen), id(network.cache), id(network.cache[8]), id(network.first.weight)]
    with unchanged(network):
        network(OBSERVATIONS)
        network.cache = {}
        network.first.weight = nn.Parameter(torch.zeros(6, 5))
    assert objects == [id(network.seen), id(network.cache), id(network.cache[8]), id(network.first.weight)]


def test_a_graph_that_was_recorded_before_can_still_be_followed():
    """A pass changes a buffer in place that a loss needs for its gradient."""

    class Scaled(Stateful):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(5))

        def normalise(self, x):
            if not torch.is_grad_enabled():
                self.scale = self.scale + 1
            return x * self.scale

    network = Scaled()
    inputs = OBSERVATIONS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(inputs).sum(), inputs)
    loss = network(inputs).sum()
    measure_dormancy(network, observations=OBSERVATIONS)
    loss.backward()
    assert torch.equal(inputs.grad, expected)


def test_parameters_are_not_copied_where_none_is_written():
    network = nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 2))
    with unchanged(network) as state, torch.no_grad():
        network(torch.ones(1, 1000))
    assert all(cell.values is None for _, cell in state._cells if hasattr(cell, "alias"))


@pytest.mark.parametrize("name", ["Shared", "Room"])
def test_what_threads_share_and_environments_are_left_alone(name):
    network = Counting()
    network.other = globals()[name]()
    with unchanged(network):
        network.other.items.append(1)
        network.seen.append(1)
    assert (network.other.items, network.seen) == ([1], [])


class Shared:
    def __init__(self):
        self.lock, self.items = threading.Lock(), []


class Room(gym.Env):
    def __init__(self):
        self.items = []


def test_objects_that_hold_each_other_are_looked_at_once():
    network = Counting()
    network.seen.append(network.seen)
    network.myself = [network, network.cache]
    network.cache["all"] = network.myself
    with unchanged(network):
        network.cache["more"] = 1
    assert list(network.cache) == ["all"]


@pytest.mark.parametrize("fast", [True, False])
def test_a_transformer_is_measured_whatever_its_fast_path(fast):
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Linear(3, 8), nn.Linear(8, 2)
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, x):
            return self.out(self.encoder(self.embed(x)).mean(1))

    torch.manual_seed(0)
    network = Transformer()
    before = torch.backends.mha.get_fastpath_enabled()
    observations = torch.randn(6, 4, 3)
    try:
        torch.backends.mha.set_fastpath_enabled(fast)
        report = measure_dormancy(network, observations=observations)
        assert torch.backends.mha.get_fastpath_enabled() == fast
        with pytest.raises(ZeroDivisionError), evaluating(network.modules()):
            raise ZeroDivisionError
        assert torch.backends.mha.get_fastpath_enabled() == fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert [layer.name for layer in report.wiring if layer.recyclable] == [
        "encoder.layers.0.linear1",
        "encoder.layers.1.linear1",
    ]
    assert set(report.wiring.left_alone) == {"encoder.layers.0.self_attn", "encoder.layers.1.self_attn"}
    hidden = torch.relu(network.encoder.layers[0].linear1(_attended(network, observations)))
    scores = hidden.abs().mean((0, 1))
    layer = next(layer for layer in report.layers if layer.name == "encoder.layers.0.linear1")
    torch.testing.assert_close(layer.scores, (scores / scores.mean()).detach())


def _attended(network, observations):
    layer = network.encoder.layers[0].eval()
    x = network.embed(observations)
    return layer.norm1(x + layer.self_attn(x, x, x, need_weights=False)[0])


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.dropout, self.calls = nn.Linear(6, 4), nn.Dropout(0.5), 0
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        self.calls += 1
        self.mean += x.mean(0)
        return self.dropout(self.inner(x))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_evaluated_and_put_back_by_its_own_means():
    network = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), torch.jit.script(Scripted()), nn.ReLU(), nn.Linear(4, 2))
    network[2].dropout.eval()
    with evaluating(network.modules()):
        assert torch.equal(network[2](torch.ones(1, 6)), network[2](torch.ones(1, 6)))
    modes = [module.training for module in network[2].modules()]
    assert modes == [True, True, False]
    calls, mean = network[2].calls, network[2].mean.clone()
    report = measure_dormancy(network, observations=OBSERVATIONS)
    assert (network[2].calls, modes) == (calls, [module.training for module in network[2].modules()])
    assert torch.equal(network[2].mean, mean)
    assert "several of its neurons" in report.wiring["0"].reason
    assert report.wiring.left_alone["2"] == "layers in TorchScript cannot be seen, they are left alone"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_network_of_torchscript_alone_is_refused():
    network = torch.jit.script(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)))
    with pytest.raises(RuntimeError, match="layers in TorchScript cannot be seen: use the modules that were scripted"):
        trace_wiring(network, OBSERVATIONS)
    frozen = torch.jit.freeze(network.eval())
    with pytest.raises(RuntimeError, match="layers in TorchScript cannot be seen"):
        trace_wiring(frozen, OBSERVATIONS)


def test_copies_are_measured_as_their_originals():
    """Deep copies keep the state, and a measurement of one leaves the other."""
    network = Counting()
    network(OBSERVATIONS)
    twin = copy.deepcopy(network)
    measure_dormancy(twin, observations=OBSERVATIONS)
    assert everything_of(network) == everything_of(twin)


NOISE = np.random.default_rng(0)


def noise_of(shape):
    return torch.as_tensor(NOISE.normal(size=shape), dtype=torch.float32)


def counting_noise():
    stream, passes = torch.Generator(), 0

    def noise(shape):
        nonlocal passes
        passes += 1
        return torch.rand(shape, generator=stream) / passes

    return noise, lambda: (stream.get_state().tolist(), passes)


def test_generators_that_functions_reach_are_put_back():
    noise, state = counting_noise()

    class Reaching(Stateful):
        def __init__(self):
            super().__init__()
            self.noise = functools.partial(noise)

        def forward(self, x):
            return super().forward(x + 0.1 * self.noise(x.shape) + 0.1 * noise_of(x.shape))

    network = Reaching()
    before = NOISE.bit_generator.state, state()
    wiring = trace_wiring(network, OBSERVATIONS)
    Meter(network, wiring, dict.fromkeys(("first", "second"), "net")).measure(network, OBSERVATIONS, 0.1)
    assert (NOISE.bit_generator.state, state()) == before


class Tally:
    passes = 0


PASSES, ROWS, TALLY = 0, [], Tally()


def noted(x):
    global PASSES, LATER
    PASSES += 1
    LATER = PASSES
    ROWS.append(len(x))
    noted.passes = PASSES
    TALLY.passes += 1
    Tally.passes += 1
    return x / PASSES


class InGlobals(Stateful):
    def normalise(self, x):
        return noted(x)


def test_global_variables_and_attributes_of_functions_and_classes_are_put_back():
    network = InGlobals()
    for is_first in (True, False):
        before = PASSES, globals().get("LATER"), list(ROWS), dict(vars(noted)), dict(vars(TALLY)), Tally.passes
        wiring = trace_wiring(network, OBSERVATIONS)
        meter = Meter(network, wiring, dict.fromkeys(("first", "second"), "net"))
        for _ in range(4):
            meter.measure(network, OBSERVATIONS, 0.1)
        after = PASSES, globals().get("LATER"), list(ROWS), dict(vars(noted)), dict(vars(TALLY)), Tally.passes
        assert after == before
        assert ("LATER" in globals()) != is_first
        network(OBSERVATIONS)


NUMBERS = itertools.count(1)


class OwnIterator(Stateful):
    def __init__(self):
        super().__init__()
        self.numbers = (number for number in (1, 2, 3))

    def normalise(self, x):
        return x / next(self.numbers)


class GlobalIterator(Stateful):
    def normalise(self, x):
        return x / next(NUMBERS)


@pytest.mark.parametrize(("kind", "what"), [(OwnIterator, "generator"), (GlobalIterator, "count")])
def test_a_network_with_an_iterator_is_refused_before_it_moves(kind, what):
    network = kind()
    with pytest.raises(RuntimeError, match=f"Iterator holds a {what}, which cannot be put back .* use a number"):
        trace_wiring(network, OBSERVATIONS)
    assert next(getattr(network, "numbers", NUMBERS)) == 1


def test_weights_without_values_are_refused_and_stay_so():
    network = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(RuntimeError, match=r"0\.weight has no values before the first pass: run the network once"):
        trace_wiring(network, OBSERVATIONS)
    assert torch.nn.parameter.is_lazy(network[0].weight)
    network(OBSERVATIONS)
    assert trace_wiring(network, OBSERVATIONS)["0"].recyclable
