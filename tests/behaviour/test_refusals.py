"""What can only be seen when training starts is refused then, with a RuntimeError that says why."""

import io

import pytest
import torch
from rl_zoo3.callbacks import ParallelTrainCallback
from sb3_contrib import ARS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_redo import DormancyCallback, ReDoCallback, measure_dormancy, recycle_dormant
from sb3_redo.sb3.agents import agent_of
from tests.helpers.runs import dqn, hooks_of, sac


class WithoutBias(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=8)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU())

    def forward(self, observations):
        return self.layers(observations)


def random_search():
    return ARS("LinearPolicy", "CartPole-v1", device="cpu")


class OtherAlgorithm(BaseAlgorithm):
    def __init__(self):
        pass

    _setup_model = learn = __init__


def two_environments():
    return dqn(make_vec_env("CartPole-v1", 2), buffer_size=31)


def without_bias():
    return dqn(policy_kwargs={"features_extractor_class": WithoutBias})


def without_hidden_layers(build):
    return build(policy_kwargs={"net_arch": []})


REFUSED = {
    "an algorithm that knows no gradients": (random_search, {}, "ARS is not supported: it .* without gradients"),
    "a batch that the buffer can never hold": (
        lambda: dqn(buffer_size=63),
        {},
        "batch_size is 64, but the replay buffer never holds more than 63 observations",
    ),
    "a batch that the buffer of two environments can never hold": (
        two_environments,
        {"batch_size": 31},
        "batch_size is 31, but the replay buffer never holds more than 30 observations",
    ),
    "a network that DQN does not have": (
        dqn,
        {"networks": ["q_net", "actor"]},
        "networks names 'actor', but the networks of DQN are 'q_net'",
    ),
    "a network that SAC does not have": (
        sac,
        {"networks": ["q_net"]},
        "networks names 'q_net', but the networks of SAC are 'actor', 'critic'",
    ),
    "DQN without a hidden layer": (lambda: without_hidden_layers(dqn), {}, r"nothing to measure in .*q_net\.q_net\.0"),
    "SAC without a hidden layer": (lambda: without_hidden_layers(sac), {}, r"nothing to measure in .*actor\.mu"),
    "an actor without a hidden layer": (
        lambda: sac(policy_kwargs={"net_arch": {"pi": [], "qf": [8]}}),
        {"networks": ["actor"]},
        r"nothing to measure in actor; the policy's wiring is\n(.*\n)*actor\.mu",
    ),
}


@pytest.mark.parametrize(("build", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_at_training_start(build, settings, message):
    model = build()
    with pytest.raises(RuntimeError, match=message):
        model.learn(80, callback=ReDoCallback(**settings))
    assert model.num_timesteps == 0
    assert hooks_of(model) == []


def test_an_unknown_algorithm_is_refused_beside_those_that_are_known():
    with pytest.raises(RuntimeError, match=r"OtherAlgorithm is not supported, only DQN, QRDQN, SAC, .* subclasses"):
        agent_of(OtherAlgorithm())


@pytest.mark.parametrize(
    "arrange",
    [
        lambda one, other: [one, other],
        lambda one, other: [CallbackList([one]), EveryNTimesteps(10, other)],
    ],
    ids=["in one list", "apart"],
)
def test_two_recyclers_are_refused(arrange):
    model = dqn()
    with pytest.raises(RuntimeError, match="two ReDoCallbacks would recycle the same neurons twice"):
        model.learn(40, callback=arrange(ReDoCallback(batch_size=16), ReDoCallback(0.5, batch_size=16)))
    assert hooks_of(model) == []


def test_a_place_where_nothing_of_training_is_heard_is_refused():
    model = dqn()
    evaluation = EvalCallback(make_vec_env("CartPole-v1"), callback_on_new_best=ReDoCallback(batch_size=16))
    with pytest.raises(RuntimeError, match="callback_on_new_best is not called during training"):
        model.learn(40, callback=evaluation)


def test_a_network_replaced_by_a_deeper_one_is_told_of_when_its_weights_are_needed():
    model = dqn()
    model.learn(30)
    deeper = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    model.q_net.q_net = deeper.append(nn.Linear(8, 2))
    model.policy.optimizer.add_param_group({"params": list(deeper.parameters())})
    report = measure_dormancy(model, 100.0, batch_size=16)
    with pytest.raises(RuntimeError, match=r"q_net\.q_net\.4\.weight is \(8, 8\), but .* model's policy_kwargs"):
        recycle_dormant(model, report)


def test_compensation_without_a_bias_to_write_to_is_refused_at_training_start():
    model = without_bias()
    model.learn(40, callback=ReDoCallback(batch_size=16))
    with pytest.raises(RuntimeError, match=r"compensate=True .* bias of q_net\.features_extractor\.layers\.2, which"):
        model.learn(40, callback=ReDoCallback(batch_size=16, compensate=True))
    assert hooks_of(model) == []


class Residual(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=8)
        self.one, self.two = nn.Linear(4, 8), nn.Linear(4, 8)

    def forward(self, observations):
        return torch.relu(self.one(observations) + self.two(observations))


def test_a_policy_that_can_be_measured_but_not_recycled_is_refused_by_redo_alone():
    model = dqn(policy_kwargs={"features_extractor_class": Residual, "net_arch": []})
    callback = DormancyCallback(batch_size=16)
    model.learn(40, callback=callback)
    assert [layer.name for layer in callback.report.layers] == [
        "q_net.features_extractor.one",
        "q_net.features_extractor.two",
    ]
    with pytest.raises(
        RuntimeError, match=r"no layer can be recycled:\nq_net\.features_extractor\.one: .* also fed by"
    ):
        model.learn(40, callback=ReDoCallback(batch_size=16))


@pytest.mark.parametrize(
    "arrange",
    [
        lambda ours, theirs: [ours, theirs],
        lambda ours, theirs: [theirs, ours],
        lambda ours, theirs: CallbackList([CallbackList([theirs]), ours]),
        lambda ours, theirs: [ours, EveryNTimesteps(10, theirs)],
    ],
    ids=["first", "last", "nested", "in EveryNTimesteps"],
)
def test_the_zoos_parallel_training_is_refused(monkeypatch, arrange):
    monkeypatch.setattr("tempfile.TemporaryFile", io.BytesIO)  # the zoo does not close its file
    model = sac(train_freq=(1, "episode"))
    with pytest.raises(RuntimeError, match=r"ParallelTrainCallback trains a copy .* Remove one of the two callbacks"):
        model.learn(20, callback=arrange(ReDoCallback(), ParallelTrainCallback()))
    assert hooks_of(model) == []
