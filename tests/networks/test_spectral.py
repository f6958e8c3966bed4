"""Spectral normalisation: of the right layers, of the right norm, in target networks too, and never written through."""

import copy

import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import get_parameters_by_name
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from sb3_redo import ReDoCallback, measure_dormancy, recycle_dormant
from sb3_redo.interventions import NormProjectionCallback, ResetCallback, WeightClippingCallback
from sb3_redo.networks import DuelingDQNMlpPolicy, InjectableDQNMlpPolicy
from sb3_redo.networks.spectral import SpectralNorm
from tests.helpers.algorithms import DICTIONARIES, IMAGES, VECTORS, build, learn, scalable
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import differences, fingerprint, reloaded


def agent(place="penultimate", name="DQN", kind=VECTORS, policy=None, settings=None, **policy_kwargs):
    kwargs = {"spectral_norm": place, **policy_kwargs}
    return build(name, kind, policy=policy or scalable(name, kind), policy_kwargs=kwargs, **(settings or {}))


def largest(weight):
    return float(torch.linalg.matrix_norm(weight.detach(), 2))


def normalised(model):
    return [path for path, module in model.policy.named_modules() if parametrize.is_parametrized(module)]


# The norm


def test_worked_numbers():
    # Singular values 5 and 1: a rotation, times 5 and 1, times a rotation.
    rotation = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    weight = rotation @ torch.diag(torch.tensor([5.0, 1.0])) @ rotation.T
    norm = SpectralNorm(weight)
    torch.testing.assert_close(norm(weight), weight / 5)
    torch.testing.assert_close(norm.running_u.abs(), torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_it_is_torchs_but_for_names(shape):
    layers = []
    for add in (parametrizations.spectral_norm, None):
        torch.manual_seed(0)
        layer = nn.Linear(*shape)
        if add is None:
            parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight.detach(), iterations=0))
        layers.append(layer if add is None else add(layer))
    theirs, ours = (layer.parametrizations.weight[0] for layer in layers)
    ours.running_u.copy_(theirs._u)
    ours.running_v.copy_(theirs._v)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.5) for layer in layers]
    for step in range(5):
        for layer, optimizer in zip(layers, optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            # Two passes before one backward pass, as actor-critic algorithms make.
            (layer(torch.randn(3, shape[0])).pow(2).sum() + layer(torch.randn(3, shape[0])).sum()).backward()
            optimizer.step()
        torch.testing.assert_close(layers[0].weight, layers[1].weight)
    torch.testing.assert_close(theirs._u, ours.running_u)


def test_power_iteration_goes_on_in_training_mode_only():
    layer = agent().q_net.q_net[2]
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    before = layer.parametrizations.weight[0].running_u.clone()
    layer.eval()
    assert torch.equal(layer.weight, layer.weight)
    assert torch.equal(before, layer.parametrizations.weight[0].running_u)
    layer.train()
    for _ in range(200):
        assert layer.weight is not None
    assert largest(layer.weight) == pytest.approx(1, rel=1e-4)


# Which layers


@pytest.mark.parametrize(
    ("name", "kind", "place", "settings", "expected"),
    [
        ("DQN", VECTORS, "penultimate", {}, ["q_net.2"]),
        ("DQN", VECTORS, "first", {}, ["q_net.0"]),
        ("DQN", IMAGES, "first", {}, ["features_extractor.linear.0"]),
        ("DQN", IMAGES, "penultimate", {}, ["q_net.2"]),
        ("DQN", IMAGES, "penultimate", {"net_arch": []}, ["features_extractor.linear.0"]),
        ("DQN", DICTIONARIES, "first", {}, ["features_extractor.extractors.camera.linear.0"]),
        ("DQN", DICTIONARIES, "penultimate", {}, ["q_net.2"]),
    ],
)
def test_the_layers_of_dqn_that_are_normalised(name, kind, place, settings, expected):
    model = agent(place, name, kind, **settings)
    assert normalised(model) == [f"{net}.{path}" for net in ("q_net", "q_net_target") for path in expected]


@pytest.mark.parametrize(
    ("name", "kind", "place", "expected"),
    [
        ("SAC", VECTORS, "penultimate", ["actor.latent_pi.2", "critic.qf0.2", "critic.qf1.2"]),
        ("SAC", VECTORS, "first", ["actor.latent_pi.0", "critic.qf0.0", "critic.qf1.0"]),
        ("TD3", VECTORS, "penultimate", ["actor.mu.2", "critic.qf0.2", "critic.qf1.2"]),
        ("PPO", VECTORS, "penultimate", ["mlp_extractor.policy_net.2", "mlp_extractor.value_net.2"]),
        ("PPO", IMAGES, "penultimate", ["features_extractor.linear.0"]),
        ("PPO", IMAGES, "first", ["features_extractor.linear.0"]),
    ],
)
def test_the_layers_of_actors_and_critics_that_are_normalised(name, kind, place, expected):
    model = agent(place, name, kind)
    assert [path for path in normalised(model) if "_target" not in path] == expected
    if name == "PPO":
        # SB3 initialised them orthogonally, before.
        original = model.policy.get_submodule(expected[0]).parametrizations.weight.original
        gram = original @ original.T if len(original) < original.shape[1] else original.T @ original
        torch.testing.assert_close(gram, 2 * torch.eye(len(gram)), atol=1e-4, rtol=1e-4)
        held = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
        assert held == {id(parameter) for parameter in model.policy.parameters()}


def test_both_streams_of_a_dueling_network_and_a_shared_extractor_once():
    streams = normalised(agent(policy=DuelingDQNMlpPolicy))
    assert streams[:2] == ["q_net.value.2", "q_net.advantage.2"]
    shared = agent("first", "SAC", IMAGES, share_features_extractor=True)
    assert len(shared.critic.features_extractor.linear[0].parametrizations.weight) == 1


def test_an_initialiser_fills_the_weights_and_not_their_quotients():
    layer = agent(initializer="orthogonal").q_net.q_net[2]
    torch.testing.assert_close(layer.parametrizations.weight.original @ layer.weight.T, torch.eye(8))
    assert not layer.bias.any()


# In training


@pytest.mark.parametrize("name", ["DQN", pytest.param("SAC", marks=pytest.mark.slow)])
def test_target_networks_normalise_with_the_vectors_of_the_weights_they_follow(name):
    copying = {"target_update_interval": 1, "tau": 1.0}
    model = agent(name=name, settings={"learning_rate": 0.05, **copying})
    network, target = (model.q_net, model.q_net_target) if name == "DQN" else (model.critic, model.critic_target)
    before = get_parameters_by_name(network, ["running_"])[0].clone()
    learn(model, None, 60, name=name)
    if name == "DQN":
        model._on_step()  # where it copies: before it trains again
    (layer, *_), (twin, *_) = (
        [module for module in net.modules() if parametrize.is_parametrized(module)] for net in (network, target)
    )
    assert torch.equal(layer.eval().weight, twin.weight)
    assert not torch.allclose(before, layer.parametrizations.weight[0].running_u, atol=0.01)


def test_a_target_network_that_is_an_average_has_about_the_norm_of_one():
    model, largest = agent(name="TD3", settings={"learning_rate": 0.01, "gradient_steps": 1, "train_freq": 1}), []

    class Norms(BaseCallback):
        def _on_step(self):
            twins = [module for module in model.critic_target.modules() if parametrize.is_parametrized(module)]
            largest.extend(float(torch.linalg.matrix_norm(twin.weight.detach(), 2)) for twin in twins)
            return True

    model.learn(200, callback=Norms())
    assert max(largest) < 1.3


@pytest.mark.parametrize("name", mostly_slow(["DQN", "SAC", "PPO"], ["DQN"]))
def test_a_run_saved_and_continued_is_the_uninterrupted_run(name, tmp_path):
    steps = 48 if name == "PPO" else 40

    def recycling():
        return ReDoCallback(1.0, recycling_period=11, measuring_period=11, batch_size=8)

    def make():
        return agent(name=name, net_arch=[8, 8, 8])

    uninterrupted = fingerprint(learn(make(), recycling(), 2 * steps))
    first = learn(make(), recycling(), steps)
    continued = learn(reloaded(first, tmp_path), recycling(), steps)
    assert continued.dormancy_memory["recycled_total"] > 0
    assert differences(uninterrupted, fingerprint(continued)) == []


# What others may write to


def test_a_normalised_layer_and_what_feeds_it_are_measured_and_never_recycled():
    model = agent(net_arch=[8, 8, 8, 8])
    model.learn(40)
    report = measure_dormancy(model, 1e9, batch_size=8)
    reasons = {layer.name: layer.reason for layer in report.wiring}
    assert reasons == {
        "q_net.q_net.0": None,
        "q_net.q_net.2": None,
        "q_net.q_net.4": "q_net.q_net.6's weights are computed from other parameters",
        "q_net.q_net.6": "its weights are computed from other parameters",
    }
    assert all(layer.dormant.all() for layer in report.layers)
    left = [*model.q_net.q_net[6].parameters(), *model.q_net.q_net[6].buffers()]
    before = [tensor.clone() for tensor in left]
    record = recycle_dormant(model, report)
    assert set(record.neurons) == {"q_net.q_net.0", "q_net.q_net.2"}
    assert all(torch.equal(one, other) for one, other in zip(left, before, strict=True))


def test_redo_refuses_where_nothing_is_left_to_recycle():
    with pytest.raises(
        RuntimeError, match=r"no layer can be recycled(.|\n)*weights are computed from other parameters"
    ):
        learn(agent(), ReDoCallback(), 40)


def test_a_reset_renews_weights_with_their_singular_vectors():
    model = agent()
    learn(model, ResetCallback(layers=["q_net.q_net.2"], period=8, stop=9), 29)
    layer, twin = model.q_net.q_net[2].eval(), model.q_net_target.q_net[2]
    assert model._n_updates == 12
    learn(model, ResetCallback(layers=["q_net.q_net.2"], period=4), 4)
    assert model._n_updates == 16
    for one, other in ((layer.bias, twin.bias), *zip(layer.buffers(), twin.buffers(), strict=True)):
        assert torch.equal(one, other)
    original = layer.parametrizations.weight.original
    assert torch.equal(original, twin.parametrizations.weight.original)
    # One estimate by a fresh policy's fifteen iterations.
    assert largest(original) / largest(layer.eval().weight) == pytest.approx(largest(original), rel=0.05)


def test_constraints_on_weights_leave_normalised_ones_alone():
    model = agent()
    learn(model, [WeightClippingCallback(0.01), NormProjectionCallback()], 40)
    assert model.q_net.q_net[0].weight.abs().max() < 0.5
    assert largest(model.q_net.q_net[2].parametrizations.weight.original) > 0.3


@pytest.mark.parametrize(
    ("place", "settings", "message"),
    [
        ("penultimat", {}, "spectral_norm must be one of 'penultimate', 'first', .* did you mean 'penultimate'"),
        ("penultimate", {"net_arch": []}, "spectral_norm='penultimate' needs a hidden linear layer"),
        ("first", {"net_arch": []}, "give a net_arch"),
    ],
)
def test_what_makes_no_sense_is_refused(place, settings, message):
    with pytest.raises(ValueError, match=message):
        agent(place, **settings)


def test_an_injection_into_normalised_heads_changes_no_output_in_training_mode():
    model = DQN(InjectableDQNMlpPolicy, "CartPole-v1", policy_kwargs={"spectral_norm": "penultimate"}, seed=0)
    plain, injected = model.q_net, copy.deepcopy(model.q_net)
    injected.inject()
    observations = torch.randn(9, 4)
    for network in (plain, injected):
        network.train()
    for _ in range(3):
        assert torch.equal(plain(observations), injected(observations))
