"""Recycling a share of every layer: exactly as many as the schedule says, by whatever they are ranked."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.logger import Logger
from torch import nn

from sb3_redo.interventions import ScheduledReDoCallback
from sb3_redo.interventions.scheduled import least
from sb3_redo.wiring.structure import Wiring
from tests.helpers.algorithms import EVERY, IMAGES, VECTORS, build, half
from tests.helpers.marks import alternating
from tests.helpers.runs import Tape, differences, fingerprint, reloaded


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=30), st.data())
def test_exactly_as_many_are_taken_and_none_outranks_one_that_is_left(ranks, data):
    count = data.draw(st.integers(0, len(ranks)))
    ranks = torch.tensor(ranks)
    taken = least(ranks, count, generator(data.draw(st.integers(0, 9))))
    assert len(set(taken.tolist())) == count
    if 0 < count < len(ranks):
        left = [neuron for neuron in range(len(ranks)) if neuron not in taken.tolist()]
        assert ranks[taken].max() <= ranks[left].min()


def mask_of(neurons, number):
    mask = torch.zeros(number, dtype=torch.bool)
    mask[neurons] = True
    return mask


def test_ties_are_left_to_chance():
    masks = [mask_of(least(torch.zeros(40), 20, generator(seed)), 40) for seed in range(200)]
    shares = torch.stack(masks).float().mean(0)
    assert 0.3 < shares.min() <= shares.max() < 0.7


class Selecting(ScheduledReDoCallback):
    """Keeps when which neurons were selected from which report, as a bool mask for each layer."""

    def recycle(self, neurons, report):
        masks = [mask_of(neurons.get(layer.name, []), layer.neurons) for layer in report.layers]
        self.__dict__.setdefault("seen", []).append((self.gradient_step, report, masks))
        return super().recycle(neurons, report)


def learn(callback, steps=80, model=None, tape=None):
    model = model or build("DQN", policy_kwargs={"net_arch": [20, 30]})
    model.set_logger(Logger(None, [tape or Tape()]))
    return model.learn(steps, callback=callback, reset_num_timesteps=False)


@pytest.mark.parametrize("selection", ["lowest", "highest", "random"])
def test_the_share_falls_as_a_cosine(selection):
    tape = Tape()
    callback = Selecting(40, 0.5, selection, recycling_period=5, measuring_period=5, batch_size=8)
    learn(callback, tape=tape)
    steps = [step for step, _, _ in callback.seen]
    expected = [
        sum(round(size * 0.5 * math.cos(math.pi / 2 * min(step / 40, 1))) for size in (20, 30)) for step in steps
    ]
    assert tape.values("redo/recycled") == expected
    assert expected[0] > expected[-1] == 0
    for _, report, masks in callback.seen[:3]:
        for layer, chosen in zip(report.layers, masks, strict=True):
            taken, left = layer.scores[chosen], layer.scores[~chosen]
            assert (taken.max() <= left.min()) == (selection == "lowest")
            assert (taken.min() >= left.max()) == (selection == "highest")


def test_a_random_selection_is_another_at_every_period_and_spares_no_neuron():
    callback = Selecting(10_000, 0.5, "random", recycling_period=2, measuring_period=2, batch_size=8)
    learn(callback, 240)
    masks = [masks[0] for _, _, masks in callback.seen]
    shares = torch.stack(masks).float().mean(0)
    assert len(masks) > 80
    assert 0.3 < shares.min() <= shares.max() < 0.7
    assert len({tuple(mask.tolist()) for mask in masks}) > 0.9 * len(masks)


@pytest.mark.parametrize("name", EVERY)
def test_every_algorithm_recycles_as_many_as_the_schedule_says(name):
    tape = Tape()
    callback = Selecting(10_000, 0.5, "random", recycling_period=4, measuring_period=4, batch_size=8)
    learn(callback, 2 * half(name), build(name), tape)
    _, report, _ = callback.seen[0]
    # Of eight neurons each, half; the share has hardly fallen yet.
    recyclable = [layer for layer in report.layers if layer.recyclable]
    assert {len(layer.scores) for layer in recyclable} == {8}
    assert set(tape.values("redo/recycled")) == {4 * len(recyclable)}


def test_utility_weighs_activations_with_outgoing_weights():
    class Weighed(Selecting):
        def measure(self, gradient_step):
            weights = [self.model.q_net.q_net[index].weight.detach().clone() for index in (2, 4)]
            outgoing = [weight.abs().sum(0) for weight in weights]
            self.__dict__.setdefault("outgoing", []).append((gradient_step, outgoing))
            return super().measure(gradient_step)

    callback = Weighed(1000, 0.3, "utility", recycling_period=5, measuring_period=5, batch_size=8)
    learn(callback)
    differs = False
    outgoing_at = dict(callback.outgoing)
    for step, report, masks in callback.seen:
        for layer, chosen, weight in zip(report.layers, masks, outgoing_at[step], strict=True):
            utility = layer.scores * weight
            assert utility[chosen].max() <= utility[~chosen].min()
            differs |= bool(layer.scores[chosen].max() > layer.scores[~chosen].min())
    assert differs


@pytest.mark.parametrize(("in_parts", "kind"), alternating([False, True], [VECTORS, IMAGES]))
def test_cbp_is_the_authors_score(kind, in_parts, monkeypatch):
    class Scoring(Selecting):
        def recycle(self, neurons, report):
            q_net = self.model.q_net
            hidden = [module for module in q_net.modules() if isinstance(module, nn.ReLU)]
            outputs = []
            hooks = [module.register_forward_hook(lambda *call: outputs.append(call[-1])) for module in hidden]
            with torch.no_grad():
                q_net(report.batch.observations)
            for hook in hooks:
                hook.remove()
            scores = {}
            for layer, h in zip(report.wiring, outputs, strict=True):
                ((consumer, owners),) = layer.consumers.items()
                over = [axis for axis in range(h.ndim) if axis != 1]
                deviation = (h - h.mean(over, keepdim=True)).abs().mean(over)
                columns = self.weight(consumer).transpose(0, 1).flatten(1).abs().sum(1)
                outgoing = [float(columns[owners == neuron].sum()) for neuron in range(layer.neurons)]
                incoming = self.weight(layer.name).flatten(1).abs().sum(1)
                scores[layer.name] = deviation * torch.tensor(outgoing) / incoming
            self.__dict__.setdefault("scores", []).append(scores)
            deviations = self.measurer.deviations(report.batch)
            for layer in report.layers:
                found = layer, report.wiring[layer.name], self.model.policy, deviations[layer.name]
                torch.testing.assert_close(self.select.ranks(*found), scores[layer.name], rtol=1e-4, atol=1e-7)
            return super().recycle(neurons, report)

        def weight(self, layer):
            return self.model.policy.get_submodule(layer).weight.detach().clone()

    if in_parts:
        monkeypatch.setattr(Wiring, "rows_at_once", 3)
    callback = Scoring(1000, 0.3, "cbp", recycling_period=5, measuring_period=5, batch_size=8)
    learn(callback, model=build("DQN", kind))
    assert len(callback.scores) > 5
    differs = False
    for (_, report, masks), scores in zip(callback.seen, callback.scores, strict=True):
        for layer, chosen in zip(report.layers, masks, strict=True):
            assert scores[layer.name][chosen].max() <= scores[layer.name][~chosen].min() * (1 + 1e-4)
            differs |= bool(layer.scores[chosen].max() > layer.scores[~chosen].min())
    assert differs


@pytest.mark.parametrize("name", EVERY)
def test_cbp_ranks_the_neurons_of_every_algorithm(name):
    callback = Selecting(10_000, 0.5, "cbp", recycling_period=4, measuring_period=4, batch_size=8)
    learn(callback, 2 * half(name), build(name))
    for _, report, masks in callback.seen:
        chosen = zip(report.layers, masks, strict=True)
        assert {int(mask.sum()) for layer, mask in chosen if layer.recyclable} == {4}


def test_what_is_logged_as_dormant_is_what_is_dormant():
    tape = Tape()
    callback = Selecting(1000, 0.5, dormancy_threshold=0.0, recycling_period=5, measuring_period=5, batch_size=8)
    learn(callback, tape=tape)
    fractions = [report.dormant_fraction for _, report, _ in callback.seen]
    assert tape.values("dormancy/fraction")[1:] == pytest.approx(fractions)


def test_a_run_saved_and_continued_is_the_uninterrupted_run(tmp_path):
    def recycling():
        return ScheduledReDoCallback(60, 0.3, "random", recycling_period=7, measuring_period=7, batch_size=8)

    whole, parts = Tape(), Tape()
    uninterrupted = fingerprint(learn(recycling(), 80, build("DQN"), whole))
    first = learn(recycling(), 40, build("DQN"), parts)
    continued = fingerprint(learn(recycling(), 40, reloaded(first, tmp_path), parts))
    assert parts.points == whole.points
    assert differences(uninterrupted, continued) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 1.5}, "fraction must be at most 1"),
        ({"end": 0}, "end must be at least 1"),
        ({"selection": "lowset"}, "did you mean 'lowest'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ScheduledReDoCallback(**settings)
