"""Renewed weights stay where no gradient moves them, whatever an optimizer keeps; or it is refused by name."""

import copy
import math
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
import pytorch_optimizer
import schedulefree
import torch

from sb3_redo import ReDoCallback, recycle_dormant
from sb3_redo.interventions import (
    ContinualBackpropCallback,
    FireCallback,
    PruningCallback,
    ResetCallback,
    ShrinkAndPerturbCallback,
)
from sb3_redo.interventions.perturbation import shrink_and_perturb
from sb3_redo.interventions.pruned_weights import PrunedWeights
from sb3_redo.interventions.resets import reset
from sb3_redo.recycling.optimizer_state import OptimizerState
from sb3_redo.recycling.step import Surgery
from tests.helpers import networks
from tests.helpers.marks import alternating
from tests.helpers.runs import dqn
from tests.recycling.test_step import attached_entries, recycled, report_on

PAGE = Path(__file__).parents[2] / "docs" / "recycling.md"


def classes_of(module):
    found = (getattr(module, name) for name in dir(module))
    return {
        each.__name__: each
        for each in found
        if isinstance(each, type) and issubclass(each, torch.optim.Optimizer) and each is not torch.optim.Optimizer
    }


# Beyond a learning rate, and without weight decay, which moves weights without a gradient.
SETTINGS = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"centered": True, "momentum": 0.9},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True, "weight_decay": 0},
    "ASGD": {"lambd": 0, "t0": 2},
    "Muon": {"weight_decay": 0},
    "MADGRAD": {"momentum": 0.9},
    "AccSGD": {"weight_decay": 0},
}


def plain(optimizer_class):
    def make(parameters):
        return optimizer_class(parameters, lr=1e-2, **SETTINGS.get(optimizer_class.__name__, {}))

    return make


def around(wrapper, **settings):
    return lambda parameters: wrapper(torch.optim.SGD(parameters, lr=1e-2, momentum=0.9), **settings)


JOINT = ("LBFGS", "Shampoo", "SOAP", "Kron", "PSGD", "KFAC", "AdamP", "OrthoGrad")
KNOWN = {
    **{f"torch {name}": plain(each) for name, each in classes_of(torch.optim).items() if name not in JOINT},
    **{f"schedulefree {name}": plain(each) for name, each in classes_of(schedulefree).items() if "Wrap" not in name},
    "schedulefree ScheduleFreeWrapper": around(schedulefree.ScheduleFreeWrapper, momentum=0.9),
    "schedulefree ScheduleFreeWrapperReference": around(schedulefree.ScheduleFreeWrapperReference, momentum=0.9),
    **{
        f"pytorch_optimizer {name}": plain(getattr(pytorch_optimizer, name))
        for name in ("AccSGD", "MADGRAD", "ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeRAdam")
    },
    "pytorch_optimizer Lookahead": around(pytorch_optimizer.Lookahead, k=3, pullback_momentum="pullback"),
    "pytorch_optimizer ScheduleFreeWrapper": around(pytorch_optimizer.ScheduleFreeWrapper, momentum=0.9),
    "pytorch_optimizer SAM": lambda parameters: pytorch_optimizer.SAM(parameters, torch.optim.Adam, lr=1e-2),
}


def optimizers_of(network, make):
    """One optimizer for all parameters, and for Muon, which trains matrices alone, another one for the rest."""
    parameters = list(network.parameters())
    if make is KNOWN["torch Muon"]:
        made = [make([each for each in parameters if each.ndim == 2])]
        made.append(torch.optim.SGD([each for each in parameters if each.ndim != 2], lr=1e-2, momentum=0.9))
    else:
        made = [make(parameters)]
    for optimizer in made:
        if hasattr(optimizer, "train"):
            optimizer.train()
    return made


