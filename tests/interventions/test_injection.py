"""Plasticity injection: no output changes, the fresh head learns, and all else of the head is frozen."""

import copy
import zipfile

import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_redo import DormancyCallback, ReDoCallback, measure_dormancy
from sb3_redo.algorithms import DoubleDQN, DrQ
from sb3_redo.interventions import (
    ContinualBackpropCallback,
    GradientReDoCallback,
    PlasticityInjectionCallback,
    RegenerativeCallback,
    ResetCallback,
    ShrinkAndPerturbCallback,
)
from sb3_redo.networks import (
    DQNMlpPolicy,
    InjectableDQNCnnPolicy,
    InjectableDQNMlpPolicy,
    InjectableDQNMultiInputPolicy,
)
from sb3_redo.zoo.policy_names import algorithms_of, scalable_policy
from sb3_redo.zoo.saved_agents import algorithm_of
from sb3_redo.zoo.sources import find_model
from tests.helpers.algorithms import DICTIONARIES, DISCRETE, IMAGES, OBSERVATIONS, VECTORS, build, learn
from tests.helpers.marks import alternating
from tests.helpers.runs import Corridor, Tape, at_gradient_step, differences, fingerprint, reloaded

POLICIES = {
    VECTORS: InjectableDQNMlpPolicy,
    IMAGES: InjectableDQNCnnPolicy,
    DICTIONARIES: InjectableDQNMultiInputPolicy,
}
EVERY_KIND = pytest.mark.parametrize("kind", POLICIES)


def agent(kind=VECTORS, settings=None, policy=None, **policy_kwargs):
    kwargs = {"features_extractor_kwargs": {}} if kind == IMAGES else {}
    return build(
        "DQN", kind, policy=policy or POLICIES[kind], policy_kwargs={**kwargs, **policy_kwargs}, **settings or {}
    )


def values(network, observations):
    with torch.no_grad():
        return network(observations).clone()


def state_of(module):
    return copy.deepcopy(module.state_dict())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What is computed


def test_worked_numbers():
    model = agent(net_arch=[])
    network, original, added = model.q_net, model.q_net.q_net[0], model.q_net.added[0][0]
    with torch.no_grad():
        original.weight.copy_(torch.tensor([[1.0, 0.0, 0.0]] * 3))
        added.weight.copy_(torch.tensor([[5.0, 6.0, 7.0]] * 3))
        for layer in (original, added):
            layer.bias.zero_()
    observation = torch.tensor([[1.0, 2.0, 3.0]])
    assert values(network, observation).tolist() == [[1.0] * 3]
    assert model.policy.inject_plasticity() == 1
    assert values(network, observation).tolist() == [[1.0] * 3]
    with torch.no_grad():
        added.weight[:, 1] += 10.0
        added.bias += 0.5
    # h = 1, a = 5 + 2 * 16 + 21 + 0.5 and s = 5 + 2 * 6 + 21.
    assert values(network, observation).tolist() == [[1.0 + 20.0 + 0.5] * 3]


@EVERY_KIND
def test_no_output_of_either_network_changes_at_the_injection(kind):
    model = agent(kind)
    model.learn(60)
    observations = model.replay_buffer.sample(8).observations
    before = [values(network, observations) for network in (model.q_net, model.q_net_target)]
    assert not torch.equal(*before)
    model.policy.inject_plasticity()
    after = [values(network, observations) for network in (model.q_net, model.q_net_target)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_of_images_the_head_is_what_follows_the_convolutions():
    model = agent(IMAGES, net_arch=None)
    for head in (model.q_net.q_net, model.q_net.added[0], model.q_net.subtracted[0]):
        sizes = [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)]
        assert sizes == [(256, 512), (512, 3)]
    assert [type(layer) for layer in model.q_net.features_extractor.linear] == []
    wide = agent(IMAGES, net_arch=None, width=0.25, extractor="impala", activation="silu", layer_norm=True)
    assert [type(layer).__name__ for layer in wide.q_net.added[0]] == ["Linear", "LayerNorm", "SiLU", "Linear"]
    assert wide.q_net.q_net[0].out_features == 128


