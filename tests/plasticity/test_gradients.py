"""Gradients: what a loop over samples says, and what Stable-Baselines3 itself trains on."""

import math

import numpy as np
import pytest
import torch
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from torch import nn

from sb3_redo.algorithms import CategoricalDQN, DoubleDQN
from sb3_redo.plasticity import (
    GradientCovariance,
    Objective,
    gradient,
    gradient_covariance,
    gradient_norm,
    networks_of,
    per_sample_gradients,
    probe_loss,
    read_network,
    td_loss,
)
from sb3_redo.plasticity import gradients as room
from sb3_redo.plasticity.pictures import clustered, cosine_picture
from tests.helpers.algorithms import IMAGES, VECTORS, batch_of, build, learn
from tests.helpers.runs import differences, dqn, fingerprint

CLOSE = 1e-4


def small(rows=12):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 2))
    batch = torch.randn(rows, 1, 3, 3)
    return net, Objective(batch, torch.randn(rows, 2), lambda out, targets: (out - targets).pow(2).sum(1))


def by_loop(net, objective):
    """One backward pass for each sample."""
    rows = []
    for number in range(len(objective.batch)):
        net.zero_grad()
        part = slice(number, number + 1)
        objective.loss(net(objective.batch[part]), objective.targets[part]).sum().backward()
        rows.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    net.zero_grad()
    return torch.stack(rows)


def test_gradients_of_samples_are_those_of_a_loop():
    net, objective = small()
    network = read_network(net, objective.batch)
    expected = by_loop(net, objective)
    torch.testing.assert_close(per_sample_gradients(network, objective), expected, rtol=CLOSE, atol=1e-6)
    torch.testing.assert_close(gradient(network, objective), expected.mean(0), rtol=CLOSE, atol=1e-6)
    assert gradient_norm(network, objective) == pytest.approx(float(expected.mean(0).norm()), rel=CLOSE)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("entries", [2**27, 400])
def test_the_covariance_is_that_of_a_loop_also_in_blocks(entries, monkeypatch):
    monkeypatch.setattr(room, "_ENTRIES_AT_ONCE", entries)
    net, objective = small()
    found = gradient_covariance(read_network(net, objective.batch), objective)
    rows = by_loop(net, objective).double()
    torch.testing.assert_close(found.products, rows @ rows.T, rtol=CLOSE, atol=1e-5)
    cosines = [[float(a @ b / (a.norm() * b.norm())) for b in rows] for a in rows]
    torch.testing.assert_close(found.cosines, torch.tensor(cosines).double(), rtol=CLOSE, atol=1e-6)
    pairs = [cosines[i][j] for i in range(12) for j in range(i)]
    assert found.negative_share == pytest.approx(sum(pair < 0 for pair in pairs) / len(pairs))
    assert found.mean_cosine == pytest.approx(sum(pairs) / len(pairs), rel=CLOSE)


def test_a_network_that_looks_at_values_is_gone_through_sample_by_sample():
    net, objective = small()
    looking = read_network(net, objective.batch, lambda module, x: module(x) if float(x.sum()) < 1e9 else None)
    expected = per_sample_gradients(read_network(net, objective.batch), objective)
    torch.testing.assert_close(per_sample_gradients(looking, objective), expected, rtol=CLOSE, atol=1e-6)


def test_worked_cosines():
    # Gradients (1, 0), (0, 2), (-3, 0), 0.
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, 0.0]]).double()
    found = GradientCovariance(rows @ rows.T)
    assert found.cosines.tolist() == [[1, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 1, 0], [0, 0, 0, 0]]
    assert found.negative_share == pytest.approx(1 / 3)
    assert found.mean_cosine == pytest.approx(-1 / 3)
    assert found.effective_rank == pytest.approx(math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))))
    assert GradientCovariance(torch.ones(3, 3).double()).effective_rank == pytest.approx(1.0)
    assert math.isnan(GradientCovariance(torch.zeros(2, 2).double()).negative_share)


