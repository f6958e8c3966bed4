"""Shrink and perturb by dormancy: the share of old weights that stays follows the dormant fraction, as in DrM."""

import pytest
import torch
from torch import nn

from sb3_redo import DormancyCallback, ReDoCallback, measure_dormancy
from sb3_redo.interventions import ShrinkAndPerturbCallback
from sb3_redo.interventions.perturbation import DORMANCY, factor_of, small_output_fraction
from tests.helpers.algorithms import ALGORITHMS, IMAGES, build, half, is_on_policy, learn
from tests.helpers.marks import alternating, mostly_slow
from tests.helpers.runs import Tape, differences, fingerprint, kill, reloaded

PERIOD = 7


def following(**settings):
    return ShrinkAndPerturbCallback(**{"factor": "dormancy", "period": PERIOD, "batch_size": 8, **settings})


class Spied(ShrinkAndPerturbCallback):
    """Keeps the weights before and after each perturbation, the fresh ones, and when it has measured what."""

    def intervene(self, fresh):
        before = {name: tensor.detach().clone() for name, tensor in self.model.policy.state_dict().items()}
        values = super().intervene(fresh)
        after = {name: tensor.detach().clone() for name, tensor in self.model.policy.state_dict().items()}
        self.__dict__.setdefault("seen", []).append((before, after, fresh, values))
        return values

    def _dormant_fraction(self, gradient_step):
        found = super()._dormant_fraction(gradient_step)
        self.__dict__.setdefault("measured", []).append((gradient_step, found))
        return found


def spied(**settings):
    return Spied(**{"factor": "dormancy", "period": PERIOD, "batch_size": 8, **settings})


# Worked numbers


@pytest.mark.parametrize(
    ("dormant", "expected"), [(0.0, 0.9), (0.05, 0.9), (0.1, 0.8), (0.25, 0.5), (0.4, 0.2), (1.0, 0.2)]
)
def test_the_factor_is_one_minus_twice_the_dormant_fraction_within_bounds(dormant, expected):
    assert factor_of(dormant) == pytest.approx(expected)
    assert factor_of(dormant, 1.0, 0.0, 1.0) == pytest.approx(1 - dormant)


def network_with(outputs):
    """A layer with these outputs for an observation of 1, a ReLU, and one output."""
    network = nn.Sequential(nn.Linear(1, len(outputs), bias=False), nn.ReLU(), nn.Linear(len(outputs), 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor(outputs)[:, None])
    return network


def both_fractions(outputs, threshold):
    network, batch = network_with(outputs), torch.ones(4, 1)
    ours = measure_dormancy(network, dormancy_threshold=threshold, observations=batch).dormant_fraction
    return ours, small_output_fraction(network, ["0", "2"], network, batch, threshold)


def test_what_drm_calls_dormant_is_not_what_we_do():
    # The mean |z| is 5.025, so that below 0.126 an output is small, also where no ReLU shows it. Neurons that are
    # silent behind the ReLU, the second and the fourth, are dormant to us, and the third, at 0.1 of 2.525, is not.
    assert both_fractions([10.0, -10.0, 0.1, 0.0], 0.025) == (2 / 4, 2 / 5)
    # All that is dead in front of the ReLU is active to DrM.
    assert both_fractions([10.0, -10.0, -10.0, -10.0], 0.025) == (3 / 4, 0.0)
    # At the threshold itself, 0.5 of the mean of 2, a neuron is dormant to us and not to DrM.
    assert both_fractions([1.0, 3.0], 0.5) == (1 / 2, 0.0)
    # A layer without any activity is dormant to us, and not to DrM: its outputs are not below 0.
    assert both_fractions([0.0, 0.0], 0.025) == (1.0, 0.0)


def test_observations_and_passes_are_pooled():
    torch.manual_seed(0)
    network, batch = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 2)), torch.randn(10, 3)
    outputs = [network[0](batch), network(batch)]
    means = [each.detach().abs().mean(0) for each in outputs]
    expected = sum(int((each < 0.8 * each.mean()).sum()) for each in means) / 52
    assert 0 < expected < 1
    for rows in (3, 1024):
        assert small_output_fraction(network, ["0", "2"], network, batch, 0.8, rows) == expected
    assert "forward" not in vars(network[0])


class Counted(nn.Linear):
    """Counts its calls, in evaluation mode too."""

    def __init__(self):
        super().__init__(6, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, value):
        self.calls += 1
        return super().forward(value)


def test_the_network_its_modes_and_random_streams_are_left_as_they_are():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), Counted()).train()
    batch = torch.randn(10, 3)
    before, stream = {key: value.clone() for key, value in network.state_dict().items()}, torch.get_rng_state()
    found = {small_output_fraction(network, ["0", "3"], network, batch, 0.8) for _ in range(3)}
    assert len(found) == 1
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(module.training for module in network.modules())
    # As an evaluating network computes it.
    network.eval()
    means = [each.detach().abs().mean(0) for each in (network[0](batch), network(batch))]
    assert found == {sum(int((each < 0.8 * each.mean()).sum()) for each in means) / 8}


