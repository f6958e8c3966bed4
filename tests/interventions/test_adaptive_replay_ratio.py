"""Adaptive replay ratio: low until the critic's plasticity changes little, high from then on, exactly."""

from types import SimpleNamespace

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_redo import DormancyCallback, ReDoCallback, trace_wiring
from sb3_redo.dormancy.meter import Meter
from sb3_redo.interventions import AdaptiveReplayRatioCallback
from sb3_redo.interventions.adaptive_replay_ratio import active_fraction
from tests.helpers.algorithms import (
    ALGORITHMS,
    DISCRETE,
    EVERY,
    OBSERVATIONS,
    VECTORS,
    build,
    is_on_policy,
    learn,
)
from tests.helpers.runs import Corridor, Tape, differences, fingerprint, reloaded

PERIOD = 5
OFF_POLICY = [each for each in EVERY if not is_on_policy(each.values[0])]


def adaptive(**settings):
    return AdaptiveReplayRatioCallback(**{"measuring_period": PERIOD, "batch_size": 8, **settings})


class Scripted(AdaptiveReplayRatioCallback):
    """Measures what it is told to, when training begins and after each period, and that again."""

    def __init__(self, values, **settings):
        super().__init__(measuring_period=PERIOD, batch_size=8, **settings)
        self.script = values

    def _measured(self, gradient_step):
        super()._measured(gradient_step)
        return self.script[gradient_step // PERIOD % len(self.script)]


class Pace(BaseCallback):
    """Notes environment steps and gradient steps before each rollout."""

    def __init__(self):
        super().__init__()
        self.made = []

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        self.made.append((self.model.num_timesteps, self.model._n_updates))

    def schedules(self):
        """What each rollout brought and the train() after it made, once training has begun."""
        pairs = zip(self.made, self.made[1:], strict=False)
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs if after[1]]


# The fraction of active units


def fraction(network, batch):
    wiring = trace_wiring(network, batch)
    meter = Meter(network, wiring, {layer.name: "net" for layer in wiring})
    return active_fraction(SimpleNamespace(meter=meter, forward=network), batch)


def test_worked_numbers():
    network = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0], [-1.0], [1.0], [1.0]]))
        network[0].bias.copy_(torch.tensor([0.0, 0.0, -10.0, 10.0]))
        network[2].weight.zero_()
        network[2].bias.copy_(torch.tensor([1.0, 2.0]))
    # Of the observations 1, 2 and -1: 2/3, 1/3, none and all; then all and all, on any.
    assert fraction(network, torch.tensor([[1.0], [2.0], [-1.0]])) == pytest.approx((2 / 3 + 1 / 3 + 0 + 1 + 1 + 1) / 6)


def test_a_channel_counts_place_by_place_and_as_one_neuron():
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1), nn.ReLU())
    network.append(nn.Linear(1, 1))
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[3].weight.zero_()
        network[3].bias.fill_(1.0)
    image = torch.tensor([[[[1.0, -1.0], [-1.0, -1.0]]]])
    assert fraction(network, image) == pytest.approx((1 / 4 + 1) / 2)


# The rule


@pytest.mark.parametrize(
    ("values", "raised_at"),
    [
        ([1.0, 0.5, 0.375, 1.0], 2),
        ([0.25, 0.75, 0.875, 0.0], 2),  # rising or falling
        ([0.5, 0.5, 0.0, 0.75], 1),  # the first comparison is with the network before training
        ([0.5, 0.75, 0.0, 1.0], 1),  # at most the tolerance
        ([0.5, 0.0, 0.5, 1.0], None),
    ],
)
def test_the_ratio_rises_once_two_measurements_differ_by_at_most_the_tolerance(values, raised_at):
    tape = Tape()
    learn(build("DQN"), Scripted(values, tolerance=0.25), 64, tape)
    steps = tape.values("replay_ratio/gradient_step")
    assert steps == [PERIOD * number for number in range(len(steps))]
    expected = [2 if raised_at is not None and number >= raised_at else 0.5 for number in range(len(steps))]
    assert tape.values("replay_ratio/ratio") == expected
    assert tape.values("replay_ratio/active_fraction")[: len(values)] == values[: len(steps)]
    assert len(steps) > 3