def step(network, optimizers, seed=0, without=None):
    """One step of all optimizers.

    :param without: parameter to bool mask of the entries that get no gradient
    """

    def gradients(retained=True):
        network.zero_grad()
        result = network(network.observations(8, seed=seed))
        (result if isinstance(result, torch.Tensor) else sum(each.sum() for each in result)).square().sum().backward()
        for parameter in network.parameters():
            if without is not None:
                parameter.grad[without[parameter]] = 0
            if any(type(optimizer) is torch.optim.SparseAdam for optimizer in optimizers):
                parameter.grad = parameter.grad.to_sparse()

    for optimizer in optimizers:
        gradients()
        with torch.enable_grad():
            optimizer.step(gradients) if needs_closure(optimizer) else optimizer.step()


def needs_closure(optimizer):
    return type(optimizer).__name__.endswith("Closure") or type(optimizer).__name__ == "SAM"


def renewed_in(network, report):
    """Parameter to a bool mask of the entries of recycled neurons."""
    return {network.get_parameter(name): mask for name, mask in attached_entries(network, report).items()}


def values_of(network):
    return {parameter: parameter.detach().clone() for parameter in network.parameters()}


WAYS = {
    f"{kind} {mode}": (kind, mode) for kind in ("BatchNormalised", "Grouped") for mode in ("match", "clear", "restart")
}


@pytest.mark.parametrize(("way", "name"), alternating(list(WAYS), list(KNOWN)))
def test_renewed_weights_stay_where_no_gradient_moves_them(way, name):
    kind, mode = WAYS[way]
    torch.manual_seed(0)  # of the dropout
    network = networks.build(kind)
    optimizers = optimizers_of(network, KNOWN[name])
    for seed in range(4):
        step(network, optimizers, seed)
    report = report_on(network, network.observations(16, seed=5), threshold=0.8)
    recycled(network, report, optimizers, optimizer_state=mode, build=lambda: networks.build(kind, seed=9))
    before, renewed = values_of(network), renewed_in(network, report)
    assert any(mask.any() for mask in renewed.values())
    for seed in range(3):  # Lookahead synchronises at one of them
        step(network, optimizers, 10 + seed, without=renewed)
    for parameter, value in values_of(network).items():
        exact = {} if "Reference" in name or "MADGRAD" in name else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(value[renewed[parameter]], before[parameter][renewed[parameter]], **exact)
    assert any(not torch.equal(value, before[parameter]) for parameter, value in values_of(network).items())


# Copies and averages of weights

COPYING = [name for name in KNOWN if re.search(r"[Ff]ree|Lookahead|AccSGD|MADGRAD|ASGD", name)]
WITH_MODES = [name for name in COPYING if "Free" in name and "Closure" not in name]


@pytest.mark.parametrize("name", WITH_MODES)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_averages_of_weights_hold_the_renewed_ones_in_both_modes(name, mode):
    network = networks.build("Grouped")
    (optimizer,) = optimizers_of(network, KNOWN[name])
    for seed in range(4):
        step(network, [optimizer], seed)
    getattr(optimizer, mode)()
    report = report_on(network, network.observations(16, seed=5), threshold=0.8)
    recycled(network, report, [optimizer], build=lambda: networks.build("Grouped", seed=9))
    before, renewed = values_of(network), renewed_in(network, report)
    for switch in (optimizer.eval, optimizer.train, optimizer.eval):
        switch()
        for parameter, value in values_of(network).items():
            torch.testing.assert_close(value[renewed[parameter]], before[parameter][renewed[parameter]])


