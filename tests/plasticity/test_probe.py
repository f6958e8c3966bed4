"""The probe task: what a straightforward implementation makes of the same targets."""

import copy
import math

import pytest
import torch
from torch import nn

from sb3_redo.plasticity import ProbeTaskCallback, networks_of, probe, probe_targets, read_network
from tests.helpers.algorithms import batch_of, build, learn
from tests.helpers.runs import NOISY, Tape, differences, fingerprint

CLOSE = 1e-4


def net_of(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


OPTIMIZERS = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.003, eps=1e-5, betas=(0.8, 0.99)),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.003, weight_decay=0.1),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.001, centered=True, momentum=0.5),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
}


def straightforward(net, batch, fresh, make_optimizer, steps, size, seed):
    """Lyle et al. 2023, one target: a copy of the network, the sine's targets, its steps, the final loss."""
    with torch.no_grad():
        targets = net(batch).mean() + torch.sin(1e5 * fresh(batch))
    copied = copy.deepcopy(net)
    optimizer = make_optimizer(copied.parameters())
    generator, order = torch.Generator().manual_seed(seed), []
    with torch.no_grad():
        first = nn.functional.mse_loss(copied(batch), targets).item()
    for _ in range(steps):
        if not order:
            order = list(torch.randperm(len(batch), generator=generator).split(size))
        rows = order.pop(0)
        optimizer.zero_grad()
        nn.functional.mse_loss(copied(batch[rows]), targets[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return nn.functional.mse_loss(copied(batch), targets).item(), first, targets.var(0, correction=0).mean().item()


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_probe_is_what_a_straightforward_implementation_makes_of_it(make_optimizer):
    net, fresh = net_of(0), [net_of(1), net_of(2)]
    batch = torch.randn(50, 4)
    optimizer = make_optimizer(net.parameters())
    # Steps of the run itself, whose moments a probe does not take over.
    net(batch).pow(2).sum().backward()
    optimizer.step()
    network = read_network(net, batch)
    states = [dict(each.named_parameters()) for each in fresh]
    found = probe(network, batch, states, optimizer, steps=60, minibatch_size=16, seed=5)
    each = [straightforward(net, batch, w, make_optimizer, 60, 16, 5 + k) for k, w in enumerate(fresh)]
    loss, first, variance = (sum(values) / 2 for values in zip(*each, strict=True))
    assert (found.loss, found.first_loss, found.variance) == pytest.approx((loss, first, variance), rel=CLOSE)
    assert found.plasticity == pytest.approx(variance - loss, rel=1e-3)
    assert found.loss < found.first_loss


def test_targets_are_a_sine_around_the_mean_prediction():
    net, fresh, batch = net_of(0), net_of(1), torch.randn(4000, 4)
    with torch.no_grad():
        net[4].bias += 7.0
    targets = probe_targets(read_network(net, batch), batch, dict(fresh.named_parameters()))
    mean = float(net(batch).detach().mean())
    assert float(targets.mean()) == pytest.approx(mean, abs=0.05)
    assert float(targets.var()) == pytest.approx(0.5, abs=0.02)
    assert float((targets - mean).abs().max()) <= 1.0 + 1e-5


def test_a_probe_leaves_network_and_optimizer_as_they_were():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    batch, optimizer = torch.randn(20, 4), torch.optim.Adam(net.parameters())
    net(batch).sum().backward()
    optimizer.step()
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))

    def all_of_it():
        state = copy.deepcopy((net.state_dict(), optimizer.state_dict(), [p.grad for p in net.parameters()]))
        return str(state), torch.get_rng_state().tolist(), [module.training for module in net.modules()]

    fresh = [{name: torch.randn_like(p) for name, p in net.named_parameters()}]
    before = all_of_it()
    network = read_network(net, batch)
    one, same = (probe(network, batch, fresh, optimizer, steps=10, minibatch_size=8, seed=1) for _ in range(2))
    assert all_of_it() == before
    assert steps == []
    assert one == same
    # In training mode, as it is trained: dropout has its part in the steps.
    assert probe(network, batch, fresh, optimizer, steps=10, minibatch_size=8, seed=2) != one


