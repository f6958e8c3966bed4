"""Policies that went through ``torch.compile`` are measured and recycled as the modules they were made from."""

import warnings

import pytest
import torch
from torch import nn

from sb3_redo import DormancyCallback, ReDoCallback, measure_dormancy, recycle_dormant
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import dqn, kill


def compiled_in_place(model):
    model.q_net.compile(backend="eager")


def compiled_and_wrapped(model):
    model.policy.q_net = model.q_net = torch.compile(model.q_net, backend="eager")


def compiled_below(model):
    model.q_net.q_net = torch.compile(model.q_net.q_net, backend="eager")


def compiled_policy(model):
    model.policy.compile(backend="eager")


WAYS = [compiled_in_place, compiled_and_wrapped, compiled_below, compiled_policy]
every_way = pytest.mark.parametrize("compile_it", WAYS)
some_ways = pytest.mark.parametrize("compile_it", mostly_slow(WAYS, WAYS[:2]))


@pytest.fixture(autouse=True)
def nothing_is_compiled_for_us():
    """Whatever torch says about compiling again and again is an error here."""
    torch.compiler.reset()
    with warnings.catch_warnings():
        # The compiler's own, when it first loads.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield
    torch.compiler.reset()


def model_with(compile_it=None):
    model = dqn(policy_kwargs={"activation_fn": nn.ReLU})
    model.learn(40)
    kill(model.q_net.q_net[0], [1, 5])
    if compile_it is not None:
        compile_it(model)
    return model


@every_way
def test_measured_and_recycled_as_the_module_that_was_compiled(compile_it):
    plain, compiled = model_with(), model_with(compile_it)
    reports = [measure_dormancy(model, 0.0, batch_size=16) for model in (plain, compiled)]
    assert [layer.name.replace("_orig_mod.", "") for layer in reports[1].layers] == [
        layer.name for layer in reports[0].layers
    ]
    assert reports[1].networks == ("q_net",)
    for one, other in zip(reports[0].layers, reports[1].layers, strict=True):
        assert torch.equal(one.scores, other.scores)
    records = [recycle_dormant(model, report) for model, report in zip((plain, compiled), reports, strict=True)]
    assert records[0].recycled == records[1].recycled >= 2
    for one, other in zip(plain.policy.parameters(), compiled.policy.parameters(), strict=True):
        assert torch.equal(one, other)


@some_ways
def test_a_compiled_run_is_measured_without_compiling_anything_anew(compile_it):
    model = dqn(learning_starts=8)
    compile_it(model)
    model.learn(12)
    before = torch._dynamo.utils.counters["frames"]["total"]
    callback = DormancyCallback(measuring_period=2, batch_size=8)
    model.learn(40, callback=callback, reset_num_timesteps=False)
    assert callback.report is not None
    assert torch._dynamo.utils.counters["frames"]["total"] == before


@some_ways
def test_a_compiled_run_is_recycled_as_the_run_that_is_not_compiled(compile_it):
    def left_by(prepare):
        model = dqn()
        prepare(model)
        model.learn(60, callback=ReDoCallback(0.9, recycling_period=10, batch_size=16))
        return model

    plain, compiled = left_by(lambda model: None), left_by(compile_it)
    assert compiled.dormancy_memory["recycled_total"] == plain.dormancy_memory["recycled_total"] > 0
    for one, other in zip(plain.policy.parameters(), compiled.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other)