@pytest.mark.parametrize("name", COPYING)
def test_what_compensation_adds_to_biases_stays_too(name):
    network = networks.build("Grouped")
    optimizers = optimizers_of(network, KNOWN[name])
    for seed in range(4):
        step(network, optimizers, seed)
    kept = OptimizerState(network.parameters(), optimizers)
    biases = [parameter for key, parameter in network.named_parameters() if key.endswith("bias")]
    apart = [[entry.value - bias for entry in kept.of(bias) if entry.kind.what == "copy"] for bias in biases]
    before = values_of(network)
    report = report_on(network, network.observations(16, seed=5), threshold=0.8)
    recycled(network, report, optimizers, compensate=True, build=lambda: networks.build("Grouped", seed=9))
    renewed, compensated = renewed_in(network, report), 0
    for bias, old in zip(biases, apart, strict=True):
        mine = ~renewed[bias]
        compensated += int((bias != before[bias])[mine].sum())
        new = [entry.value - bias for entry in kept.of(bias) if entry.kind.what == "copy"]
        for each, other in zip(new, old, strict=True):
            torch.testing.assert_close(each[mine], other[mine])
            assert not each[renewed[bias]].any()
    assert compensated


@pytest.mark.parametrize("name", [*COPYING, "torch Adam", "torch Adagrad", "torch Rprop", "torch SGD"])
def test_a_reset_network_stays_where_it_is_without_gradients(name):
    network = networks.build("Mlp")
    optimizers = optimizers_of(network, KNOWN[name])
    for seed in range(4):
        step(network, optimizers, seed)
    fresh = {key: value.clone() for key, value in networks.build("Mlp", seed=9).named_parameters()}
    reset(network, fresh, optimizers)
    everything = {parameter: torch.ones_like(parameter, dtype=torch.bool) for parameter in network.parameters()}
    for seed in range(3):
        step(network, optimizers, seed, without=everything)
    for key, value in fresh.items():
        torch.testing.assert_close(network.get_parameter(key).detach(), value.detach())


@pytest.mark.parametrize("forget", [False, True])
def test_copies_shrink_and_are_perturbed_with_the_weights(forget):
    network = networks.build("Mlp")
    (optimizer,) = optimizers_of(network, KNOWN["schedulefree AdamWScheduleFree"])
    for seed in range(4):
        step(network, [optimizer], seed)
    weight, state = network.first.weight, optimizer.state[network.first.weight]
    fresh = {key: torch.ones_like(value) for key, value in network.named_parameters()}
    expected = {"z": state["z"] * 0.5 + 0.25, "exp_avg_sq": state["exp_avg_sq"].clone()}
    shrink_and_perturb(network, fresh, 0.5, 0.25, [optimizer], forget=forget)
    assert torch.equal(state["z"], weight if forget else expected["z"])
    assert torch.equal(state["exp_avg_sq"], expected["exp_avg_sq"] * (0 if forget else 1))


def test_copies_of_pruned_weights_are_zero():
    network = networks.build("Mlp")
    (optimizer,) = optimizers_of(network, KNOWN["schedulefree SGDScheduleFree"])
    step(network, [optimizer])
    mask = torch.zeros(1, 6, dtype=torch.bool)
    mask[0, 2] = True
    PrunedWeights(network.second.weight, mask).clear_state(OptimizerState(network.parameters(), [optimizer]))
    state = optimizer.state[network.second.weight]
    assert not state["z"][:, 2].any()
    assert state["z"][:, :2].all()


# Worked values


