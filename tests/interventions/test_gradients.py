"""Recycling by gradients: those of each network's own loss, read without a trace."""

import pytest
import torch

from sb3_redo.interventions import GradientReDoCallback
from sb3_redo.interventions.gradients import gradient_report
from tests.helpers.algorithms import EVERY, IMAGES, VECTORS, build, half, known_layers, learn
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import Tape, differences, fingerprint, hooks_of, optimizers_of, reloaded

WITH_GRADIENTS = [each for each in EVERY if each.values != ("TRPO",)]
PERIOD = 5


def recycling(threshold=0.5, cls=GradientReDoCallback, **settings):
    return cls(threshold, **{"recycling_period": PERIOD, "measuring_period": PERIOD, "batch_size": 8, **settings})


class Selecting(GradientReDoCallback):
    """Keeps what was selected, and when."""

    def recycle(self, neurons, report):
        selected = gradient_report(report, self.magnitudes, self.gradient_threshold)
        dormant = selected.dormant_neurons()
        assert neurons.keys() == dormant.keys()
        assert all(torch.equal(neurons[name], dormant[name]) for name in neurons)
        self.__dict__.setdefault("seen", []).append((self.gradient_step, report, selected))
        return super().recycle(neurons, report)


class Losses:
    """The gradients of each network's own loss at its optimizer's steps, by autograd and not from ``.grad``."""

    def __init__(self, model, monkeypatch):
        self.latest, self.own = {}, {}
        named = dict(model.policy.named_parameters())
        backward = torch.Tensor.backward

        def differentiating(loss, *args, **kwargs):
            gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
            self.latest = {name: value for name, value in zip(named, gradients, strict=True) if value is not None}
            backward(loss, *args, **kwargs)

        def keeping(optimizer, *_):
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            self.own |= {name: value for name, value in self.latest.items() if id(named[name]) in held}

        monkeypatch.setattr(torch.Tensor, "backward", differentiating)
        for optimizer in optimizers_of(model).values():
            optimizer.register_step_pre_hook(keeping)

    def scores(self):
        rows = {name: value.flatten(1).abs().mean(1) for name, value in self.own.items() if value.ndim > 1}
        return {name.removesuffix(".weight"): means / means.mean() for name, means in rows.items()}


# TD3's actor steps every other time.
CASES = [
    *((each.values[0], VECTORS, () if each.values == ("TD3",) else each.marks) for each in WITH_GRADIENTS),
    *(("DQN", IMAGES, ()), ("PPO", IMAGES, pytest.mark.slow)),
]


@pytest.mark.parametrize(("name", "kind"), [pytest.param(*each[:2], marks=each[2]) for each in CASES])
def test_scores_are_of_the_latest_gradients_of_each_networks_own_loss(name, kind, monkeypatch):
    model = build(name, kind)
    losses = Losses(model, monkeypatch)

    class Compared(Selecting):
        def recycle(self, neurons, report):
            expected = losses.scores()
            super().recycle(neurons, report)
            self.seen[-1] = (*self.seen[-1], expected)

    callback = recycling(cls=Compared)
    learn(model, callback, name=name)
    known = {layer for layer, what in known_layers(name, kind).items() if what.feeds}
    compared = [seen for seen in callback.seen if seen[2].layers]
    assert len(compared) >= 2
    for _, _, selected, expected in compared:
        assert {layer.name for layer in selected.layers} == known
        for layer in selected.layers:
            torch.testing.assert_close(layer.scores, expected[layer.name].nan_to_num(), rtol=1e-4, atol=1e-5)
            assert torch.equal(layer.dormant, layer.scores <= 0.5)


