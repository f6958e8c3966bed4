"""A monitor never ends a training that works without it: it warns once, with the reason, and does nothing more."""

import copy
import io
import re
import sys
import warnings

import pytest
import torch
from rl_zoo3.callbacks import ParallelTrainCallback
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_redo import DormancyCallback, ReDoCallback
from sb3_redo.interventions import ResetCallback
from sb3_redo.plasticity import PlasticityCallback
from tests.behaviour.test_refusals import REFUSED
from tests.helpers.algorithms import build
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import at_gradient_step, differences, dqn, fingerprint, hooks_of, sac


def told(model, callback, steps=80):
    """Train, and return the texts of all warnings."""
    before = hooks_of(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(steps, callback=callback)
    assert model.num_timesteps >= steps
    assert hooks_of(model) == before
    return [str(warning.message) for warning in caught]


UNKNOWN_NAMES = [case for case in REFUSED if case.endswith("does not have")]


@pytest.mark.parametrize("case", [case for case in REFUSED if case not in UNKNOWN_NAMES])
def test_what_cannot_be_measured_is_told_once(case):
    build, settings, message = REFUSED[case]
    (text,) = told(build(), DormancyCallback(**settings))
    assert text.startswith("DormancyCallback measures nothing from here on, and training continues: ")
    assert re.search(message, text)


@pytest.mark.parametrize("case", UNKNOWN_NAMES)
@pytest.mark.parametrize("monitor", [DormancyCallback, PlasticityCallback])
def test_a_name_that_the_model_does_not_have_stays_an_error(monitor, case):
    build, settings, message = REFUSED[case]
    model = build()
    with pytest.raises(RuntimeError, match=message):
        model.learn(80, callback=monitor(**settings))
    assert model.num_timesteps == 0
    assert hooks_of(model) == []


class Shrinking(BaseCallback):
    """Replaces the network by one of fewer layers when 40 steps have been made."""

    def _on_rollout_start(self):
        if self.num_timesteps == 40:
            policy = self.model.policy
            policy.q_net.q_net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            policy.q_net_target.q_net = copy.deepcopy(policy.q_net.q_net)
            policy.optimizer = torch.optim.Adam(policy.q_net.parameters())

    def _on_step(self):
        return True


def test_a_pattern_that_matches_nothing_in_a_network_replaced_later_ends_no_training():
    (text,) = told(dqn(), [Shrinking(), DormancyCallback(batch_size=16, exclude=["q_net.4"])])
    assert text.startswith("DormancyCallback measures nothing from here on")
    assert "exclude names 'q_net.4', which matches no layer" in text


class FailsInEvaluation(FlattenExtractor):
    """Fails in evaluation mode on as many observations as are measured on."""

    def forward(self, observations):
        if not self.training and len(observations) == 16:
            raise ValueError("not in evaluation mode")
        return super().forward(observations)


class DiffersOnMany(FlattenExtractor):
    """Leaves out a layer on as many observations as are measured on."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, observations):
        return super().forward(observations if len(observations) == 16 else self.layers(observations))


TRAININGS = {
    "a forward pass that fails in evaluation mode": lambda: dqn(
        policy_kwargs={"features_extractor_class": FailsInEvaluation}
    ),
    "a network that changes from pass to pass": lambda: dqn(policy_kwargs={"features_extractor_class": DiffersOnMany}),
    "a policy of linear layers alone": lambda: build("PPO", policy_kwargs={"net_arch": []}),
}


@pytest.mark.parametrize("make", TRAININGS.values(), ids=TRAININGS)
@pytest.mark.parametrize("monitor", [DormancyCallback, PlasticityCallback])
def test_training_is_what_it_is_without_where_measuring_fails(make, monitor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        left = []
        for callback in (None, monitor(measuring_period=5, batch_size=16)):
            model = make()
            model.learn(64, callback=callback)
            left.append(fingerprint(model))
    assert differences(*left) == []
    if monitor is DormancyCallback:
        assert len(told(make(), DormancyCallback(measuring_period=5, batch_size=16), 64)) == 1


def test_where_warnings_are_errors_the_log_is_told_and_training_goes_on(capsys):
    for make in TRAININGS.values():
        model = make()
        model.set_logger(Logger(None, [HumanOutputFormat(sys.stdout)]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.learn(64, callback=DormancyCallback(measuring_period=5, batch_size=16))
        assert capsys.readouterr().out.count("DormancyCallback measures nothing from here on") == 1


def test_what_fails_in_the_middle_of_a_train_call_is_told_once_and_other_callbacks_go_on(monkeypatch):
    model, other = dqn(train_freq=16, gradient_steps=16), DormancyCallback(0.2, measuring_period=4, batch_size=16)

    class Failing(DormancyCallback):
        def after_gradient_steps(self, before, gradient_step):
            if gradient_step == 10:
                raise IndexError("here")
            super().after_gradient_steps(before, gradient_step)

    failing = Failing(measuring_period=1, batch_size=16)
    texts = told(model, [failing, other])
    assert texts == ["Failing measures nothing from here on, and training continues: IndexError: here"]
    assert failing.memory.looked_at is not None
    assert other.gradient_step == model._n_updates
    assert other.report is not None
    assert model.dormancy_memory["gradient_steps"] == model._n_updates
    model.learn(40, callback=failing, reset_num_timesteps=False)  # begins anew in the next call


def test_weights_that_are_not_finite_are_told_once():
    model = dqn()
    at_gradient_step(model.policy.optimizer, 5, lambda: nn.init.constant_(model.q_net.q_net[0].weight, torch.nan))
    texts = told(model, DormancyCallback(measuring_period=5, batch_size=16))
    assert len([text for text in texts if "NaN or infinite" in text]) == 1


@pytest.mark.parametrize(
    "arrange",
    mostly_slow(
        {
            "in one list": lambda one, other: [one, other],
            "nested": lambda one, other: CallbackList([CallbackList([other]), one]),
            "in EveryNTimesteps": lambda one, other: [other, EveryNTimesteps(10, one)],
        },
        ["in one list"],
    ),
)
def test_beside_the_zoos_parallel_training_it_measures_nothing(monkeypatch, arrange):
    monkeypatch.setattr("tempfile.TemporaryFile", io.BytesIO)  # the zoo does not close its file
    texts = told(sac(train_freq=(1, "episode")), arrange(DormancyCallback(), ParallelTrainCallback()), 20)
    assert len([text for text in texts if "ParallelTrainCallback trains a copy" in text]) == 1


def test_where_nothing_of_training_is_heard_it_measures_nothing():
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1"), callback_on_new_best=DormancyCallback(batch_size=16), eval_freq=20, verbose=0
    )
    texts = told(dqn(), evaluation)
    assert len([text for text in texts if "callback_on_new_best is not called" in text]) == 1


def test_its_own_misuse_stays_an_error():
    with pytest.raises(TypeError, match="is a class: pass an instance"):
        dqn().learn(40, callback=DormancyCallback)
    with pytest.raises(TypeError, match="a list of callbacks holds a class"):
        dqn().learn(40, callback=[DormancyCallback])
    with pytest.raises(ValueError, match="measuring_period"):
        DormancyCallback(measuring_period=0)


def test_ctrl_c_in_a_measurement_ends_training():
    class Interrupted(DormancyCallback):
        def after_gradient_steps(self, before, gradient_step):
            raise KeyboardInterrupt

    model = dqn()
    with pytest.raises(KeyboardInterrupt):
        model.learn(80, callback=Interrupted())
    assert hooks_of(model) == []


@pytest.mark.parametrize("make", [lambda: ReDoCallback(batch_size=16), lambda: ResetCallback(period=5)])
def test_what_changes_a_network_ends_training_with_its_error(monkeypatch, make):
    def fail(*_, **__):
        raise IndexError("here")

    callback = make()
    monkeypatch.setattr(callback, "after_gradient_steps", fail)
    with pytest.raises(IndexError, match="here"):
        dqn().learn(80, callback=callback)