def test_factored_second_moments_match_where_they_are_the_neurons_alone():
    network = networks.build("Mlp")
    optimizer = torch.optim.Adafactor(network.parameters())
    step(network, [optimizer])
    with torch.no_grad():
        network.first.weight[:2] = 0
    first, second = (optimizer.state[layer.weight] for layer in (network.first, network.second))
    rows, columns, others = first["row_var"].clone(), second["col_var"].clone(), first["col_var"].clone()
    report = report_on(network, network.observations(16), threshold=0.0)
    dormant = {layer.name: layer.dormant for layer in report.layers}
    assert dormant["first"].tolist() == [True, True, False, False, False, False]
    dead = dormant["first"]
    recycled(network, report, [optimizer], build=lambda: networks.build("Mlp", seed=9))
    torch.testing.assert_close(first["row_var"][dead], rows[~dead].mean().expand(2, 1))
    torch.testing.assert_close(second["col_var"][:, dead], columns[:, ~dead].mean().expand(1, 2))
    assert torch.equal(first["row_var"][~dead], rows[~dead])
    assert torch.equal(first["col_var"], others)
    network.first.weight.data[:2] = 0
    recycled(network, report, [optimizer], optimizer_state="clear", build=lambda: networks.build("Mlp", seed=9))
    assert not first["row_var"][dead].any()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda parameters: torch.optim.NAdam(parameters), {"step": 0.0, "mu_product": 1.0}),
        (lambda parameters: torch.optim.ASGD(parameters, lr=0.5, t0=1), {"step": 0.0, "eta": 0.5, "mu": 1.0}),
        (lambda parameters: torch.optim.RAdam(parameters), {"step": 0.0}),
    ],
)
def test_restart_sets_every_count_of_the_tensor_to_its_start(make, expected):
    network = networks.build("Mlp")
    optimizer = make(network.parameters())
    for _ in range(3):
        step(network, [optimizer])
    report = report_on(network, network.observations(16), threshold=100.0)
    kept = copy.deepcopy(optimizer.state_dict())
    recycled(network, report, [optimizer], build=lambda: networks.build("Mlp", seed=9))
    for before, after in zip(kept["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(after[key], before[key]) for key in expected)
    recycled(network, report, [optimizer], optimizer_state="restart", build=lambda: networks.build("Mlp", seed=9))
    assert {key: float(optimizer.state[network.first.weight][key]) for key in expected} == expected


def test_step_sizes_of_rprop_are_those_of_the_parameters_group():
    network = networks.build("Mlp")
    groups = [{"params": network.first.parameters(), "lr": 0.25}, {"params": network.second.parameters()}]
    optimizer = torch.optim.Rprop([*groups, {"params": network.out.parameters()}], lr=0.125)
    for seed in range(3):
        step(network, [optimizer], seed)
    report = report_on(network, network.observations(16), threshold=100.0)
    recycled(network, report, [optimizer], build=lambda: networks.build("Mlp", seed=9))
    assert (optimizer.state[network.first.weight]["step_size"] == 0.25).all()
    assert (optimizer.state[network.second.weight]["step_size"] == 0.125).all()


# What is not known


class Own(torch.optim.Optimizer):
    """Plain gradient descent that keeps something under a name of its own."""

    key, value = "exp_foo", staticmethod(torch.ones_like)

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"])
                    self.state[parameter].setdefault(self.key, self.value(parameter))


class Rprop(Own):
    """Named as one of torch's, with a key that means something else there."""

    key, value = "prev", staticmethod(torch.clone)


class ExtraAdam(torch.optim.Adam):
    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            state["sum"] = torch.ones_like(state["exp_avg"])


class Nested(Own):
    key, value = "momentum_buffer", staticmethod(lambda parameter: {0.9: torch.ones_like(parameter)})


class Quantised(Own):
    key, value = "exp_avg", staticmethod(lambda parameter: torch.ones_like(parameter, dtype=torch.uint8))


class PerRow(Own):
    key, value = "exp_avg", staticmethod(lambda parameter: torch.ones(len(parameter)))


class Scalar(Own):
    key, value = "radius", staticmethod(lambda parameter: 0.5)


class Flat(Own):
    """Keeps one tensor for all weights under the first parameter."""

    def step(self, closure=None):
        first = self.param_groups[0]["params"][0]
        self.state[first]["momentum"] = torch.ones(100)


class Slow(torch.optim.SGD):
    """Lookahead as it is often copied: slow weights in a list of its own."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.slow_weights = [[each.detach().clone() for each in group["params"]] for group in self.param_groups]


class Average:
    def __init__(self, parameters):
        self.shadow = {id(parameter): parameter.detach().clone() for parameter in parameters}


class Holding(torch.optim.SGD):
    def __init__(self, parameters, lr):
        parameters = list(parameters)
        super().__init__(parameters, lr)
        self.average = Average(parameters)


class Around(torch.optim.Optimizer):
    """Wraps another optimizer, whose state it does not show."""

    def __init__(self, parameters, lr, inner=Own):
        self.base_optimizer = inner(parameters, lr)
        self.param_groups, self.state = self.base_optimizer.param_groups, defaultdict(dict)
        self.defaults = {}

    def step(self, closure=None):
        self.base_optimizer.step()


class Soap(Own):
    key, value = "GG", staticmethod(lambda parameter: [torch.eye(len(parameter))])


class Centralising(pytorch_optimizer.Lion):
    def __init__(self, parameters, lr):
        super().__init__(parameters, lr, use_gc=True)


WAY_OUT = "train with an optimizer of the table in docs/recycling.md, such as torch.optim.Adam"
UNKNOWN = {
    Own: "Own keeps 'exp_foo', and it is not known how to renew it: declare it by "
    "optimizer_state={'exp_foo': 'moment'} (or 'second_moment', 'copy' of the weights, 'ignore'), or " + WAY_OUT,
    Rprop: "Rprop keeps 'prev', and it is not known",
    ExtraAdam: "ExtraAdam keeps 'sum', and it is not known",
    Nested: "Nested keeps 'momentum_buffer' as a dict, and",
    Quantised: r"Quantised keeps 'exp_avg' as torch.uint8 of shape (6, 5) for a weight of shape (6, 5), and",
    PerRow: r"PerRow keeps 'exp_avg' as torch.float32 of shape (6,) for a weight of shape (6, 5), and",
    Scalar: "Scalar keeps 'radius', and it is not known",
    Flat: "Flat keeps 'momentum', and it is not known",
    Slow: f"Slow keeps tensors in 'slow_weights', which recycling cannot renew: {WAY_OUT}, or say "
    "optimizer_state={'slow_weights': 'ignore'} if they never move weights",
    Holding: "Holding keeps tensors in 'average', which",
    Around: "Own keeps 'exp_foo', and it is not known",
    Soap: "Soap keeps 'GG', and it is not known",
    torch.optim.LBFGS: "LBFGS moves a weight by the gradients of others, which would change renewed neurons: "
    f"{WAY_OUT}, or measure alone with DormancyCallback",
    pytorch_optimizer.Shampoo: "Shampoo moves a weight by the gradients of others",
    pytorch_optimizer.Kron: "Kron moves a weight by the gradients of others",
    pytorch_optimizer.AdamP: "AdamP moves a weight by the gradients of others",
    pytorch_optimizer.ROSE: "ROSE with centralize=True moves a weight by the gradients of others",
    Centralising: "Centralising with use_gc=True moves a weight by the gradients of others",
}


@pytest.mark.parametrize("optimizer_class", UNKNOWN)
def test_an_optimizer_that_keeps_something_unknown_is_refused_by_name_and_nothing_changes(optimizer_class):
    network = networks.build("Mlp")
    # The first layer's weight comes first, as in the sentences.
    optimizer = optimizer_class([network.first.weight, network.second.weight, *network.out.parameters()], lr=1e-2)
    if optimizer_class is not torch.optim.LBFGS:
        step(network, [optimizer])
    report = report_on(network, network.observations(16, seed=5), threshold=0.8)
    before = copy.deepcopy((network.state_dict(), str(optimizer.state)))
    if optimizer_class is Own:
        with pytest.raises(RuntimeError, match=r"Own keeps 'exp_foo', and .* how to renew it: train with"):
            OptimizerState(network.parameters(), [optimizer])
    with pytest.raises(RuntimeError, match=f"^{re.escape(UNKNOWN[optimizer_class])}"):
        recycle_dormant(network, report, optimizers=[optimizer], seed=0)
    assert str(before) == str((network.state_dict(), str(optimizer.state)))


@pytest.mark.parametrize(
    ("optimizer_class", "key", "what"),
    [
        *((Own, "exp_foo", what) for what in ("moment", "second_moment", "copy", "ignore")),
        *((ExtraAdam, "sum", what) for what in ("moment", "second_moment")),
        (Around, "exp_foo", "moment"),
        (Rprop, "prev", "copy"),
        *((each, "exp_avg", "ignore") for each in (Quantised, PerRow)),
        (Scalar, "radius", "ignore"),
        (Flat, "momentum", "ignore"),
        (Slow, "slow_weights", "ignore"),
        (Soap, "GG", "ignore"),
    ],
)
def test_what_users_say_is_done(optimizer_class, key, what):
    network = networks.build("Mlp")
    optimizer = optimizer_class(network.parameters(), lr=1e-2)
    step(network, [optimizer])
    report = report_on(network, network.observations(16, seed=5), threshold=0.8)
    weight = network.first.weight
    state = getattr(optimizer, "base_optimizer", optimizer).state[weight]
    with torch.no_grad():
        if key in state and what != "ignore":
            state[key].copy_(torch.arange(6.0).unsqueeze(1))
    before = copy.deepcopy(state.get(key))
    recycle_dormant(network, report, optimizers=[optimizer], optimizer_state={key: what}, seed=0)
    dormant = next(layer.dormant for layer in report.layers if layer.name == "first")
    assert dormant.any()
    if what == "ignore":
        assert str(state.get(key)) == str(before)
        return
    expected = {"moment": torch.zeros(5), "second_moment": before[~dormant].mean(0), "copy": weight[dormant]}[what]
    torch.testing.assert_close(state[key][dormant], expected.expand(int(dormant.sum()), 5))
    assert torch.equal(state[key][~dormant], before[~dormant])


@pytest.mark.parametrize("name", JOINT)
def test_optimizers_that_mix_weights_are_refused_before_their_first_step_and_whatever_is_said(name):
    optimizer = type(name, (Own,), {})(networks.build("Mlp").parameters())
    parameters = optimizer.param_groups[0]["params"]
    with pytest.raises(RuntimeError, match=f"^{name} moves a weight by the gradients of others"):
        OptimizerState(parameters, [Around(parameters, 0.1, lambda *_: optimizer)], {"exp_foo": "moment"})


class OwnLookahead(Own):
    """Keeps slow weights, and by a name of its own something else, from the first step on."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            parameter.copy_(self.state[parameter].setdefault("slow", parameter.clone()))


@pytest.mark.parametrize("optimizer_class", [Own, ExtraAdam, Nested, Quantised, Around, OwnLookahead])
def test_what_is_forgotten_need_not_be_known(optimizer_class):
    network = networks.build("Mlp")
    optimizer = optimizer_class(network.parameters(), lr=0.1)
    step(network, [optimizer])
    fresh = {key: value.clone() for key, value in networks.build("Mlp", seed=9).named_parameters()}
    reset(network, fresh, [optimizer])
    inner = getattr(optimizer, "base_optimizer", optimizer)
    assert not any(inner.state.values())
    nothing = {parameter: torch.ones_like(parameter, dtype=torch.bool) for parameter in network.parameters()}
    step(network, [optimizer], without=nothing)
    for key, value in fresh.items():
        assert torch.equal(network.get_parameter(key), value)


@pytest.mark.parametrize("optimizer_class", [Slow, torch.optim.LBFGS])
def test_what_cannot_be_forgotten_is_refused_by_resets(optimizer_class):
    network = networks.build("Mlp")
    with pytest.raises(RuntimeError, match=rf"{optimizer_class.__name__} (keeps|moves).*, such as torch.optim.Adam"):
        reset(network, {}, [optimizer_class(network.parameters(), lr=0.1)])


def test_only_that_can_be_said_of_tensors_outside_the_state_which_recycling_can_do():
    network = networks.build("Mlp")
    kept = [Slow(network.parameters(), 0.1)]
    with pytest.raises(RuntimeError, match="Slow keeps tensors in 'slow_weights', which recycling cannot renew"):
        OptimizerState(network.parameters(), kept, {"slow_weights": "copy"})


def test_optimizers_of_other_parameters_may_keep_what_they_like():
    optimizer = torch.optim.LBFGS(networks.build("Mlp").parameters())
    assert not list(OptimizerState(networks.build("Mlp").parameters(), [optimizer]).of(torch.ones(3)))


def test_settings_and_schedulers_are_nothing_that_is_kept():
    network = networks.build("Mlp")
    optimizer = torch.optim.Adam(network.parameters(), lr=torch.tensor(0.1), capturable=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)
    step(network, [optimizer])
    scheduler.step()
    weight = next(network.parameters())
    kept = OptimizerState(network.parameters(), [optimizer]).of(weight)
    assert {entry.key for entry in kept} == set(optimizer.state[weight])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"exp_foo": "momentum"},
            r"optimizer_state\['exp_foo'\] must be one of .*, got 'momentum'; did you mean 'moment'",
        ),
        ({"exp_foo": None}, r"optimizer_state\['exp_foo'\] must be one of 'moment', 'second_moment', 'copy', 'ignore'"),
    ],
)
def test_what_is_said_must_be_one_of_the_kinds(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Surgery(optimizer_state=given)


# Callbacks

SMALL = {"recycling_period": 10, "measuring_period": 10, "batch_size": 16}


def test_callbacks_refuse_an_optimizer_when_training_starts_or_when_it_is_known_what_it_keeps():
    model = dqn(policy_kwargs={"optimizer_class": Own})
    with pytest.raises(RuntimeError, match="Own keeps 'exp_foo'"):
        model.learn(60, callback=ReDoCallback(100.0, **SMALL))
    for callback in (
        ReDoCallback(**SMALL),
        ContinualBackpropCallback(),
        PruningCallback(batch_size=16),
        ShrinkAndPerturbCallback(),
        FireCallback(),
    ):
        can_say = isinstance(callback, (ReDoCallback, ContinualBackpropCallback))
        with pytest.raises(
            RuntimeError, match="Own keeps 'exp_foo'.*renew it: " + ("declare" if can_say else "train with")
        ):
            model.learn(1, callback=callback, reset_num_timesteps=False)
    for callback in (ResetCallback("all", 10), ShrinkAndPerturbCallback(period=10, reset_optimizer=True)):
        model.learn(10, callback=callback, reset_num_timesteps=False)
    callback = ReDoCallback(100.0, **SMALL, optimizer_state={"exp_foo": "moment"})
    model.learn(60, callback=callback, reset_num_timesteps=False)
    assert not model.policy.optimizer.state[model.q_net.q_net[0].weight]["exp_foo"].all()


# The documentation


def test_the_page_has_every_optimizer_that_is_tested_or_refused_here():
    table = PAGE.read_text().split("## What optimizers keep")[1].split("\n## ")[0]
    rows = [row.split("|")[1:-1] for row in table.splitlines() if row.startswith("| ")][1:]
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row[0])}
    assert named == {name.replace(" ", ".") for name in KNOWN} | {"torch.LBFGS", *JOINT} - {"LBFGS"}


def test_cleared_moments_under_a_kept_step_count_move_a_weight_up_to_6_6_times_too_far():
    """As docs/choosing.md has it."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=1.0, eps=0.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    state = optimizer.state[weight]
    state["step"].fill_(1e6)
    state["exp_avg"].zero_()
    state["exp_avg_sq"].zero_()
    places = [weight.item(), *((optimizer.step(), weight.item())[1] for _ in range(30))]
    steps = [before - after for before, after in pairwise(places)]
    assert max(steps) == pytest.approx(6.57, abs=0.005)
    assert steps.index(max(steps)) + 1 == 12
    assert steps[:2] == pytest.approx([(1 - 0.9**k) / math.sqrt(1 - 0.999**k) for k in (1, 2)])