def test_what_an_actors_loss_leaves_in_the_critic_is_not_taken_for_its_gradient():
    left = []

    class Compared(Selecting):
        def recycle(self, neurons, report):
            policy = self.model.policy
            grads = {layer.name: policy.get_submodule(layer.name).weight.grad.clone() for layer in report.layers}
            left.append({name: grad.abs().mean(1) / grad.abs().mean() for name, grad in grads.items()})
            super().recycle(neurons, report)

    callback = recycling(cls=Compared)
    learn(build("SAC"), callback)
    same = {"actor": [], "critic": []}
    for (_, _, selected), polluted in zip(callback.seen, left, strict=True):
        for layer in selected.layers:
            same[layer.network].append(torch.allclose(layer.scores, polluted[layer.name]))
    # The smaller of two critics' values is the actor's loss, and leaves nothing in the other one.
    assert all(same["actor"])
    assert sum(same["critic"]) < 0.6 * len(same["critic"])


def test_worked_scores():
    callback = recycling(cls=Selecting)
    learn(build("DQN", policy_kwargs={"net_arch": [4]}), callback, 30)
    _, report, _ = callback.seen[-1]

    def select(*magnitudes):
        return gradient_report(report, {"q_net.q_net.0": torch.tensor(magnitudes)}, 0.5)

    selected = select(0.0, 1.0, 3.0, 4.0)
    assert selected.layers[0].scores.tolist() == [0.0, 0.5, 1.5, 2.0]
    assert selected.layers[0].dormant.tolist() == [True, True, False, False]
    assert selected.dormant_neurons()["q_net.q_net.0"].tolist() == [0, 1]
    assert select(0.0, 0.0, 0.0, 0.0).layers[0].dormant.all()
    unknown = select(0.0, float("nan"), 1.0, 1.0)
    assert unknown.not_finite == ("q_net.q_net.0",)
    assert unknown.dormant_neurons() == {}
    assert gradient_report(report, {}, 0.5).layers == ()


class Sparing(GradientReDoCallback):
    """Reads all that it needs and recycles nothing."""

    def recycle(self, neurons, report):
        return super().recycle({}, report)


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_reading_gradients_leaves_no_trace(name):
    plain = fingerprint(learn(build(name), None, name=name))
    model = learn(build(name), recycling(cls=Sparing), name=name)
    assert differences(plain, fingerprint(model)) == []
    assert hooks_of(model) == []
    assert not any(optimizer._optimizer_step_pre_hooks for optimizer in optimizers_of(model).values())


def test_what_is_logged_are_the_shares_that_are_recycled():
    tape, callback = Tape(), recycling(cls=Selecting)
    learn(build("SAC"), callback, tape=tape)
    selected = [report for _, _, report in callback.seen]
    for key, values in {
        "gradients/fraction": [report.dormant_fraction for report in selected],
        "gradients/critic": [report.network_fraction("critic") for report in selected],
        "gradients_layers/actor.latent_pi.0": [report.layers[0].dormant_fraction for report in selected],
        "redo/recycled": [sum(int(layer.dormant.sum()) for layer in report.layers) for report in selected],
        # What is dormant is measured on activations, as by any other callback.
        "dormancy/fraction": [None, *(report.dormant_fraction for _, report, _ in callback.seen)],
    }.items():
        assert tape.values(key)[-len(selected) :] == pytest.approx(values[-len(selected) :])
    assert sum(tape.values("redo/recycled")) > 0


@pytest.mark.parametrize("name", mostly_slow(["DQN", "TD3", "PPO", "CrossQ"], ["TD3", "PPO"]))
def test_a_run_saved_and_continued_is_the_uninterrupted_run(name, tmp_path):
    whole, parts = Tape(), Tape()
    uninterrupted = fingerprint(learn(build(name), recycling(), tape=whole, name=name))
    first = learn(build(name), recycling(), half(name), tape=parts, name=name)
    continued = fingerprint(learn(reloaded(first, tmp_path), recycling(), half(name), tape=parts, name=name))
    assert parts.points == whole.points
    assert differences(uninterrupted, continued) == []
    assert sum(whole.values("redo/recycled")) > 0


def test_an_algorithm_without_gradients_is_refused():
    with pytest.raises(RuntimeError, match="TRPO changes its policy without an optimizer"):
        learn(build("TRPO"), recycling(), name="TRPO")
    with pytest.raises(ValueError, match="gradient_threshold"):
        recycling(-1.0)
