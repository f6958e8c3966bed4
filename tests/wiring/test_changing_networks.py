"""A network whose values decide what runs is refused in one sentence that names the layer, or read right."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sb3_redo.dormancy.meter import Meter
from sb3_redo.wiring.tracing import trace_wiring
from tests.helpers import networks
from tests.helpers.stateful_networks import Passes

OBSERVATIONS = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


PASSES = Passes()


class Changing(nn.Module):
    """Layers for networks that do not run them all in each pass."""

    def __init__(self, forward):
        super().__init__()
        self.first, self.out = nn.Linear(5, 6), nn.Linear(6, 2)
        self.gate = nn.Linear(6, 4)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.body = forward
        PASSES.made = 0

    @property
    def calls(self):
        return PASSES.made

    def forward(self, x):
        PASSES.made += 1
        return self.out(self.body(self, x, torch.relu(self.first(x))))


def build(forward):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Changing(forward)


def top_two(net, x, h):
    weights, chosen = net.gate(h).softmax(1).topk(2, 1)
    mixed = torch.zeros_like(h)
    for number, expert in enumerate(net.experts):
        rows, place = (chosen == number).nonzero(as_tuple=True)
        if len(rows):
            mixed.index_add_(0, rows, weights[rows, place, None] * expert(h[rows]))
    return mixed


def every_expert(net, x, h):
    chosen, mixed = net.gate(h).argmax(1), torch.zeros_like(h)
    for number, expert in enumerate(net.experts):
        mixed[chosen == number] = expert(h[chosen == number])
    return mixed


def dispatched(net, x, h):
    return net.experts[int(net.gate(h).sum(0).argmax())](h)


def until_small(net, x, h):
    while h.norm() > 1:
        h = torch.tanh(net.experts[0](h)) * 0.3
    return h


def left_early(net, x, h):
    for expert in net.experts:
        h = torch.relu(expert(h))
        if h.mean() < 0.3:
            break
    return h


def positive_rows(net, x, h):
    chosen = h[:, 0] > 0.5
    return torch.zeros_like(h).masked_scatter(chosen[:, None], torch.relu(net.experts[0](h[chosen])))


def each_row(net, x, h):
    return torch.stack([torch.relu(net.experts[0](row)) for row in h])


def at_random(draw):
    def forward(net, x, h):
        for expert in net.experts:
            h = h + torch.relu(expert(h)) if draw() < 0.5 else h
        return h

    return forward


ALIKE = (
    "runs in some passes and not in others, or in another order: a network that changes from pass to pass cannot be "
)
SENTENCES = {
    "top two experts": (top_two, rf"^experts\.\d {ALIKE}read$"),
    "every expert on its rows": (every_expert, r"^experts\.\d runs on none of the observations: .* cannot be read$"),
    "an expert by its number": (dispatched, rf"^experts\.\d {ALIKE}read$"),
    "a loop until values are small": (until_small, rf"^experts\.0 {ALIKE}read$"),
    "an early exit": (left_early, rf"^experts\.\d {ALIKE}read$"),
    "rows by their values": (
        positive_rows,
        r"^experts\.0 runs on none of the observations: .* cannot be read$",
    ),
    "random depth": (at_random(lambda: torch.rand(())), rf"^experts\.\d {ALIKE}read$"),
    "random depth by Python": (at_random(random.random), rf"^experts\.\d {ALIKE}read$"),
    "a layer by a feature": (
        lambda net, x, h: net.experts[0](h) if h.mean() > 0.5 else h,
        rf"^experts\.0 {ALIKE}read$",
    ),
    "a layer by the observation": (
        lambda net, x, h: net.experts[0](h) if x.mean() > 2 else h,
        rf"^experts\.0 {ALIKE}read$",
    ),
    "a layer every third pass": (
        lambda net, x, h: h if net.calls % 3 else net.experts[0](h),
        rf"^experts\.0 {ALIKE}read$",
    ),
    "an activation by a feature": (
        lambda net, x, h: torch.tanh(h) if h[:, 0].mean() > 0.5 else torch.sigmoid(h),
        rf"^(tanh|sigmoid)\(\) after first {ALIKE}read$",
    ),
    "an order by the observation": (
        lambda net, x, h: sum(net.experts[i](h) for i in ((0, 1) if x.mean() > 0 else (1, 0))),
        rf"^experts\.[01] {ALIKE}read$",
    ),
    "steps by the observation": (
        lambda net, x, h: net.experts[0](h[:, None].expand(-1, 3, -1)[:, : 1 + int(x[0, 0] > 0)]).mean(1),
        r"^what experts\.0 receives is \(1, \d, 6\) in some passes and \(1, \d, 6\) in others: .* cannot be read$",
    ),
    "a key that is missing": (
        lambda net, x, h: h * {0: 1.0, 1: 2.0}[int(net.gate(h).abs().mean() > 0.5) * net.calls // 2],
        r"^Changing cannot be read: it fails after gate when layers return numbers of our own \(KeyError: \d+\)$",
    ),
    "the two best rows": (
        lambda net, x, h: h[h.sum(1).topk(2).indices],
        r"^Changing cannot be read: it fails after first when it runs on one observation \(RuntimeError: selected",
    ),
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_it_is_refused_in_a_sentence_that_names_the_layer(kind):
    forward, sentence = SENTENCES[kind]
    with pytest.raises(RuntimeError, match=sentence):
        trace_wiring(build(forward), OBSERVATIONS)


def measured(net, batch, forward=None):
    wiring = trace_wiring(net, OBSERVATIONS)
    return Meter(net, wiring, {layer.name: "net" for layer in wiring}).measure(forward or net, batch, 0.1)


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (each_row, r"experts\.0"),
        (lambda net, x, h: net.experts[0](torch.relu(net.experts[1](h)) if len(h) < 4 else h), r"experts\.1"),
        (lambda net, x, h: torch.relu(net.experts[0](h)) if len(h) < 4 else net.experts[1](h), r"experts\.1"),
        (lambda net, x, h: torch.sigmoid(h) if len(h) < 4 else torch.tanh(h), r"tanh\(\) after first"),
    ],
)
def test_a_batch_that_takes_another_way_is_refused_when_it_is_measured(forward, name):
    net = build(forward)
    with pytest.raises(RuntimeError, match=f"^{name} {ALIKE}measured$"):
        measured(net, OBSERVATIONS)
    assert not any("forward" in module.__dict__ for module in net.modules())


def test_a_pass_that_ends_early_is_refused():
    net = build(lambda net, x, h: torch.relu(net.experts[0](h)))
    with pytest.raises(RuntimeError, match=f"^experts.0 {ALIKE}measured$"):
        measured(net, OBSERVATIONS, lambda x: torch.relu(net.first(x)))


def test_layers_in_another_order_are_not_measured_for_each_other():
    """One activation module runs for both: its first call belongs to the layer that runs first."""
    net = build(lambda net, x, h: net.act(net.experts[0](h)) + net.act(net.experts[1](h)))
    net.act = nn.ReLU()
    wiring = trace_wiring(net, OBSERVATIONS)
    net.body = lambda net, x, h: net.act(net.experts[1](h)) + net.act(net.experts[0](h))
    meter = Meter(net, wiring, {layer.name: "net" for layer in wiring})
    with pytest.raises(RuntimeError, match=rf"^experts\.0 {ALIKE}measured$"):
        meter.measure(net, OBSERVATIONS, 0.1)


def test_an_error_that_the_network_catches_is_raised_all_the_same():
    def forward(net, x, h):
        try:
            return net.experts[net.calls % 2](h)
        except RuntimeError:
            return h

    with pytest.raises(RuntimeError, match=ALIKE):
        trace_wiring(build(forward), OBSERVATIONS)


def test_which_half_is_mirrored_depends_on_the_observation():
    wiring = trace_wiring(build(lambda net, x, h: h.flip(1) if x.mean() > 1 else h), OBSERVATIONS)
    assert "what it feeds into out is also fed by the observation" in wiring["first"].reason


def test_a_layer_on_a_learned_vector_is_left_alone():
    net = build(lambda net, x, h: h * torch.sigmoid(net.experts[0](torch.relu(net.experts[1](net.vector)))))
    net.vector = nn.Parameter(torch.randn(6))
    wiring = trace_wiring(net, OBSERVATIONS)
    assert [layer.name for layer in wiring] == ["first"]
    assert "what it feeds into out is also fed by experts.0" in wiring["first"].reason
    why = "it runs on vectors without a batch axis, it is left alone"
    assert wiring.left_alone == {"experts.0": why, "experts.1": why}


def number_of(net, h):
    return int(net.gate(h).mean(0).argmax())


def experts_of(net, h):
    return [torch.relu(expert(h)) for expert in net.experts]


def tensor_chosen(net, h):
    return torch.stack(experts_of(net, h))[net.gate(h).mean(0).argmax()]


CHOICES = {
    "where": lambda net, x, h: torch.where(
        (i := net.gate(h).argmax(1, keepdim=True)) == 0,
        net.experts[0](h),
        torch.where(i == 1, net.experts[1](h), torch.where(i == 2, net.experts[2](h), net.experts[3](h))),
    ),
    "stack": lambda net, x, h: torch.stack(experts_of(net, h), 1)[torch.arange(len(h)), net.gate(h).argmax(1)],
    "one hot": lambda net, x, h: (
        torch.stack(experts_of(net, h), 1) * functional.one_hot(net.gate(h).argmax(1), 4)[:, :, None]
    ).sum(1),
    "top two": lambda net, x, h: (
        torch.stack(experts_of(net, h), 1).gather(
            1, (top := net.gate(h).topk(2, 1)).indices[:, :, None].expand(-1, -1, 6)
        )
        * top.values.softmax(1)[:, :, None]
    ).sum(1),
    "by thresholds": lambda net, x, h: torch.where(
        (z := net.gate(h)[:, :1]).abs() < 0.01, net.experts[0](h), torch.where(z > 0, net.experts[1](h), h)
    ),
    "list": lambda net, x, h: experts_of(net, h)[number_of(net, h)],
    "unbound": lambda net, x, h: torch.stack(experts_of(net, h)).unbind(0)[number_of(net, h)],
    "slice": lambda net, x, h: torch.cat(experts_of(net, h), 1)[:, 6 * (i := number_of(net, h)) : 6 * i + 6],
    "a tensor as index": lambda net, x, h: tensor_chosen(net, h),
    "a number of the observation": lambda net, x, h: experts_of(net, h)[int(x.mean(0)[:4].argmax())],
    "if": lambda net, x, h: experts_of(net, h)[sum(net.gate(h).mean() > bound for bound in (-0.001, 0, 0.001))],
}


@pytest.mark.parametrize("kind", CHOICES)
def test_experts_that_are_chosen_are_measured_only_also_those_that_no_pass_chose(kind):
    wiring = trace_wiring(build(CHOICES[kind]), OBSERVATIONS)
    experts = [layer for layer in wiring if layer.name.startswith("experts")]
    assert len(experts) == (2 if kind == "by thresholds" else 4)
    assert not any(layer.recyclable for layer in experts)
    assert wiring.outputs[-1] == "out"


OWN = np.random.default_rng(0)
BY_CHANCE = {
    "dropout": lambda net, x, h: functional.dropout(h, 0.5, training=True),
    "a mask of NumPy": lambda net, x, h: h * torch.as_tensor(np.random.rand(6) > 0.5),
    "a mask of an own generator": lambda net, x, h: h * torch.as_tensor(OWN.random(6) > 0.5),
    "a mask that is 0 at first": lambda net, x, h: h * (1 - net.zero * (torch.rand(6) > 0.5)),
}


@pytest.mark.parametrize("kind", BY_CHANCE)
def test_what_other_draws_connect_is_measured_only(kind):
    net = build(lambda net, x, h: torch.relu(net.experts[0](BY_CHANCE[kind](net, x, h))))
    net.zero = nn.Parameter(torch.zeros(()))
    wiring = trace_wiring(net, OBSERVATIONS)
    always = kind == "a mask that is 0 at first"  # it never shuts a connection whole
    assert wiring["first"].reason == (None if always else "what it feeds depends on random numbers that forward draws")
    assert wiring["first"].consumers["experts.0"].tolist() == list(range(6))
    assert wiring["experts.0"].recyclable


def test_a_skip_that_one_draw_in_eight_opens_is_found():
    net = build(lambda net, x, h: torch.relu(net.experts[0](h)) + h * (torch.rand(()) < 0.125))
    assert not any(layer.recyclable for layer in trace_wiring(net, OBSERVATIONS))


@pytest.mark.parametrize("noise", [lambda h: h + 0.1 * torch.randn_like(h), lambda h: h * (1 + torch.rand(6))])
def test_noise_that_shuts_nothing_keeps_no_layer_from_being_recycled(noise):
    net = build(lambda net, x, h: torch.relu(net.experts[0](noise(h))))
    assert [layer.recyclable for layer in trace_wiring(net, OBSERVATIONS)] == [True, True]


class TooLargeError(Exception):
    """An error of a user's own."""