@pytest.mark.parametrize("settings", [{"activation": "crelu"}, {"spectral_norm": "first"}, {"activation": "fourier"}])
def test_heads_take_the_other_settings_of_the_policy(settings):
    model = agent(**settings)
    learn(model, PlasticityInjectionCallback(8), 60)
    assert str(model.q_net.added[0]) == str(model.q_net.subtracted[0]) == str(model.q_net.q_net)


# What is trained


@pytest.mark.parametrize(("optimizer", "kind"), alternating([torch.optim.Adam, torch.optim.AdamW], list(POLICIES)))
def test_only_the_fresh_head_and_the_features_are_trained(kind, optimizer):
    model = agent(kind, optimizer_class=optimizer)
    model.learn(40)
    model.policy.inject_plasticity()
    heads = (model.q_net.q_net, model.q_net.added[0], model.q_net.subtracted[0])
    before = [state_of(head) for head in heads]
    features = state_of(model.q_net.features_extractor)
    learn(model, None, 40)
    assert [same(one, head.state_dict()) for one, head in zip(before, heads, strict=True)] == [True, False, True]
    moved = [bool((model.q_net.added[0].state_dict()[name] != tensor).any()) for name, tensor in before[1].items()]
    assert all(moved)
    if kind != VECTORS:
        assert not same(features, model.q_net.features_extractor.state_dict())


def test_the_optimizer_holds_the_fresh_head_from_the_start_and_begins_with_it_at_nothing():
    model = agent()
    held = {id(parameter) for group in model.policy.optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in model.q_net.added.parameters()} <= held
    learn(model, PlasticityInjectionCallback(17), 60)
    optimizer = model.policy.optimizer
    assert model._n_updates == 40
    assert {int(optimizer.state[parameter]["step"]) for parameter in model.q_net.added.parameters()} == {23}
    assert {int(optimizer.state[parameter]["step"]) for parameter in model.q_net.q_net.parameters()} == {17}
    assert all(parameter not in optimizer.state for parameter in model.q_net.subtracted.parameters())


def test_the_first_gradient_of_the_fresh_head_is_that_of_its_output():
    model = agent(net_arch=[])
    model.policy.inject_plasticity()
    observations = torch.randn(5, 3)
    model.q_net(observations)[:, 1].sum().backward()
    expected = torch.zeros(3, 3)
    expected[1] = observations.sum(0)
    torch.testing.assert_close(model.q_net.added[0][0].weight.grad, expected)
    assert model.q_net.q_net[0].weight.grad is None
    assert model.q_net.subtracted[0][0].weight.grad is None


def test_a_gradient_left_from_before_does_not_move_the_frozen_head():
    model = agent(settings={"learning_starts": 0})
    model.policy.optimizer = torch.optim.SGD(model.q_net.parameters(), lr=1.0, momentum=0.9)
    model.q_net(torch.randn(4, 3)).sum().backward()
    model.policy.optimizer.step()
    model.policy.inject_plasticity()
    before = state_of(model.q_net.q_net)
    model.policy.optimizer.step()
    assert same(before, model.q_net.q_net.state_dict())


def test_until_the_injection_training_is_that_of_the_plain_policy():
    plain, roomy = (fingerprint(learn(agent(policy=policy), None, 80)) for policy in (DQNMlpPolicy, None))
    for left in (plain, roomy):
        del left["optimizers"], left["modes"], left["gradients"]
    weights = {name: tensor for name, tensor in roomy.pop("weights").items() if is_of_plain(name)}
    assert weights == plain.pop("weights")
    assert differences(plain, roomy) == []


def is_of_plain(name):
    return not any(part in name for part in ("added", "subtracted", "_extra_state"))


def test_fresh_heads_are_fresh_and_follow_the_seed():
    networks = [agent(settings={"seed": seed}).q_net for seed in (1, 1, 2)]
    heads = [state_of(network.added) for network in networks]
    assert same(heads[0], heads[1])
    assert not same(heads[0], heads[2])
    assert not same(state_of(networks[0].q_net), state_of(networks[0].added[0]))
    two = agent(injections=2).q_net
    assert not same(state_of(two.added[0]), state_of(two.added[1]))


