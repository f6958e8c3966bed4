"""Measuring and recycling happen right after the gradient step that is due, and leave no hook behind."""

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

import sb3_redo.callbacks.redo
from sb3_redo import DormancyCallback, ReDoCallback
from sb3_redo.callbacks.step_hooks import StepHooks
from sb3_redo.interventions import (
    ContinualBackpropCallback,
    FireCallback,
    GradientReDoCallback,
    NormProjectionCallback,
    OptimizerResetCallback,
    ParsevalCallback,
    PruningCallback,
    RegenerativeCallback,
    ResetCallback,
)
from sb3_redo.plasticity import BrownianMotionCallback, PlasticityCallback
from sb3_redo.sb3.model import gradient_steps_of
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import Tape, at_gradient_step, differences, dqn, fingerprint, hooks_of, sac


class BrokenError(Exception):
    pass


def fail(*_, **__):
    raise BrokenError


class FailsAtStep40(BaseCallback):
    def _on_step(self):
        return fail() if self.num_timesteps == 40 else True


def recycling(period, measuring_period=1000):
    return ReDoCallback(0.5, recycling_period=period, measuring_period=measuring_period, batch_size=16)


# Exact steps


def test_a_long_train_call_recycles_inside_right_after_the_step_that_reaches_each_multiple(tape):
    model = tape.watch(dqn(learning_starts=50, train_freq=100, gradient_steps=300))
    model.learn(100, callback=recycling(30, measuring_period=75))
    expected = ["measured"]
    for step in range(1, 301):
        expected += ["policy.optimizer step", *["measured"] * (step % 75 == 0), *["recycled"] * (step % 30 == 0)]
    assert [name for name, _ in tape.events] == expected
    assert tape.values("dormancy/gradient_step") == [0, 75, 150, 225, 300]


class WithoutHooks(torch.optim.Optimizer):
    """Wraps an optimizer, and does not call torch's constructor."""

    def __init__(self, parameters, lr):
        self.inner = torch.optim.Adam(parameters, lr=lr)
        self.defaults, self.param_groups, self.state = self.inner.defaults, self.inner.param_groups, self.inner.state

    def step(self):
        self.inner.step()

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)


def test_steps_of_a_wrapper_that_has_no_hooks_are_counted():
    model = dqn(policy_kwargs={"optimizer_class": WithoutHooks})
    callback = recycling(7)
    model.learn(60, callback=callback)
    assert callback.gradient_step == model._n_updates > 0
    assert callback.report is not None


def test_what_is_no_optimizer_and_has_no_hooks_is_refused():
    class Wrapper:
        def __init__(self, parameters, lr):
            self.inner = WithoutHooks(parameters, lr)
            self.param_groups, self.state, self.step = self.inner.param_groups, self.inner.state, self.inner.step
            self.zero_grad = self.inner.zero_grad

    model = dqn(policy_kwargs={"optimizer_class": Wrapper})
    with pytest.raises(RuntimeError, match=r"steps of Wrapper cannot be seen: derive it from torch.optim.Optimizer"):
        model.learn(60, callback=recycling(7))


@pytest.mark.parametrize(
    ("period", "settings"),
    [
        (10, {"train_freq": 4, "gradient_steps": 7}),
        (3, {"train_freq": 4, "gradient_steps": 7}),
        (1, {"train_freq": 8, "gradient_steps": 2}),
        (25, {"train_freq": 16, "gradient_steps": -1}),
        (5, {"env": 2, "train_freq": 4, "gradient_steps": -1}),
        (5, {"env": 3, "train_freq": 1, "gradient_steps": 2}),
        (7, {"train_freq": (1, "episode"), "gradient_steps": -1}),
    ],
    ids=str,
)
def test_periods_need_not_divide_the_gradient_steps_of_a_train_call(tape, period, settings):
    if "env" in settings:
        settings = {**settings, "env": make_vec_env("CartPole-v1", settings["env"])}
    model = tape.watch(dqn(**settings))
    model.learn(90, callback=recycling(period, measuring_period=period))
    due = list(range(period, model._n_updates + 1, period))
    assert len(due) >= 2
    assert tape.at_gradient_steps("recycled") == due
    assert tape.at_gradient_steps("measured") == [0, *due] == tape.values("dormancy/gradient_step")


def test_sac_is_recycled_after_all_its_optimizers_have_stepped(tape):
    model = tape.watch(sac(train_freq=8, gradient_steps=8))
    model.learn(40, callback=recycling(5))
    step = ["ent_coef_optimizer step", "critic.optimizer step", "actor.optimizer step"]
    expected = ["measured"] + (step * 5 + ["recycled"]) * 4 + step * 4
    assert [name for name, _ in tape.events] == expected