# In a training


@pytest.mark.parametrize(("name", "dormancy"), alternating({name: name for name in ("DQN", "SAC", "PPO")}, DORMANCY))
def test_weights_become_the_factor_of_old_ones_and_the_rest_of_fresh_ones(name, dormancy):
    threshold = {"activations": 0.3, "linear_outputs": 0.7}[dormancy]
    bounds = {"factor_rate": 1.0, "factor_min": 0.0, "factor_max": 1.0}
    callback, tape = spied(dormancy=dormancy, dormancy_threshold=threshold, **bounds), Tape()
    learn(build(name), callback, tape=tape, name=name)
    factors, shares = (tape.values(f"perturb/{key}") for key in ("factor", "dormant_fraction"))
    assert len(factors) == len(callback.seen) > 0
    assert factors == [1 - share for share in shares]
    assert 0 < min(factors) < 1
    for factor, (before, after, fresh, _) in zip(factors, callback.seen, strict=True):
        for key, value in fresh.items():
            expected = factor * before[key].double() + (1 - factor) * value.double()
            torch.testing.assert_close(after[key].double(), expected, rtol=1e-5, atol=1e-7)


def test_the_dormant_fraction_is_the_one_that_is_logged():
    tape = Tape()
    settings = {"dormancy_threshold": 0.6, "batch_size": 8, "networks": ["critic"]}
    monitor = DormancyCallback(measuring_period=PERIOD, **settings)
    learn(build("SAC"), [monitor, following(**settings)], tape=tape)
    logged = dict(zip(tape.values("dormancy/gradient_step"), tape.values("dormancy/fraction"), strict=True))
    found = tape.values("perturb/dormant_fraction")
    assert found == [logged[step] for step in range(PERIOD, 44, PERIOD)]
    assert len(set(found)) > 2


def test_linear_outputs_are_those_of_the_chosen_networks_and_of_no_convolution():
    def layers(name="SAC", kind="MlpPolicy", **settings):
        callback = following(dormancy="linear_outputs", period=1000, **settings)
        learn(build(name, kind), callback, 30 if name != "PPO" else 16)
        return callback._linear_layers

    assert layers(networks=["actor"]) == ["actor.latent_pi.0", "actor.latent_pi.2", "actor.mu", "actor.log_std"]
    critics = [f"critic.qf{number}.{layer}" for number in (0, 1) for layer in (0, 2, 4)]
    assert sorted(layers(networks=["critic"])) == critics
    assert sorted(layers(networks=["critic"], exclude=["critic.qf1.4"])) == critics[:-1]
    value = ["mlp_extractor.value_net.0", "mlp_extractor.value_net.2", "value_net"]
    assert layers("PPO", networks=["value"]) == value
    images = layers("DQN", IMAGES)
    assert sorted(images) == ["q_net.features_extractor.linear.0", *(f"q_net.q_net.{layer}" for layer in (0, 2, 4))]


@pytest.mark.slow
def test_the_settings_of_drm_leave_convolutions_alone_and_measure_the_actor():
    settings = {"dormancy": "linear_outputs", "networks": ["actor"], "reset_optimizer": True, "exclude": ["*.cnn.*"]}
    callback = spied(**settings)
    learn(build("SAC", IMAGES), callback)
    changed = set(callback.seen[0][2])
    assert not any(".cnn." in name for name in changed)
    assert {"actor.features_extractor.linear.0.weight", "actor.mu.weight", "critic.qf0.0.weight"} <= changed
    assert {layer.split(".")[0] for layer in callback._linear_layers} == {"actor"}
    assert "actor.features_extractor.linear.0" in callback._linear_layers


def with_four_dead_neurons():
    model = build("DQN", learning_rate=1e-5)
    kill(model.q_net.q_net[0], [0, 1, 2, 3])
    kill(model.q_net.q_net[2], [])
    return model


def test_dead_neurons_move_the_factor_of_activations_alone():
    def factors(dormancy):
        model, tape = with_four_dead_neurons(), Tape()
        learn(model, following(dormancy=dormancy, period=40), tape=tape)
        return tape.values("perturb/factor")

    # Four of 16 neurons; their outputs in front of the ReLU are as large as the others'.
    assert factors("activations")[0] == pytest.approx(1 - 2 * 4 / 16)
    assert factors("linear_outputs") == [0.9]


def test_in_front_of_recycling_it_measures_what_is_recycled_and_behind_it_what_is_left():
    def measured(order):
        model, tape = with_four_dead_neurons(), Tape()
        callbacks = [ReDoCallback(0.0, recycling_period=40, batch_size=8)]
        callbacks.insert(order, following(period=40, dormancy_threshold=0.0))
        learn(model, callbacks, tape=tape)
        return tape.values("perturb/dormant_fraction"), tape.values("redo/recycled")

    before, _ = measured(0)
    after, recycled = measured(1)
    assert recycled == [4]
    assert before == [4 / 16]
    assert after == [0.0]