def test_what_an_intervention_did_to_the_unused_head_does_not_show():
    model = agent()
    with torch.no_grad():
        for parameter in model.q_net.added.parameters():
            parameter.add_(1.0)
    observations = torch.randn(4, 3)
    before = values(model.q_net, observations)
    model.policy.inject_plasticity()
    assert torch.equal(values(model.q_net, observations), before)
    assert torch.equal(values(model.q_net_target, observations), before)


# In training


def images_for_drq():
    env = DummyVecEnv([lambda: Corridor(7, OBSERVATIONS[IMAGES], spaces.Discrete(3))])
    settings = {"learning_starts": 20, "batch_size": 8, "buffer_size": 200, "gradient_steps": 4, "seed": 0}
    return DrQ(InjectableDQNCnnPolicy, env, policy_kwargs={"net_arch": [8]}, **settings)


def double():
    env = DummyVecEnv([lambda: Corridor(7, OBSERVATIONS[VECTORS], DISCRETE)])
    settings = {"learning_starts": 20, "batch_size": 8, "buffer_size": 200, "gradient_steps": 4, "seed": 0}
    return DoubleDQN(InjectableDQNMlpPolicy, env, policy_kwargs={"net_arch": [8]}, **settings)


@pytest.mark.parametrize("make", [agent, double, images_for_drq], ids=["dqn", "double_dqn", "drq"])
def test_the_callback_injects_at_its_gradient_step_inside_train(make):
    model, tape, seen = make(), Tape(), []
    at_gradient_step(model.policy.optimizer, 14, lambda: seen.append(model.q_net.injections))
    learn(model, PlasticityInjectionCallback(14), 60, tape)
    assert seen == [0]  # this hook was there before the callback's
    assert model.q_net.injections == model.q_net_target.injections == 1
    assert {int(model.policy.optimizer.state[p]["step"]) for p in model.q_net.added.parameters()} == {
        model._n_updates - 14
    }
    head = sum(parameter.numel() for parameter in model.q_net.q_net.parameters())
    assert tape.values("injection/total") == [1]
    assert tape.values("injection/parameters") == [head]
    assert model._n_updates % 4 == 0


def test_the_target_network_follows_all_heads():
    model = agent(settings={"target_update_interval": 4})
    learn(model, PlasticityInjectionCallback(8), 60)
    for _ in range(4):
        model._on_step()
    observations = torch.randn(6, 3)
    assert torch.equal(values(model.q_net, observations), values(model.q_net_target, observations))
    assert same(model.q_net.state_dict(), model.q_net_target.state_dict())


def test_injections_repeat_without_nesting():
    model = agent(injections=2)
    parameters, names = sum(p.numel() for p in model.q_net.parameters()), list(model.q_net.state_dict())
    learn(model, PlasticityInjectionCallback([8, 20]), 40)
    observations, trained = torch.randn(6, 3), state_of(model.q_net.added[0])
    before = values(model.q_net, observations)
    assert model.q_net.injections == 2
    assert sum(p.numel() for p in model.q_net.parameters()) == parameters
    assert list(model.q_net.state_dict()) == names
    assert same(trained, model.q_net.added[0].state_dict())
    assert not same(trained, model.q_net.subtracted[0].state_dict())
    trainable = {name for name, parameter in model.q_net.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.q_net.named_parameters() if name.startswith("added.1")}
    learn(model, None, 20)
    assert same(trained, model.q_net.added[0].state_dict())
    assert not torch.equal(before, values(model.q_net, observations))
    with pytest.raises(RuntimeError, match=r"injected 2 times already, .* give policy_kwargs={'injections': 3}"):
        model.policy.inject_plasticity()


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        pytest.param(VECTORS, 8, id="saved after"),
        pytest.param(VECTORS, 27, id="saved before"),
        pytest.param(IMAGES, 8, marks=pytest.mark.slow),
        pytest.param(DICTIONARIES, 8, marks=pytest.mark.slow),
    ],
)
def test_a_run_saved_and_continued_is_the_uninterrupted_run(kind, at, tmp_path):
    def injecting():
        recycling = ReDoCallback(0.8, recycling_period=7, measuring_period=7, batch_size=8)
        return [recycling, PlasticityInjectionCallback(at)]

    whole, parts = Tape(), Tape()
    uninterrupted = fingerprint(learn(agent(kind), injecting(), 80, whole))
    first = learn(agent(kind), injecting(), 40, parts)
    loaded = reloaded(first, tmp_path)
    flags = [parameter.requires_grad for parameter in first.policy.parameters()]
    assert [parameter.requires_grad for parameter in loaded.policy.parameters()] == flags
    continued = learn(loaded, injecting(), 40, parts)
    assert continued.q_net.injections == 1
    assert parts.points == whole.points
    assert differences(uninterrupted, fingerprint(continued)) == []