@pytest.mark.parametrize(
    ("window", "due"),
    [
        ({}, [10, 20, 30, 40, 50, 60]),
        ({"start": 20}, [20, 30, 40, 50, 60]),
        ({"start": 21, "stop": 50}, [30, 40]),
        ({"stop": 51}, [10, 20, 30, 40, 50]),
    ],
    ids=str,
)
def test_recycling_keeps_to_its_window_while_measuring_goes_on(tape, window, due):
    model = tape.watch(dqn())
    model.learn(80, callback=ReDoCallback(0.5, 10, 16, measuring_period=10, **window))
    assert tape.at_gradient_steps("recycled") == due
    assert tape.at_gradient_steps("measured") == [0, 10, 20, 30, 40, 50, 60]


# Hooks


def without_activations(**settings):
    """A model whose layers are measured through hooks, since no activation call shows their neurons."""
    return dqn(policy_kwargs={"activation_fn": nn.Identity, **settings})


@pytest.mark.parametrize("build", mostly_slow([dqn, sac, without_activations], [dqn, without_activations]))
def test_no_hook_is_left_when_training_ends(build):
    model = build()
    model.learn(60, callback=recycling(5))
    assert hooks_of(model) == []
    model.learn(60, callback=recycling(5), reset_num_timesteps=False)
    assert hooks_of(model) == []


def _break_at(monkeypatch, model, place, gradient_step):
    def break_it():
        monkeypatch.setattr(f"sb3_redo.callbacks.{place}", fail)

    if gradient_step == 0:
        break_it()
    else:
        at_gradient_step(model.policy.optimizer, gradient_step, break_it)


@pytest.mark.parametrize(
    "place",
    [
        "measurer.sample_batch",
        *(
            "monitoring.dormancy_values",
            "monitoring.persistence_values",
            "monitoring.write_point",
            "monitoring.write_totals",
        ),
    ],
)
@pytest.mark.parametrize("gradient_step", [0, 10])
def test_an_exception_in_a_measurement_leaves_no_hook(monkeypatch, place, gradient_step):
    model = dqn()
    _break_at(monkeypatch, model, place, gradient_step)
    before = hooks_of(model)
    with pytest.warns(RuntimeWarning, match="training continues: BrokenError"):
        model.learn(80, callback=DormancyCallback(measuring_period=10, batch_size=16))
    assert model.num_timesteps == 80
    assert hooks_of(model) == before


def test_an_exception_while_recycling_leaves_no_hook(monkeypatch):
    model = dqn()
    monkeypatch.setattr(sb3_redo.callbacks.redo, "recycle", fail)
    with pytest.raises(BrokenError):
        model.learn(80, callback=recycling(10))
    assert hooks_of(model) == []


@pytest.mark.parametrize(
    "place",
    ["gradient_steps.agent_of", "measurer.meter_of", "monitoring.write_layout", "redo.initial_weights_of"],
)
def test_an_exception_at_training_start_leaves_no_hook(monkeypatch, place):
    model = dqn()
    monkeypatch.setattr(f"sb3_redo.callbacks.{place}", fail)
    with pytest.raises(BrokenError):
        model.learn(80, callback=recycling(10))
    assert hooks_of(model) == []


class FailsOnSixteen(FlattenExtractor):
    """Fails in our measurement of 16 observations, in the middle of the forward pass."""

    def forward(self, observations):
        return fail() if len(observations) == 16 else super().forward(observations)


def test_an_exception_in_the_forward_pass_leaves_no_hook_and_the_modes_as_they_were():
    class FailsInTraining(FailsOnSixteen):
        """Spares the first measurement, which is made between two rollouts."""

        def forward(self, observations):
            return super().forward(observations) if model._n_updates else observations.flatten(1)

    model = without_activations(features_extractor_class=FailsInTraining)
    with pytest.warns(RuntimeWarning, match="training continues: BrokenError"):
        model.learn(80, callback=DormancyCallback(measuring_period=8, batch_size=16))
    assert hooks_of(model) == []
    assert all(module.training for module in model.q_net.modules())
    assert torch.is_grad_enabled()


@pytest.fixture
def interrupted(tape):
    """A model whose learn() was left by an exception of someone else, and the callback that could not clean up."""
    model, callback = dqn(), recycling(4)
    model.set_logger(Logger(None, [tape]))
    with pytest.raises(BrokenError):
        model.learn(60, callback=[callback, FailsAtStep40()])
    assert hooks_of(model) == ["policy.optimizer: step hook"] * 2
    tape.points.clear()
    return model, callback


