"""Regularisers: the gradient of the penalty that they name, constraints that hold after every step, nothing else."""

import math

import pytest
import torch
from torch import nn

from sb3_redo.interventions import (
    NormProjectionCallback,
    ParsevalCallback,
    RegenerativeCallback,
    WeightClippingCallback,
)
from sb3_redo.sb3.parameters import is_target
from tests.helpers.algorithms import EVERY, IMAGES, VECTORS, build, half, learn
from tests.helpers.marks import alternating, mostly_slow
from tests.helpers.runs import Tape, differences, fingerprint, reloaded

REGULARISERS = {
    "regenerative": lambda **settings: RegenerativeCallback(0.01, **settings),
    "parseval": lambda **settings: ParsevalCallback(0.01, **settings),
    "clipping": lambda **settings: WeightClippingCallback(0.5, **settings),
    "projection": lambda **settings: NormProjectionCallback(**settings),
}
every_regulariser = pytest.mark.parametrize("make", REGULARISERS.values(), ids=REGULARISERS)


def penalty_gradients(penalty, model):
    """By autograd, of a penalty that is a function of named parameters."""
    copies = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.policy.named_parameters()}
    loss = penalty(copies)
    gradients = torch.autograd.grad(loss, list(copies.values()), allow_unused=True)
    return dict(zip(copies, gradients, strict=True)), float(loss.detach())


def regenerative(model):
    initial = model.initial_parameters

    def penalty(parameters):
        return 0.01 * sum((parameters[name] - initial[name]).pow(2).sum() for name in initial)

    return penalty


def hidden_layers(kind):
    """Of a DQN."""
    extractor = [f"q_net.features_extractor.{layer}" for layer in ("cnn.0", "cnn.2", "cnn.4", "linear.0")]
    return [*(extractor if kind == IMAGES else []), "q_net.q_net.0", "q_net.q_net.2"]


def parseval(model):
    def penalty(parameters):
        layers = hidden_layers(IMAGES if "q_net.features_extractor.cnn.0.weight" in parameters else VECTORS)
        weights = [parameters[f"{layer}.weight"].flatten(1) for layer in layers]
        return 0.01 * sum((weight @ weight.T - 2 * torch.eye(len(weight))).pow(2).sum() for weight in weights)

    return penalty