@pytest.mark.parametrize(
    ("n_envs", "low", "high", "slow", "fast"),
    [
        (1, 0.5, 2, (2, 1), (1, 2)),
        (2, 0.5, 2, (2, 1), (2, 4)),
        (2, "1/3", 0.75, (6, 2), (4, 3)),
    ],
)
def test_rollouts_and_trainings_have_the_ratio_exactly(n_envs, low, high, slow, fast):
    env = DummyVecEnv([lambda: Corridor(7, OBSERVATIONS[VECTORS], DISCRETE)] * n_envs)
    pace = Pace()
    model = learn(build("DQN", env=env), [Scripted([0.5, 0.1, 0.1], low=low, high=high), pace], 96)
    schedules = pace.schedules()
    assert set(schedules) == {slow, fast}
    changed = schedules.index(fast)
    assert schedules == [slow] * changed + [fast] * (len(schedules) - changed)
    # It holds from the rollout after the train() call that reached the tenth gradient step.
    assert changed == -(-2 * PERIOD // slow[1])
    assert (model.train_freq.frequency * n_envs, model.gradient_steps) == fast  # kept after training


def test_all_periods_stay_in_gradient_steps():
    tape = Tape()
    model = tape.watch(build("DQN", target_update_interval=12))
    redo = ReDoCallback(100.0, 7, 8, measuring_period=7)
    model.learn(80, callback=[Scripted([0.5, 0.1, 0.1]), redo])
    at = tape.at_gradient_steps("recycled")
    assert at == list(range(7, at[-1] + 1, 7))
    assert tape.values("replay_ratio/ratio")[-1] == 2
    assert at[-1] > 4 * PERIOD
    assert model.target_update_interval == 12  # SB3's own, in environment steps


@pytest.mark.parametrize("name", ["DQN", "SAC"])
def test_until_the_ratio_rises_training_is_that_at_the_low_ratio(name):
    def left(callback, **settings):
        return fingerprint(learn(build(name, **settings), callback, 60))

    plain = left(None, train_freq=4, gradient_steps=3)
    settled, unsettled = (Scripted(values, low=0.75, high=3) for values in ([0.5, 0.5], [0.5, 0.0]))
    assert differences(plain, left(unsettled)) == []
    assert unsettled.ratio == 0.75
    assert differences(plain, left(settled)) != []


@pytest.mark.parametrize("name", OFF_POLICY)
def test_every_off_policy_algorithm_trains_at_both_ratios(name):
    tape = Tape()
    model, callback = build(name), adaptive(tolerance=1.0)
    learn(model, callback, 64, tape, name)
    assert tape.values("replay_ratio/ratio")[0] == 0.5
    assert tape.values("replay_ratio/ratio")[-1] == 2
    assert all(0 < value < 1 for value in tape.values("replay_ratio/active_fraction"))
    networks = {layer.name.split(".")[0] for layer in callback.measurer.meter.layers}
    assert networks == {"q_net" if name == "DQN" else "quantile_net" if name == "QR-DQN" else "critic"}


def test_the_dormant_fraction_is_that_of_the_critics():
    tape = Tape()
    measuring = DormancyCallback(0.5, PERIOD, 8, networks=["critic"])
    callback = adaptive(measure="dormant_fraction", dormancy_threshold=0.5)
    learn(build("SAC"), [measuring, callback], 64, tape)
    assert tape.values("replay_ratio/dormant_fraction") == tape.values("dormancy/fraction") != []


def test_layers_and_networks_are_chosen():
    callback = adaptive(networks=["actor"], exclude=["latent_pi.0"])
    learn(build("SAC"), callback, 40)
    assert [layer.name for layer in callback.measurer.meter.layers] == ["actor.latent_pi.2"]
    with pytest.raises(RuntimeError, match="networks names 'actor', but the networks of DQN are 'q_net'"):
        learn(build("DQN"), adaptive(networks=["actor"]), 40)


# Saving


@pytest.mark.parametrize("tolerance", [1.0, 0.05])
@pytest.mark.parametrize("name", ["DQN", pytest.param("TD3", marks=pytest.mark.slow)])
def test_a_run_saved_and_continued_is_the_uninterrupted_run(name, tolerance, tmp_path):
    whole, parts = Tape(), Tape()
    uninterrupted = fingerprint(learn(build(name), adaptive(tolerance=tolerance), 80, whole, name))
    first = learn(build(name), adaptive(tolerance=tolerance), 40, parts, name)
    continued = learn(reloaded(first, tmp_path), adaptive(tolerance=tolerance), 40, parts, name)
    assert parts.points == whole.points
    assert differences(uninterrupted, fingerprint(continued)) == []


def test_the_ratio_in_force_is_saved_and_goes_on_with_other_settings(tmp_path):
    model = learn(build("DQN"), adaptive(tolerance=1.0), 64)
    plain = reloaded(model, tmp_path)
    assert (plain.train_freq.frequency, plain.gradient_steps) == (1, 2)
    callback = adaptive(tolerance=0.0, high=3)
    learn(plain, callback, 16)
    assert callback.ratio == 3


# Refusals


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("PPO", {}, "changes the replay ratio, which PPO does not have: use an off-policy algorithm"),
        ("DQN", {"gradient_steps": -1}, "gradient_steps=-1 asks for as many as there are environment steps: give"),
        ("SAC", {"train_freq": (2, "episode")}, "needs a train_freq in steps, got 2 episodes: give"),
    ],
)
def test_models_without_a_ratio_are_refused(name, settings, message):
    with pytest.raises(RuntimeError, match=message):
        learn(build(name, **settings), adaptive(), 40, name=name)


def test_two_of_them_are_refused():
    with pytest.raises(RuntimeError, match="two AdaptiveReplayRatioCallbacks would set one replay ratio"):
        learn(build("DQN"), [adaptive(), adaptive(low=1)], 40)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"low": 2}, ValueError, "low must be less than high, got low=2 and high=2"),
        ({"low": 0}, ValueError, "a replay ratio must be positive, got 0"),
        ({"high": "much"}, ValueError, "a replay ratio must be a number or a fraction"),
        ({"measure": "rank"}, ValueError, "measure must be"),
        ({"tolerance": -1}, ValueError, "tolerance must be"),
        ({"measuring_period": 0}, ValueError, "measuring_period must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        adaptive(**settings)


def test_it_is_tried_with_every_off_policy_algorithm():
    assert {each.values[0] for each in OFF_POLICY} == {n for n, a in ALGORITHMS.items() if not a.is_on_policy}