def refusing(error):
    def forward(net, x, h):
        if h.abs().max() > 100:
            raise error
        return torch.relu(net.experts[0](h))

    return forward


@pytest.mark.parametrize("error", [TooLargeError(), SystemExit(1), OSError(), StopIteration()])
def test_large_numbers_may_be_refused_by_any_error(error):
    assert [layer.recyclable for layer in trace_wiring(build(refusing(error)), OBSERVATIONS)] == [True, True]


def test_an_error_of_any_kind_on_the_observation_is_told_in_one_sentence():
    def forward(net, x, h):
        raise TooLargeError("of their own")

    with pytest.raises(RuntimeError, match=r"cannot be read: it fails after first .*\(TooLargeError: of their own\)"):
        trace_wiring(build(forward), OBSERVATIONS)


LOGGED = {
    "a number for a log": lambda net, x, h: setattr(net, "norm", h.norm().item()) or h,
    "an assertion": lambda net, x, h: h if torch.isfinite(h).all() else None,
    "a length of its own": lambda net, x, h: h[:, : int(torch.tensor([6]).max())],
}


@pytest.mark.parametrize("kind", LOGGED)
def test_numbers_that_choose_nothing_keep_no_layer_from_being_recycled(kind):
    net = build(lambda net, x, h: torch.relu(net.experts[0](LOGGED[kind](net, x, h))))
    assert [layer.recyclable for layer in trace_wiring(net, OBSERVATIONS)] == [True, True]


@pytest.mark.parametrize("name", ["DentedInside", "DentedThroughData", "NegativeSoftplus", "DentedOutside"])
def test_scores_are_never_negative(name):
    network = networks.build(name)
    wiring = trace_wiring(network, network.observations(2))
    report = Meter(network, wiring, {layer.name: "net" for layer in wiring}).measure(
        network, network.observations(9), 0.1
    )
    assert all((layer.scores >= 0).all() for layer in report.layers)