def test_a_network_that_cannot_learn_has_no_plasticity():
    net = net_of(0)
    with torch.no_grad():
        net[0].bias.fill_(-100.0)  # all dead: only the last bias can be fitted
    batch = torch.randn(50, 4)
    network = read_network(net, batch)
    fresh = [dict(net_of(k).named_parameters()) for k in (1, 2)]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    dead = probe(network, batch, fresh, optimizer, steps=200, minibatch_size=50)
    alive = net_of(0)
    optimizer = torch.optim.Adam(alive.parameters(), lr=0.01)
    living = probe(read_network(alive, batch), batch, fresh, optimizer, steps=200, minibatch_size=50)
    assert abs(dead.plasticity) < 0.02
    assert living.plasticity > dead.plasticity + 0.05


def test_the_callback_logs_losses_and_what_was_lost_since_the_beginning():
    tape, model = Tape(), build("SAC")
    learn(model, ProbeTaskCallback(20, batch_size=16, steps=5, targets=2), tape=tape)
    for name in ("actor", "critic"):
        values = {
            key: tape.values(f"plasticity/{key}/{name}") for key in ("plasticity", "plasticity_loss", "probe_loss")
        }
        assert len(values["plasticity"]) == 3
        lost = [values["plasticity"][0] - value for value in values["plasticity"]]
        assert values["plasticity_loss"] == pytest.approx(lost)
        assert all(0 < value < 2 for value in values["probe_loss"])
    assert tape.values("plasticity/gradient_step") == [0, 20, 40]


def test_a_cheap_probe_is_a_tenth_of_the_steps_on_a_fifth_of_the_targets():
    assert (ProbeTaskCallback().steps, ProbeTaskCallback().targets) == (200, 2)
    paper = ProbeTaskCallback(budget="paper", targets=3)
    assert (paper.steps, paper.targets) == (2000, 3)
    with pytest.raises(ValueError, match="budget must be one of 'paper', 'cheap'"):
        ProbeTaskCallback(budget="chaep")


def test_fresh_networks_are_drawn_as_the_policy_draws_them():
    model = build("DQN")
    callback = ProbeTaskCallback(20, batch_size=16, steps=1, targets=1)
    learn(model, callback)
    callback.init_callback(model)
    callback.agent = None
    network = networks_of(model, batch_of(model))["q_net"]
    fresh, again, other = (callback._fresh(network, seed) for seed in (1, 1, 2))
    assert set(network.parameters) <= set(fresh)
    for name, parameter in network.parameters.items():
        assert torch.equal(fresh[name], again[name])
        assert not torch.equal(fresh[name], other[name])
        bound = 1 / math.sqrt(network.module.get_submodule(name.rpartition(".")[0]).in_features)
        assert 0.3 * bound < float(fresh[name].abs().max()) <= bound
        assert fresh[name].shape == parameter.shape


def test_a_policy_that_no_optimizer_moves_is_not_probed():
    tape = Tape()
    learn(build("TRPO"), ProbeTaskCallback(5, batch_size=16, steps=2, targets=1), tape=tape, name="TRPO")
    assert tape.values("plasticity/plasticity/value")
    assert not tape.values("plasticity/plasticity/policy")
    with pytest.warns(RuntimeWarning, match="policy cannot be probed: no optimizer changes all of it"):
        learn(build("TRPO"), ProbeTaskCallback(5, batch_size=16, networks=["policy"]), name="TRPO")


@pytest.mark.parametrize("settings", [{}, {"policy_kwargs": NOISY}], ids=["plain", "batch norm and dropout"])
def test_a_probed_run_equals_the_run_without(settings):
    def left(callback):
        model = learn(build("DQN", **settings), callback)
        return fingerprint(model)

    assert differences(left(None), left(ProbeTaskCallback(7, batch_size=16, steps=3, targets=1))) == []