def test_samples_that_agree_stand_together():
    groups = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    cosines = (groups[:, None] == groups).double()
    ordered = groups[clustered(cosines, clusters=9)]
    assert len(torch.unique_consecutive(ordered)) == 3
    assert sorted(clustered(cosines).tolist()) == list(range(9))
    assert sorted(clustered(torch.zeros(9, 9).double()).tolist()) == list(range(9))
    assert cosine_picture(cosines, "net").image.shape == (400, 480, 3)


def test_clusters_are_the_same_again_and_move_no_random_stream():
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    cosines = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert torch.equal(clustered(cosines), clustered(cosines))
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def steady(model, monkeypatch):
    """Without noise in its targets, so that both sides make the same ones."""
    actor = getattr(model.policy, "actor", None)
    if hasattr(actor, "action_log_prob"):

        def without_noise(observations):
            mean, log_std, _ = actor.get_action_dist_params(observations)
            return torch.tanh(mean), log_std.sum(1)

        monkeypatch.setattr(actor, "action_log_prob", without_noise)
    for name, value in (("target_policy_noise", 0.0), ("max_grad_norm", 1e9)):
        if hasattr(model, name):
            monkeypatch.setattr(model, name, value)


def double_dqn():
    return DoubleDQN(
        "MlpPolicy", "CartPole-v1", seed=0, learning_starts=20, buffer_size=200, batch_size=8, device="cpu"
    )


def categorical_dqn():
    kwargs = {"n_bins": 11, "v_min": -1.0, "v_max": 3.0}
    settings = {"seed": 0, "learning_starts": 20, "buffer_size": 200, "batch_size": 8, "device": "cpu"}
    return CategoricalDQN("MlpPolicy", "CartPole-v1", policy_kwargs=kwargs, **settings)


TRAINED = {
    "DQN": (lambda: build("DQN"), "q_net"),
    "DQN, returns over three steps": (lambda: build("DQN", n_steps=3), "q_net"),
    "Double DQN": (double_dqn, "q_net"),
    "Categorical DQN": (categorical_dqn, "q_net"),
    "QR-DQN": (lambda: build("QR-DQN"), "quantile_net"),
    "DDPG": (lambda: build("DDPG"), "critic"),
    "TD3": (lambda: build("TD3"), "critic"),
    "SAC": (lambda: build("SAC"), "critic"),
    "SAC, fixed entropy coefficient": (lambda: build("SAC", ent_coef=0.3), "critic"),
    "TQC": (lambda: build("TQC"), "critic"),
}


@pytest.mark.parametrize(("make", "name"), TRAINED.values(), ids=TRAINED)
def test_the_loss_is_the_one_that_it_trains_on(make, name, monkeypatch):
    model = learn(make(), None)
    steady(model, monkeypatch)
    sample = model.replay_buffer.sample(32, env=model._vec_normalize_env)
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *args, **kwargs: sample)
    assert sample.dones.any()
    network = networks_of(model, batch_of(model), [name])[name]
    with torch.no_grad():  # the last layer the other way round, so that it likes other actions than its target network
        for parameter in list(network.parameters.values())[-2:]:
            parameter *= -1
    found = gradient(network, td_loss(model, name, 32, (0, 0)))
    optimizer = model.policy.optimizer if name != "critic" else model.critic.optimizer
    seen = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in network.parameters.values()]).clone())
    )
    model.train(1, 32)
    torch.testing.assert_close(found, seen[0], rtol=CLOSE, atol=CLOSE * float(seen[0].norm()))
    assert seen[0].norm() > 1e-3


def test_single_samples_have_the_gradient_of_the_loss_that_is_trained_on_too():
    model = learn(categorical_dqn(), None)
    network = networks_of(model, batch_of(model))["q_net"]
    objective = td_loss(model, "q_net", 8, (0, 0))
    torch.testing.assert_close(per_sample_gradients(network, objective).mean(0), gradient(network, objective))
    assert gradient(network, objective).norm() > 1e-3