@pytest.mark.parametrize("kind", [VECTORS, pytest.param(IMAGES, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("make", "penalty"),
    [(lambda: RegenerativeCallback(0.01), regenerative), (lambda: ParsevalCallback(0.01, 2.0), parseval)],
    ids=["regenerative", "parseval"],
)
def test_what_is_added_is_the_gradient_of_the_penalty(make, penalty, kind):
    model, callback = build("DQN", kind), make()
    optimizer = model.policy.optimizer
    seen = []

    def before(*_):
        seen.append([{name: p.grad.clone() for name, p in model.policy.named_parameters() if p.grad is not None}])

    def after(*_):
        added = {name: p.grad - seen[-1][0][name] for name, p in model.policy.named_parameters() if p.grad is not None}
        seen[-1] += [added, penalty_gradients(penalty(model), model)[0]]

    optimizer.register_step_pre_hook(before)
    hooked = callback._on_training_start

    def start():
        hooked()
        optimizer.register_step_pre_hook(after)

    callback._on_training_start = start
    learn(model, callback)
    assert len(seen) > 10
    for _, added, expected in seen:
        for name, gradient in added.items():
            wanted = expected[name] if expected[name] is not None else torch.zeros_like(gradient)
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
    assert any(float(gradient.abs().max()) > 1e-5 for gradient in seen[-1][1].values())


def test_what_is_logged_is_the_penalty_without_its_strength():
    tape, model, callback = Tape(), build("DQN"), ParsevalCallback(0.01, logging_period=5)
    learn(model, callback, tape=tape)
    _, loss = penalty_gradients(parseval(model), model)
    callback.prepare()
    assert callback.values()["penalty"] == pytest.approx(loss / 0.01, rel=1e-4)
    assert len(tape.values("parseval/penalty")) > 3
    tape, model = Tape(), build("DQN")
    learn(model, RegenerativeCallback(0.0, logging_period=5), tape=tape)
    assert 0 < tape.values("regenerative/distance")[0] < tape.values("regenerative/distance")[-1]


@pytest.mark.parametrize("name", [each for each in EVERY if each.values != ("TRPO",)])
def test_a_strong_pull_keeps_a_network_near_to_where_it_began(name):
    def moved(callback):
        model = build(name)
        initial = {key: tensor.detach().clone() for key, tensor in model.policy.named_parameters()}
        learn(model, callback, name=name)
        return sum(
            float((tensor.detach() - initial[key]).pow(2).sum())
            for key, tensor in model.policy.named_parameters()
            if not is_target(key)
        )

    # Adam makes steps of one size whatever the gradient's: the pull decides their direction.
    assert moved(RegenerativeCallback(100.0)) < 0.5 * moved(None)


@pytest.mark.parametrize("make", [REGULARISERS["regenerative"], REGULARISERS["parseval"]])
def test_gradients_that_are_not_all_of_training_are_refused(make):
    with pytest.raises(RuntimeError, match="TRPO changes its policy without an optimizer"):
        learn(build("TRPO"), make(), name="TRPO")


@pytest.mark.parametrize("name", EVERY)
def test_no_weight_is_beyond_its_bound_after_a_step(name):
    model, callback = build(name), WeightClippingCallback(0.5)
    learn(model, callback, name=name)
    assert len(callback._bounds) >= 4
    for path, bound in callback._bounds.items():
        assert float(model.policy.get_parameter(path).detach().abs().max()) <= bound * (1 + 1e-6)
    first = next(path for path in callback._bounds if path.endswith("weight"))
    inputs = model.policy.get_parameter(first)[0].numel()
    assert callback._bounds[first] == callback._bounds[first.replace("weight", "bias")] == 0.5 / math.sqrt(inputs)


@pytest.mark.parametrize("name", EVERY)
def test_hidden_layers_keep_their_norm_and_output_layers_do_not(name):
    model = build(name)
    initial = {key: float(tensor.detach().norm()) for key, tensor in model.policy.named_parameters()}
    callback = NormProjectionCallback()
    learn(model, callback, name=name)
    assert len(callback.weights) > 1
    for key, tensor in model.policy.named_parameters():
        if key in callback.weights:
            assert float(tensor.detach().norm()) == pytest.approx(initial[key], rel=1e-4)
    others = [key for key in callback._parameters if key not in callback.weights and key.endswith("weight")]
    norms = {key: float(model.policy.get_parameter(key).detach().norm()) for key in others}
    assert any(norm != pytest.approx(initial[key], rel=1e-4) for key, norm in norms.items())


class Beside:
    """A callback's class whose steps keep the weights as the optimizer left them and as the callback did."""

    def after_step(self, names):
        stepped = self.snapshot()
        super().after_step(names)
        self.__dict__.setdefault("seen", []).append((stepped, self.snapshot()))

    def snapshot(self):
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}


@pytest.mark.parametrize("kind", [VECTORS, IMAGES])
def test_clipping_puts_what_is_beyond_a_layers_bound_on_it_and_leaves_the_rest(kind):
    class Clipping(Beside, WeightClippingCallback):
        pass

    callback = Clipping(0.5)
    model = learn(build("DQN", kind), callback)
    clipped = left = 0
    for stepped, after in callback.seen:
        for name, before in stepped.items():
            layer = model.policy.get_submodule(name.rpartition(".")[0])
            inputs = (
                layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels * math.prod(layer.kernel_size)
            )
            bound = 0.5 / math.sqrt(inputs)
            beyond = before.abs() > bound
            assert torch.equal(after[name][~beyond], before[~beyond])
            torch.testing.assert_close(after[name][beyond], before[beyond].sign() * bound)
            clipped, left = clipped + int(beyond.sum()), left + int((~beyond).sum())
    assert min(clipped, left) > 100


@pytest.mark.parametrize("kind", [VECTORS, pytest.param(IMAGES, marks=pytest.mark.slow)])
def test_projection_scales_a_hidden_layers_weights_and_changes_nothing_else(kind):
    class Projecting(Beside, NormProjectionCallback):
        pass

    callback, model = Projecting(), build("DQN", kind)
    norms = {name: float(parameter.detach().norm()) for name, parameter in model.policy.named_parameters()}
    learn(model, callback)
    hidden = {f"{name}.weight" for name in hidden_layers(kind)}
    assert callback.seen
    for stepped, after in callback.seen:
        for name, before in stepped.items():
            expected = before * (norms[name] / float(before.norm())) if name in hidden else before
            torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-8)
    moved = [name for name in hidden if abs(float(callback.seen[-1][0][name].norm()) / norms[name] - 1) > 1e-5]
    assert moved