def test_a_policy_saved_alone_comes_back(tmp_path):
    policy = agent(injections=2).policy
    policy.inject_plasticity()
    policy.save(tmp_path / "policy")
    loaded = InjectableDQNMlpPolicy.load(tmp_path / "policy", device="cpu")
    assert loaded.q_net.injections == 1
    assert loaded.room == 2
    assert same(policy.state_dict(), loaded.state_dict())


def test_a_loaded_agent_acts_as_the_saved_one(tmp_path):
    model = learn(agent(), PlasticityInjectionCallback(8), 60)
    model.save(tmp_path / "agent")
    loaded = DQN.load(tmp_path / "agent")
    observations = torch.randn(6, 3)
    assert torch.equal(values(model.q_net, observations), values(loaded.q_net, observations))
    assert zipfile.is_zipfile(tmp_path / "agent.zip")
    assert algorithm_of(find_model(tmp_path / "agent.zip"), None) == "dqn"


# Beside dormancy


@pytest.mark.parametrize("first", [True, False])
def test_measuring_and_recycling_go_on_with_the_new_heads(first):
    measuring = [ReDoCallback(0.9, recycling_period=5, measuring_period=5, batch_size=8)]
    injecting, tape = [PlasticityInjectionCallback(10)], Tape()
    model = agent()
    frozen = []
    at_gradient_step(model.policy.optimizer, 11, lambda: frozen.append(state_of(model.q_net.q_net)))
    learn(model, measuring + injecting if first else injecting + measuring, 80, tape)
    assert same(frozen[0], model.q_net.q_net.state_dict())
    report = measuring[0].report
    reasons = {layer.name: layer.reason for layer in report.wiring}
    assert reasons == {
        "q_net.q_net.0": "its weights are frozen",
        "q_net.q_net.2": "its weights are frozen",
        "q_net.added.0.0": None,
        "q_net.added.0.2": None,
        "q_net.subtracted.0.0": "its weights are frozen",
        "q_net.subtracted.0.2": "its weights are frozen",
    }
    assert len(report.layers) == 6
    assert tape.values("redo/recycled_total")[-1] > tape.values("redo/recycled_total")[1] > 0


def test_a_monitor_that_cannot_read_the_new_heads_ends_no_training():
    class Failing(DormancyCallback):
        def rewire(self):
            raise RuntimeError("here")

    model = agent()
    with pytest.warns(RuntimeWarning, match="Failing measures nothing from here on, and training continues: here"):
        learn(model, [PlasticityInjectionCallback(10), Failing(measuring_period=5, batch_size=8)], 80)
    assert model.q_net.injections == 1


def test_of_images_all_but_the_last_convolution_are_recyclable_afterwards():
    model = agent(IMAGES)
    learn(model, [DormancyCallback(measuring_period=5, batch_size=8), PlasticityInjectionCallback(8)], 60)
    report = measure_dormancy(model, batch_size=8)
    recyclable = {layer.name.removeprefix("q_net."): layer.recyclable for layer in report.layers}
    assert [name for name, yes in recyclable.items() if yes] == [
        "features_extractor.cnn.0",
        "features_extractor.cnn.2",
        "added.0.0",
        "added.0.2",
    ]
    assert report.wiring["q_net.features_extractor.cnn.4"].reason == "q_net.q_net.0's weights are frozen"