def test_transitions_are_drawn_without_moving_anything():
    model = learn(build("SAC"), None)
    before = fingerprint(model)
    first, again, other = (td_loss(model, "critic", 8, seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert differences(before, fingerprint(model)) == []
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.targets, other.targets)


def test_hindsight_goals_are_not_made_up(monkeypatch):
    model = dqn(BitFlippingEnv(n_bits=4), "MultiInputPolicy", replay_buffer_class=HerReplayBuffer)
    model.learn(60)
    monkeypatch.setattr(HerReplayBuffer, "_get_virtual_samples", None)
    assert td_loss(model, "q_net", 8, (0, 0)).targets[1].shape == (8, 1)


class OtherLoss(type(build("DQN"))):
    def train(self, gradient_steps, batch_size=100):
        super().train(gradient_steps, batch_size)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: build("PPO"), "value"),
        (lambda: build("SAC"), "actor"),
        (lambda: build("CrossQ"), "critic"),
        (lambda: OtherLoss("MlpPolicy", "CartPole-v1"), "q_net"),
    ],
)
def test_a_loss_that_is_not_known_is_not_guessed(make, name):
    with pytest.raises(RuntimeError, match=f"no temporal-difference loss of .*'s {name} is known"):
        td_loss(make(), name, 8, (0, 0))


def test_more_transitions_than_there_are_are_refused():
    with pytest.raises(ValueError, match="batch_size is 8, but the buffer holds 0 transitions"):
        td_loss(build("DQN"), "q_net", 8, (0, 0))


@pytest.mark.parametrize("kind", [VECTORS, IMAGES])
def test_what_policy_and_value_share_has_gradients_of_both(kind):
    model = build("PPO", kind)
    batch, before = batch_of(model), fingerprint(model)
    for network in networks_of(model, batch).values():
        assert gradient_covariance(network, probe_loss(network, batch)).products.diagonal().min() > 0
    assert differences(before, fingerprint(model)) == []


@pytest.mark.parametrize(("name", "kind"), [("DQN", IMAGES), ("SAC", VECTORS), ("PPO", IMAGES), ("TQC", VECTORS)])
def test_networks_of_agents_are_vectorised(name, kind, monkeypatch):
    monkeypatch.setattr(room, "_of_row", None)
    model = build(name, kind)
    batch = batch_of(model)
    for network in networks_of(model, batch).values():
        assert per_sample_gradients(network, probe_loss(network, batch)).shape == (6, network.size)


def test_gradients_that_are_not_finite_are_not_taken_for_zero():
    products = torch.eye(4, dtype=torch.float64)
    products[1] = products[:, 1] = torch.nan
    covariance = GradientCovariance(products)
    assert covariance.cosines.isnan().sum() == 7
    for value in (covariance.negative_share, covariance.mean_cosine, covariance.effective_rank):
        assert math.isnan(value)
    zero = GradientCovariance(torch.diag(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)))
    assert zero.cosines.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


class LooksAtValues(nn.Linear):
    def forward(self, value):
        return super().forward(value) if value.sum() > -1e9 else value


def test_a_network_that_cannot_be_vectorised_is_differentiated_row_by_row():
    looking = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), LooksAtValues(4, 2))
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    plain.load_state_dict(looking.state_dict())
    batch = torch.randn(5, 3)
    found = per_sample_gradients(read := read_network(looking, batch), probe_loss(read, batch))
    expected = per_sample_gradients(read := read_network(plain, batch), probe_loss(read, batch))
    torch.testing.assert_close(found, expected)


def test_other_errors_of_a_network_are_not_hidden(monkeypatch):
    network = read_network(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(2, 3))
    objective = probe_loss(network, torch.ones(2, 3))
    monkeypatch.setattr(room, "_vectorised", lambda *_: torch.empty(2).add_(torch.empty(3)))
    with pytest.raises(RuntimeError, match="size of tensor"):
        per_sample_gradients(network, objective)
