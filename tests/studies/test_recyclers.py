"""The ways to renew recycled neurons that the study compares do what they say."""

import pytest
import torch
from stable_baselines3.common.logger import Logger
from torch import nn

from sb3_redo import ReDoCallback, trace_wiring
from sb3_redo.dormancy.meter import Meter
from studies.recyclers import (
    ActiveReDo,
    CountedReDo,
    FirstGradientReDo,
    MedianReDo,
    OwnReDo,
    recycled_neurons,
)
from studies.survival import Survival, fates, outgoing_norms
from tests.helpers.algorithms import build
from tests.helpers.runs import Tape

AT = 20
ONCE = {
    "dormancy_threshold": 0.8,
    "recycling_period": AT,
    "start": AT,
    "stop": AT + 1,
    "measuring_period": AT,
    "batch_size": 8,
}


def learn(callback, steps=100, **settings):
    model = build("DQN", **settings)
    model.set_logger(Logger(None, [Tape()]))
    return model.learn(steps, callback=callback)


class Watching:
    """Keeps the optimizer's state around the recycling, and what every later step does."""

    def recycle(self, neurons, report):
        state = self.model.policy.optimizer.state
        self.before = {parameter: state[parameter]["exp_avg_sq"].clone() for parameter in state}
        super().recycle(neurons, report)
        self.after = {parameter: state[parameter]["exp_avg_sq"].clone() for parameter in state}
        self.report_recycled = report


def watching(cls, **settings):
    return type(cls.__name__, (Watching, cls), {})(**{**ONCE, **settings})


def incoming(callback):
    """Parameter, recycled rows and live rows of each layer in which a neuron was recycled."""
    for layer in callback.report_recycled.layers:
        if layer.dormant.any() and not layer.dormant.all():
            weight = callback.model.policy.get_parameter(f"{layer.name}.weight")
            yield weight, layer.dormant, ~layer.dormant


def test_the_median_is_that_of_live_neurons():
    callback = watching(MedianReDo)
    learn(callback)
    for number, (weight, recycled, live) in enumerate(incoming(callback)):
        if number == 0:  # further on, columns of recycled neurons were renewed too
            expected = callback.before[weight][live].median(0).values
            torch.testing.assert_close(callback.after[weight][recycled], expected.expand(int(recycled.sum()), -1))
    assert callback.report_recycled.dormant_fraction > 0


def test_the_own_second_moment_stays():
    callback = watching(OwnReDo)
    learn(callback)
    assert all(torch.equal(callback.before[parameter], callback.after[parameter]) for parameter in callback.before)
    assert callback.report_recycled.dormant_fraction > 0


def test_the_first_gradient_becomes_the_second_moment():
    callback, seen = watching(FirstGradientReDo), []
    model = build("DQN")
    optimizer = model.policy.optimizer

    def note(*_):
        if getattr(callback, "report_recycled", None) is not None and not seen:
            weight, recycled, _ = next(incoming(callback))
            if weight.grad[recycled].any():
                seen.append((weight.grad[recycled].clone(), optimizer.state[weight]["exp_avg_sq"][recycled].clone()))

    model.set_logger(Logger(None, [Tape()]))
    optimizer.register_step_post_hook(note)
    model.learn(100, callback=callback)
    gradient, second = seen[0]
    torch.testing.assert_close(second, gradient**2)
    assert gradient.any()


def test_counted_steps_are_those_of_an_adam_that_began_at_recycling():
    callback = watching(CountedReDo)
    model = build("DQN", learning_rate=0.01)
    optimizer = model.policy.optimizer
    trace = []

    def before(*_):
        if getattr(callback, "report_recycled", None) is not None:
            weight, recycled, _ = next(incoming(callback))
            trace.append([weight.grad[recycled].clone(), weight.detach()[recycled].clone()])

    model.set_logger(Logger(None, [Tape()]))
    optimizer.register_step_pre_hook(before)
    model.learn(80, callback=callback)
    assert len(trace) > 20
    # An Adam of PyTorch's own, fed with the gradients that the recycled rows got.
    parameter = torch.nn.Parameter(trace[0][1].clone())
    fresh = torch.optim.Adam([parameter], lr=0.01)
    for gradient, weight in trace:
        torch.testing.assert_close(weight, parameter.detach(), rtol=1e-4, atol=1e-6)
        parameter.grad = gradient
        fresh.step()


@pytest.mark.parametrize("optimizer_state", ["clear", "match"])
def test_redrawn_neurons_are_active_and_their_outgoing_weights_zero(optimizer_state):
    class Looking(ActiveReDo):
        def recycle(self, neurons, report):
            super().recycle(neurons, report)
            self.again = self.measurer.measure_on(report.batch)
            self.mine = recycled_neurons(report)
            self.norms = {
                layer.name: outgoing_norms(report.wiring[layer.name], self.model.policy) for layer in report.layers
            }

    # A score of 0.8 is more than many neurons have: a low threshold leaves something to reach.
    settings = {**ONCE, "dormancy_threshold": 0.3, "optimizer_state": optimizer_state}
    callback = Looking(redraws=200, **settings)
    learn(callback)
    assert sum(int(mask.sum()) for mask in callback.mine.values()) > 0
    for layer in callback.again.layers:
        mask = callback.mine[layer.name]
        assert not (layer.dormant & mask).any()
        assert not callback.norms[layer.name][mask].any()


@pytest.mark.parametrize("name", ["DQN", "SAC"])
def test_survival_follows_the_recycled_neurons(name):
    tape = []

    class Points(Tape):
        def write(self, key_values, key_excluded, step=0):
            if "survival/age" in key_values:
                tape.append(key_values)

    model = build(name)
    model.set_logger(Logger(None, [Points()]))
    recycler = ReDoCallback(**ONCE)
    model.learn(100, callback=[recycler, Survival((0, 1, 5), dormancy_threshold=0.8, batch_size=8)])
    assert [point["survival/age"] for point in tape] == [0, 1, 5]
    assert tape[0]["survival/norm"] == tape[0]["survival/contribution"] == 0.0
    assert 0 < tape[1]["survival/norm"] < tape[2]["survival/norm"]
    assert {point["survival/neurons"] for point in tape} == {model.dormancy_memory["recycled_total"]}


def test_worked_fates():
    """Three neurons of 1, 2 and 0 on the only observation, and outgoing weights of norms 5, 10 and 1."""
    network = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0], [2.0], [-1.0]]))
        network[2].weight.copy_(torch.tensor([[3.0, 6.0, 1.0], [4.0, 8.0, 0.0]]))
    wiring = trace_wiring(network, torch.ones(2, 1))
    report = Meter(network, wiring, {layer.name: "network" for layer in wiring}).measure(network, torch.ones(2, 1), 0.0)
    of = {"0": torch.tensor([True, False, True])}
    assert fates(report, of, network) == pytest.approx(
        {
            "survival/dormant": 1 / 2,
            # Those of the only other live neuron, 10 and 2 * 10: the mean of 5 and 1, and of 1 * 5 and 0.
            "survival/norm": 3 / 10,
            "survival/contribution": 2.5 / 20,
            "survival/neurons": 2,
        }
    )
    # The neuron that is dormant is none of the others.
    assert fates(report, {"0": torch.tensor([True, False, False])}, network)["survival/norm"] == pytest.approx(5 / 10)
    nothing_lives = fates(report, {"0": torch.tensor([True, True, False])}, network)
    assert nothing_lives["survival/norm"] != nothing_lives["survival/norm"]