@pytest.mark.parametrize("name", mostly_slow({name: name for name in ALGORITHMS}, ["CrossQ", "PPO", "A2C"]))
def test_it_measures_at_each_gradient_step_that_is_due(name):
    callback = spied()
    model = learn(build(name), callback, 128, name=name)
    steps = [step for step, _ in callback.measured]
    assert steps == list(range(PERIOD, callback.gradient_step + 1, PERIOD))
    assert all(found is not None for _, found in callback.measured)
    if not is_on_policy(name):
        assert len(callback.seen) == len(steps)
    assert model.dormancy_memory["counts"]["perturb"] == len(callback.seen)


def test_a_measurement_serves_for_one_perturbation():
    model, tape = build("PPO"), Tape()
    learn(model, callback := following(), 48, tape)  # measured at gradient step 7, and acted on after 8
    model.dormancy_memory[callback.memory_key]["looked_at"] = 0  # as if the periods since had passed without it
    learn(model, following(), 16, tape)
    assert len(tape.values("perturb/factor")) == 1


@pytest.mark.parametrize(("dormancy", "name"), alternating(DORMANCY, ["DQN", "PPO", "SAC", "A2C", "TRPO"]))
def test_a_run_saved_and_continued_is_the_uninterrupted_run(dormancy, name, tmp_path):
    make, whole, parts = lambda: following(dormancy=dormancy, dormancy_threshold=0.6), Tape(), Tape()
    uninterrupted = fingerprint(learn(build(name), make(), tape=whole, name=name))
    first = learn(build(name), make(), half(name), parts)
    continued = fingerprint(learn(reloaded(first, tmp_path), make(), half(name), parts))
    assert parts.points == whole.points
    assert whole.values("perturb/factor")
    assert differences(uninterrupted, continued) == []


def test_a_rollout_measured_before_saving_is_acted_on_after_loading(tmp_path):
    whole, parts = Tape(), Tape()
    learn(build("PPO"), following(period=8), 48, whole)  # four gradient steps per rollout of 16 steps
    first = learn(build("PPO"), following(period=8), 32, parts)
    assert first.dormancy_memory
    assert parts.values("perturb/factor") == []
    learn(reloaded(first, tmp_path), following(period=8), 16, parts)
    assert len(parts.values("perturb/factor")) == 1
    assert parts.points == whole.points


@pytest.mark.parametrize(("dormancy", "name"), alternating(DORMANCY, ["DQN", "CrossQ", "PPO"]))
def test_measuring_alone_leaves_training_as_it_is(dormancy, name):
    def left(callback):
        return fingerprint(learn(build(name), callback, name=name))

    # A factor of 1 keeps all weights.
    assert differences(left(None), left(following(dormancy=dormancy, factor_rate=0, factor_max=1.0))) == []
    assert differences(left(None), left(following(dormancy=dormancy))) != []


def test_where_there_are_too_few_observations_nothing_happens():
    tape = Tape()
    learn(build("DQN"), following(batch_size=50), 64, tape)
    # The buffer holds 50 observations at the training after step 52, which begins with gradient step 29.
    assert tape.values("perturb/total") == [1, 2]


def test_where_activations_are_not_finite_nothing_happens():
    model, tape = build("DQN", learning_rate=1e-5), Tape()
    with torch.no_grad():
        model.q_net.q_net[0].weight[0, 0] = float("nan")
    with pytest.warns(RuntimeWarning, match="NaN or infinite"):
        learn(model, following(dormancy="linear_outputs"), tape=tape)
    assert tape.values("perturb/total") == []


def test_without_a_factor_nothing_is_measured():
    callback, tape = Spied(period=PERIOD), Tape()
    learn(build("DQN"), callback, tape=tape)
    assert len(callback.seen) > 1
    assert not hasattr(callback, "measured")
    assert tape.values("perturb/factor") == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"factor": "dormant"}, ValueError, "factor must be one of 'dormancy', got 'dormant'; did you mean"),
        ({"factor": 0.5}, TypeError, "factor must be one of 'dormancy', got 0.5"),
        ({"factor": "dormancy", "shrink": 0.5}, ValueError, "factor='dormancy' sets shrink and perturb, got 0.5 and"),
        ({"factor_rate": -1}, ValueError, "factor_rate"),
        ({"factor_min": 1.5}, ValueError, "factor_min"),
        ({"factor_min": 0.5, "factor_max": 0.4}, ValueError, "factor_min must be at most factor_max, got 0.5 and 0.4"),
        ({"dormancy": "outputs"}, ValueError, "dormancy must be one of 'activations', 'linear_outputs'"),
        ({"dormancy_threshold": -1}, ValueError, "dormancy_threshold"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"networks": ["actr"]}, ValueError, "did you mean 'actor'"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        ShrinkAndPerturbCallback(**settings)


def test_networks_that_a_model_does_not_have_are_refused():
    with pytest.raises(RuntimeError, match="networks names 'actor', but the networks of DQN are 'q_net'"):
        learn(build("DQN"), following(networks=["actor"]))
