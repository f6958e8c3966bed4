"""Measuring and recycling a model by hand."""

import copy

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import EveryNTimesteps
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_redo import DormancyCallback, ReDoCallback, measure_dormancy, recycle_dormant, trace_wiring
from sb3_redo.sb3 import model as model_module
from sb3_redo.sb3.measuring import trace_model
from sb3_redo.sb3.model import initial_weights_of
from tests.helpers.algorithms import build
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import dqn, hooks_of


def trained(**settings):
    model = dqn(**settings)
    model.learn(40)
    return model


def test_measuring_draws_from_the_buffer_or_takes_what_is_given():
    model = trained()
    report = measure_dormancy(model, batch_size=16)
    given = measure_dormancy(model, observations=model.replay_buffer.observations[:16, 0])
    assert [layer.name for layer in report.layers] == [layer.name for layer in given.layers]


def test_recycling_by_hand_is_decided_by_its_seed():
    model = trained()
    report = measure_dormancy(model, dormancy_threshold=0.8, batch_size=16)
    weights = []
    for seed in (1, 1, 2):
        twin = copy.deepcopy(model.policy.state_dict())
        record = recycle_dormant(model, report, seed=seed)
        weights.append(torch.cat([value.flatten() for value in model.policy.state_dict().values()]))
        model.policy.load_state_dict(twin)
    assert record.recycled > 0
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_activations_that_are_not_finite_are_said_and_nothing_is_recycled():
    model = trained()
    with torch.no_grad():
        model.q_net.q_net[2].weight[0, 0] = float("nan")
    with pytest.warns(RuntimeWarning, match=r"activations of q_net\.q_net\.2 are NaN or infinite"):
        report = measure_dormancy(model, dormancy_threshold=0.8, batch_size=16)
    assert "activations are NaN or infinite" in str(report)
    assert recycle_dormant(model, report).recycled == 0


def test_recycling_before_training_does_not_pass_for_an_initialisation_by_hand():
    model = dqn()
    observations = np.random.default_rng(0).normal(size=(32, *model.observation_space.shape)).astype(np.float32)
    assert recycle_dormant(model, measure_dormancy(model, 0.8, observations=observations)).recycled > 0
    assert initial_weights_of(model).samples == {}


def test_layers_in_none_of_a_models_optimizers_are_measured_only():
    model = dqn()
    layers = model.q_net.q_net
    model.policy.optimizer = torch.optim.Adam([*layers[2].parameters(), *layers[4].parameters()])
    (first, second) = trace_wiring(model)
    assert first.reason == "its weights are in none of the optimizers"
    assert second.reason is None
    with pytest.raises(TypeError, match="optimizers is for torch modules: of a model it is known"):
        trace_wiring(model, optimizers=model.policy.optimizer)


def test_layers_that_were_frozen_after_a_model_was_measured_are_left_out():
    model = trained()
    report = measure_dormancy(model, dormancy_threshold=0.8, batch_size=16)
    model.q_net.q_net[0].requires_grad_(False)
    before = [parameter.clone() for parameter in model.q_net.q_net[0].parameters()]
    with pytest.warns(
        RuntimeWarning, match=r"q_net\.q_net\.0 is not recycled: the weight of q_net\.q_net\.0 was frozen"
    ):
        record = recycle_dormant(model, report)
    assert record.neurons.keys() == {"q_net.q_net.2"}
    assert all(map(torch.equal, before, model.q_net.q_net[0].parameters()))


class DrawsFromNumpy(FlattenExtractor):
    """Uses NumPy's global stream in its constructor, as a custom initialiser may."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.scale = np.random.uniform(0.5, 1.5)


def test_building_a_fresh_policy_moves_no_stream_of_numpy():
    model = dqn(policy_kwargs={"features_extractor_class": DrawsFromNumpy, "net_arch": [8]})
    before = np.random.get_state()[1].tolist(), np.random.get_state()[2]
    initial_weights_of(model)
    assert (np.random.get_state()[1].tolist(), np.random.get_state()[2]) == before


def test_no_hook_is_left_behind_inside_an_event_callback():
    model, callback = dqn(), EveryNTimesteps(10, ReDoCallback(0.5, 10, 16))
    model.learn(60, callback=callback)
    assert hooks_of(model) == []
    assert "on_training_end" not in callback.__dict__


TRACED = ["DQN", "SAC", "CrossQ", "PPO", "RecurrentPPO"]


@pytest.mark.parametrize("name", mostly_slow(TRACED, {"CrossQ", "RecurrentPPO"}))
def test_an_unchanged_network_is_traced_once(name, monkeypatch):
    traced = []
    real = model_module.trace_wiring
    monkeypatch.setattr(model_module, "trace_wiring", lambda *args, **kw: traced.append(1) or real(*args, **kw))
    model, reports = build(name), []
    for _ in range(3):
        callback = DormancyCallback(measuring_period=4, batch_size=8)
        model.learn(64, callback=callback, reset_num_timesteps=False)
        reports.append(callback.report)
    measure_dormancy(model, batch_size=8)
    calls = 2 if name == "RecurrentPPO" else 1  # where no episode starts, it runs its LSTM by another way
    assert len(traced) == calls
    assert all(repr(report.wiring) == repr(trace_model(model)) for report in reports)
    part = model.policy if name in ("PPO", "RecurrentPPO") else getattr(model, "critic", model.policy)
    next(part.parameters()).requires_grad_(False)
    model.learn(64, callback=DormancyCallback(measuring_period=4, batch_size=8), reset_num_timesteps=False)
    assert len(traced) == calls + 1
    assert "wiring" not in str(vars(model).keys())