@every_regulariser
def test_excluded_layers_are_left_alone(make):
    callback = make(exclude=["q_net.q_net.2", "q_net.4"], logging_period=5)
    learn(build("DQN"), callback)
    assert {name.rpartition(".")[0] for name in callback._parameters} == {"q_net.q_net.0"}
    for pattern, message in (("cnn", "which matches no layer"), ("*", "leaves out every hidden layer")):
        with pytest.raises(RuntimeError, match=message):
            learn(build("DQN"), make(exclude=[pattern]))


def test_clipping_leaves_excluded_layers_as_they_are():
    model = build("DQN", learning_rate=0.0)
    before = {name: parameter.clone() for name, parameter in model.q_net.named_parameters()}
    learn(model, WeightClippingCallback(0.1, exclude=["q_net.0"]))
    changed = {name for name, parameter in model.q_net.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert not any(".0." in name for name in changed)


@pytest.mark.parametrize("name", [each for each in EVERY if each.values != ("TRPO",)])
def test_strong_parseval_regularisation_keeps_hidden_rows_nearer_to_orthogonal(name):
    def penalty(strength):
        callback, model = ParsevalCallback(strength), build(name)
        learn(model, callback, name=name)
        return callback.values()["penalty"]

    assert penalty(10.0) < penalty(0.0)


@pytest.mark.parametrize(("name", "make"), alternating(["DQN", "SAC", "PPO"], REGULARISERS))
def test_a_run_saved_and_continued_is_the_uninterrupted_run(make, name, tmp_path):
    whole, parts = Tape(), Tape()
    uninterrupted = fingerprint(learn(build(name), make(logging_period=5), tape=whole, name=name))
    first = learn(build(name), make(logging_period=5), half(name), parts)
    continued = fingerprint(learn(reloaded(first, tmp_path), make(logging_period=5), half(name), parts))
    assert parts.points == whole.points
    assert len(whole.points) > 1
    assert differences(uninterrupted, continued) == []


@pytest.mark.parametrize(
    "make", mostly_slow([REGULARISERS["regenerative"], REGULARISERS["projection"]], [REGULARISERS["projection"]])
)
def test_what_a_network_began_with_is_found_when_it_is_compiled(make):
    model = learn(build("DQN"), make())
    model.policy.q_net = torch.compile(model.policy.q_net, backend="eager")
    model._create_aliases()
    callback = make()
    learn(model, callback)
    torch.compiler.reset()
    began = dict(build("DQN").policy.named_parameters())
    found = callback._initial if isinstance(callback, RegenerativeCallback) else callback._norms
    assert len(found) > 1
    assert all("_orig_mod" in name for name in found)
    for name, kept in found.items():
        start = began[name.replace("_orig_mod.", "")].detach()
        torch.testing.assert_close(kept, start if kept.dim() else start.norm())


@every_regulariser
def test_nothing_is_left_behind(make):
    model = build("DQN")
    learn(model, make())
    assert not model.policy.optimizer._optimizer_step_pre_hooks
    assert not model.policy.optimizer._optimizer_step_post_hooks


def test_a_hook_that_an_interrupted_training_left_does_nothing():
    class Stopping(WeightClippingCallback):
        def _on_step(self):
            if self.num_timesteps == 30:
                raise KeyboardInterrupt
            return True

    model = build("DQN")
    with pytest.raises(KeyboardInterrupt):
        learn(model, Stopping(1e-6))
    learn(model, None)
    assert max(float(parameter.detach().abs().max()) for parameter in model.q_net.parameters()) > 1e-3


SGD = {"policy_kwargs": {"optimizer_class": torch.optim.SGD}}


@pytest.mark.parametrize("make", [REGULARISERS["regenerative"], REGULARISERS["projection"]])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("DQN", {}), ("PPO", {}), ("PPO", SGD), ("A2C", SGD)],
    ids=["DQN", "PPO", "PPO with SGD", "A2C with SGD"],
)
def test_what_a_model_began_with_must_be_known(make, name, settings):
    model = learn(build(name, **settings), None, name=name)
    with pytest.raises(RuntimeError, match=r"was trained without .*: its initial values are not known"):
        learn(model, make(), name=name)


def test_target_networks_are_not_pulled():
    model = build("DQN")
    learn(model, RegenerativeCallback())
    assert not any(is_target(name) for name in model.initial_parameters)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegenerativeCallback(-1), "strength must be a finite number of at least 0"),
        (lambda: WeightClippingCallback(0), "bound must be greater than 0"),
        (lambda: ParsevalCallback(logging_period=0), "logging_period must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