def test_after_an_exception_elsewhere_the_clock_removes_itself_at_the_next_step(interrupted, tape):
    model, _ = interrupted
    model.learn(60)
    assert hooks_of(model) == []
    assert tape.points == []


@pytest.mark.parametrize("again", ["the same callback", "another callback"])
def test_after_an_exception_elsewhere_training_can_go_on_with(interrupted, tape, again):
    model, callback = interrupted
    made = model._n_updates
    model.learn(60, callback=callback if again == "the same callback" else recycling(4))
    assert len(tape.values("redo/recycled")) == (model._n_updates - made) // 4
    assert hooks_of(model) == []


def test_after_an_exception_elsewhere_the_clocks_of_two_callbacks_remove_themselves():
    model = dqn()
    with pytest.raises(BrokenError):
        model.learn(60, callback=[DormancyCallback(), recycling(4), FailsAtStep40()])
    model.learn(60)
    assert hooks_of(model) == []


def test_training_end_may_come_twice_and_before_the_callback_is_ready():
    callback = recycling(4)
    callback.on_training_end()
    model = dqn()
    model.learn(40, callback=callback)
    callback.on_training_end()
    assert hooks_of(model) == []


def test_inside_every_n_timesteps_the_clock_is_as_exact(tape):
    model = tape.watch(dqn())
    model.learn(60, callback=EveryNTimesteps(50, recycling(6, measuring_period=4)))
    assert tape.at_gradient_steps("recycled") == [6, 12, 18, 24, 30, 36]
    measured = [step for step, values in tape.points if "dormancy/fraction" in values]
    assert measured == [24, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]


# An optimizer whose step makes another's


class Adam(torch.optim.Adam):
    """Torch runs the hooks of each of its steps twice, from when a plain Adam was built."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.fixture
def nested():
    """The keyword of a policy that takes such an optimizer, and a check that hooks are indeed run twice."""
    weight = nn.Parameter(torch.zeros(1))
    torch.optim.Adam([weight])
    optimizer, calls = Adam([weight]), []
    optimizer.register_step_post_hook(lambda *_: calls.append(None))
    optimizer.step()
    assert len(calls) == 2
    return {"policy_kwargs": {"optimizer_class": Adam}}


ACTING = {
    "ReDoCallback": lambda: recycling(5, measuring_period=10),
    "GradientReDoCallback": lambda: GradientReDoCallback(0.5, recycling_period=5, batch_size=16),
    "ContinualBackpropCallback": lambda: ContinualBackpropCallback(0.1, maturity=5, logging_period=10),
    "RegenerativeCallback": lambda: RegenerativeCallback(1.0, logging_period=10),
    "ParsevalCallback": lambda: ParsevalCallback(0.1, logging_period=10),
    "NormProjectionCallback": lambda: NormProjectionCallback(logging_period=10),
    "PruningCallback": lambda: PruningCallback(0.5, pruning_period=5, batch_size=16, measuring_period=10),
    "ResetCallback": lambda: ResetCallback("last", period=10),
    "OptimizerResetCallback": lambda: OptimizerResetCallback(10),
    "FireCallback": lambda: FireCallback(period=10),
    "PlasticityCallback": lambda: PlasticityCallback(10, 16, ["updates"]),
    "BrownianMotionCallback": lambda: BrownianMotionCallback(10, 16, steps=2, vectors=1),
}


@pytest.mark.parametrize("make", mostly_slow(ACTING, list(ACTING)[::3]))
def test_an_optimizer_whose_step_makes_another_is_followed_as_any_other(make, nested):
    left, points = [], []
    for settings in ({}, nested):
        tape = Tape()
        model = tape.watch(dqn(**settings))
        model.learn(60, callback=make())
        left.append(fingerprint(model))
        points.append(tape.points)
        assert gradient_steps_of(model) == model._n_updates
    assert differences(*left) == []
    assert points[0] == points[1] != []


def test_hooks_of_a_step_see_all_that_it_changes(nested):
    class Halving(Adam):
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                parameter.grad.mul_(0.5)
            super().step(closure)
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter.mul_(0.5)

    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer, seen = Halving([weight], lr=0.1), []
    hooks = StepHooks(optimizer, lambda: seen.append(float(weight.grad)), lambda: seen.append(weight.item()))
    optimizer.step()
    assert seen == pytest.approx([1.0, 0.45])
    hooks.remove()
    optimizer.step()
    assert len(seen) == 2
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
