"""A signature changes with everything that a wiring depends on, and with nothing else."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from sb3_redo.wiring.signature import network_signature
from tests.helpers.random_networks import RandomNetwork, Wavering, plans

SKIPS = {"now": False}


class Network(nn.Module):
    """Has one place for every kind of change."""

    scale = 1.0

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.out, self.norm = nn.Linear(4, 2), nn.BatchNorm1d(4)
        self.activation = nn.ReLU()
        self.register_buffer("order", torch.arange(4))
        self.register_buffer("gain", torch.ones(4))
        self.mask, self.rows = torch.ones(4), np.arange(4)
        self.stage, self.parts, self.function = 0, [self.second], functional.relu
        self.is_detached, self.gradients = False, nullcontext
        self.offset = self.closed_over(0.0)

    @staticmethod
    def closed_over(value):
        return lambda x: x + value

    def forward(self, x):
        x = self.activation(self.norm(self.first(x)))[:, self.order][:, self.rows] * self.mask * self.gain
        if SKIPS["now"]:
            x = x + self.third(x)
        for part in self.parts:
            x = part(x)
        x = self.offset(self.function(x) * self.scale)
        x = x.detach() if self.is_detached else x
        with self.gradients():
            x = torch.relu(self.third(x))
        return self.out(x[:, :, None].squeeze(2) if self.stage else x)


def sgd(network):
    return [torch.optim.SGD(network.parameters(), 0.1)]


def signature(network, optimizers=None):
    optimizers = sgd(network) if optimizers is None else optimizers
    return network_signature(network, lambda net, x: net(x), torch.ones(2, 4), optimizers)


def train(network):
    (optimizer,) = sgd(network)
    network.train()
    network(torch.randn(8, 4)).sum().backward()
    optimizer.step()


def draw(network):
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter)


UNCHANGED = {
    "nothing": lambda net: None,
    "a gradient step": train,
    "weights redrawn": draw,
    "weights loaded": lambda net: net.load_state_dict(Network().state_dict()),
    "modes": lambda net: net.eval(),
    "what is not used": lambda net: setattr(net, "note", object()),
    "gradients": lambda net: net.zero_grad(),
    "a float buffer": lambda net: net.gain.mul_(3.0),
}
CHANGED = {
    "a number": lambda net: setattr(net, "stage", 1),
    "a number of the class": lambda net: setattr(type(net), "scale", 2.0),
    "a global": lambda net: SKIPS.update(now=True),
    "a closure": lambda net: setattr(net, "offset", net.closed_over(1.0)),
    "a function": lambda net: setattr(net, "function", torch.tanh),
    "a list of modules": lambda net: net.parts.append(net.third),
    "a module": lambda net: setattr(net, "activation", nn.Tanh()),
    "a module of the same calls": lambda net: setattr(net, "first", type("Sub", (nn.Linear,), {})(4, 4)),
    "an order of neurons": lambda net: net.order.copy_(torch.tensor([1, 0, 2, 3])),
    "an order in an array": lambda net: net.rows.__setitem__(0, 1),
    "a mask": lambda net: net.mask.__setitem__(0, 0.0),
    "frozen weights": lambda net: net.second.requires_grad_(False),
    "a frozen bias": lambda net: net.second.bias.requires_grad_(False),
    "a detached branch": lambda net: setattr(net, "is_detached", True),
    "no gradients in forward": lambda net: setattr(net, "gradients", torch.no_grad),
    "inference mode in forward": lambda net: setattr(net, "gradients", torch.inference_mode),
    "tied weights": lambda net: setattr(net.third, "weight", net.second.weight),
    "tied memory": lambda net: setattr(net.third.weight, "data", net.second.weight.data),
    "a transposed view": lambda net: setattr(net.third.weight, "data", net.second.weight.data.t()),
    "a parametrisation": lambda net: parametrizations.weight_norm(net.second),
    "a type": lambda net: net.double() and setattr(net, "forward", lambda x: Network.forward(net, x.double())),
    "a forward of its own": lambda net: setattr(net.second, "forward", net.second.forward),
    "a hook": lambda net: net.second.register_forward_hook(lambda *_: None),
    "a hook on a gradient": lambda net: net.second.weight.register_hook(lambda gradient: 0 * gradient),
    "a hook before": lambda net: net.second.register_forward_pre_hook(lambda *_: None),
    "a width": lambda net: (setattr(net, "third", nn.Linear(4, 5)), setattr(net, "out", nn.Linear(5, 2))),
    "a module that does not run": lambda net: net.add_module("idle", nn.Linear(1, 1)),
}


@pytest.fixture(autouse=True)
def _undo():
    yield
    SKIPS["now"], Network.scale = False, 1.0


@pytest.mark.parametrize("change", UNCHANGED.values(), ids=UNCHANGED)
def test_a_signature_stays(change):
    network = Network()
    before = signature(network)
    change(network)
    assert signature(network) == before


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_a_signature_changes(change):
    network = Network()
    before = signature(network, [])
    change(network)
    assert signature(network, []) != before


def test_an_optimizer_that_holds_less_changes_it():
    network = Network()
    held = [torch.optim.SGD(network.first.parameters(), 0.1)]
    assert signature(network, held) != signature(network)
    assert signature(network) == signature(network, [torch.optim.Adam(network.parameters(), 0.5)])


def test_it_leaves_no_trace():
    network = Network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stream = torch.get_rng_state()
    signature(network)
    assert torch.equal(torch.get_rng_state(), stream)
    assert network.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_it_puts_back_what_the_pass_changes():
    network = nn.Sequential(nn.Linear(4, 4), Wavering(), nn.Linear(4, 2))
    before = signature(network)
    assert int(network[1].passes) == network[1].calls == len(network[1].rows) == 0
    assert signature(network) == before


@seed(0)
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plans, plans)
def test_random_networks_of_one_signature_have_one_wiring(plan, other):
    def read(network):
        observations = network.observations(2, seed=1)
        return network_signature(network, lambda net, x: net(x), observations, [])

    def known(network):
        return {name: (known.consumers, known.reasons) for name, known in network.known.items()}

    one, other = RandomNetwork(plan), RandomNetwork(other)
    before = read(one)
    assert before != read(other) or known(one) == known(other)
    draw(one)
    assert before == read(one)