# Names and refusals


def test_the_names_are_known():
    for kind, policy in POLICIES.items():
        path = f"sb3_redo.networks.{policy.__name__}"
        assert scalable_policy("drq", path) == path
        assert algorithms_of(policy.__name__) == ("dqn", "double_dqn", "drq")
        assert kind in path
    with pytest.raises(ValueError, match="the policy of sac must be one of"):
        scalable_policy("sac", "sb3_redo.networks.InjectableDQNMlpPolicy")


@pytest.mark.parametrize(
    ("make", "others", "message"),
    [
        (lambda: build("DQN"), [], "a DQNPolicy has no room for new heads: use .*InjectableDQNMlpPolicy"),
        (lambda: build("SAC"), [], "a SACPolicy has no room for new heads"),
        (lambda: agent(policy=DQNMlpPolicy), [], "a DQNMlpPolicy has no room"),
        (agent, [ResetCallback()], "ResetCallback keeps to the parameters that are trained when training starts"),
        (agent, [ShrinkAndPerturbCallback()], "ShrinkAndPerturbCallback keeps to"),
        (agent, [RegenerativeCallback()], "RegenerativeCallback keeps to"),
        (agent, [GradientReDoCallback()], "GradientReDoCallback keeps to"),
        (agent, [ContinualBackpropCallback()], "ContinualBackpropCallback keeps to"),
        (agent, [PlasticityInjectionCallback(9)], "there are two PlasticityInjectionCallbacks"),
    ],
)
def test_what_cannot_work_is_refused_when_training_starts(make, others, message):
    with pytest.raises(RuntimeError, match=message):
        learn(make(), [PlasticityInjectionCallback(8), *others], 40)


def test_more_injections_than_there_is_room_for_are_refused():
    with pytest.raises(RuntimeError, match=r"at lists 2 injections, .* room for 1: give .*'injections': 2"):
        learn(agent(), PlasticityInjectionCallback([8, 9]), 40)


def test_a_step_that_is_over_is_refused():
    model = learn(agent(injections=2), None, 60)
    with pytest.raises(RuntimeError, match=r"at is \[8\], but this model has made 40 gradient steps with 0 injections"):
        learn(model, PlasticityInjectionCallback(8), 20)
    learn(model, PlasticityInjectionCallback(44), 20)
    with pytest.raises(RuntimeError, match=r"at is \[80\], .* with 1 injections: list its past injections"):
        learn(model, PlasticityInjectionCallback(80), 20)
    learn(model, PlasticityInjectionCallback([44, 80]), 40)
    assert model.q_net.injections == 2


@pytest.mark.parametrize(
    ("at", "error", "message"),
    [
        (0, ValueError, "at must be at least 1"),
        ([], ValueError, "at must list gradient steps in ascending order"),
        ([20, 10], ValueError, "in ascending order, got"),
        ([10, 10], ValueError, "in ascending order"),
        ("10", TypeError, "at must be a list, got '10'"),
        ([1.5], TypeError, "at must be an integer, got 1.5"),
    ],
)
def test_wrong_settings_of_the_callback_are_refused(at, error, message):
    with pytest.raises(error, match=message):
        PlasticityInjectionCallback(at)


@pytest.mark.parametrize(
    ("kind", "settings", "error", "message"),
    [
        (VECTORS, {"injections": 0}, ValueError, "injections must be at least 1, got 0"),
        (VECTORS, {"injections": "1"}, TypeError, "injections must be an integer"),
        (IMAGES, {"features_extractor_kwargs": {"features_dim": 8}}, ValueError, "give net_arch="),
        (VECTORS, {"widht": 2}, TypeError, "InjectableDQNMlpPolicy has no setting 'widht'; did you mean 'width'"),
    ],
)
def test_wrong_settings_of_the_policy_are_refused(kind, settings, error, message):
    with pytest.raises(error, match=message):
        agent(kind, **settings)
