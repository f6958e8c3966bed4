"""Every algorithm, with vectors, images and dictionaries, keeps every promise of measuring and recycling."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from sb3_redo import DormancyCallback, ReDoCallback, measure_dormancy, recycle_dormant
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.sb3.buffers import sample_batch
from sb3_redo.sb3.measuring import trace_model
from tests.helpers.algorithms import (
    ALGORITHMS,
    CASES,
    IMAGES,
    PERIOD,
    VECTORS,
    NotesRolloutEnds,
    build,
    case,
    due,
    is_on_policy,
    known_layers,
    steps_of,
)
from tests.helpers.changes import assert_only_recycled, entries_of, snapshot
from tests.helpers.marks import alternating
from tests.helpers.runs import Tape, differences, fingerprint, hooks_of, plain

each_case = pytest.mark.parametrize(("name", "kind"), [case(*each) for each in CASES])
# The others are compared with other settings, in test_algorithm_settings.py.
SOME = {"DQN", "SAC", "TQC", "CrossQ", "PPO", "TRPO", "RecurrentPPO"}


@dataclass(frozen=True)
class MeasuredRun:
    left: dict[str, Any]
    tape: Tape
    report: DormancyReport
    hooks: list[str]


@cache
def measured_run(name: str, kind: str) -> MeasuredRun:
    """A run with measurements, made once for all tests that look at it."""
    tape, callback = Tape(), DormancyCallback(measuring_period=PERIOD, batch_size=8, log_histograms=True)
    model = build(name, kind)
    before = hooks_of(tape.watch(model))
    model.learn(steps_of(name), callback=[NotesRolloutEnds(tape), callback])
    assert callback.report is not None
    return MeasuredRun(fingerprint(model), tape, callback.report, [h for h in hooks_of(model) if h not in before])


# Measuring


@pytest.mark.parametrize(("name", "kind"), [case(*each, SOME) for each in CASES])
def test_a_measured_run_is_bit_for_bit_the_run_without_measurements(name, kind):
    run = measured_run(name, kind)
    assert len(run.tape.values("dormancy/fraction")) > 1
    assert differences(fingerprint(build(name, kind).learn(steps_of(name))), run.left) == []
    assert run.hooks == []


@each_case
def test_every_layer_is_measured_once_under_its_network_and_feeds_what_it_should(name, kind):
    report, known = measured_run(name, kind).report, known_layers(name, kind)
    measured = [(layer.name, layer.network, layer.recyclable) for layer in report.layers]
    assert sorted(measured) == sorted((layer, what.network, bool(what.feeds)) for layer, what in known.items())
    for layer in report.layers:
        if layer.recyclable:
            consumers = report.wiring[layer.name].consumers
            assert consumers.keys() == known[layer.name].feeds.keys()
            for consumer, (first, each) in known[layer.name].feeds.items():
                neurons = torch.arange(layer.neurons).repeat_interleave(each)
                expected = torch.full_like(consumers[consumer], -1)
                expected[first : first + len(neurons)] = neurons
                assert torch.equal(consumers[consumer], expected), (layer.name, consumer)


@each_case
def test_gradient_steps_are_those_that_the_optimizer_made(name, kind):
    tape, clock = measured_run(name, kind).tape, ALGORITHMS[name].clock
    expected = due(name, tape.events, clock)
    assert len(expected) > 1
    assert tape.values("dormancy/gradient_step") == tape.at_gradient_steps("measured", clock) == expected
    measured = [number for number, (event, _) in enumerate(tape.events) if event == "measured"]
    before = [tape.events[number - 1][0] for number in measured]
    if is_on_policy(name):
        assert set(before) == {"rollout end"}
    else:
        assert before == ["rollout end", *[f"{clock} step"] * (len(measured) - 1)]


class Draws(BaseCallback):
    """Draws from the rollout before it is trained on."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.batch = sample_batch(self.model, 6, (0, 5))


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if is_on_policy(name)])
def test_the_same_is_drawn_from_a_rollout_before_and_after_it_was_trained_on(name):
    draws = Draws()
    model = build(name).learn(32, callback=draws)
    again = sample_batch(model, 6, (0, 5))
    assert model.rollout_buffer.generator_ready  # its arrays are flattened now
    assert len(again.observations.unique(dim=0)) == 6
    assert plain(again) == plain(draws.batch)


def test_observations_are_met_with_the_states_that_the_policy_was_in():
    model = build("RecurrentPPO").learn(16)
    batch, buffer = sample_batch(model, 16, (0, 5)), model.rollout_buffer
    assert len(batch.observations.unique(dim=0)) == 16
    stored = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf", "episode_starts")
    for name, states in zip(stored, batch.states, strict=True):
        for observation, state in zip(batch.observations, states, strict=True):
            row = (torch.as_tensor(buffer.observations) == observation).all(1).nonzero().item()
            assert torch.equal(torch.as_tensor(getattr(buffer, name)[row]).squeeze(), state.squeeze()), name


LSTMS = {
    "one for each": {},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "none of the critic": {"enable_critic_lstm": False},
}


@pytest.mark.parametrize("settings", LSTMS.values(), ids=LSTMS)
def test_what_feeds_an_lstm_is_said_and_rows_are_no_time_steps(settings, monkeypatch):
    model = build("RecurrentPPO", IMAGES, policy_kwargs={"net_arch": [8], **settings}).learn(16)
    passes = []
    real = type(model.policy).forward
    monkeypatch.setattr(type(model.policy), "forward", lambda *args, **kw: passes.append(None) or real(*args, **kw))
    wiring = trace_model(model)
    # Row by row it takes a pass for each bit of each layer's binary code at several levels and two signs: over 800.
    assert len(passes) < 200
    (mixed,) = [layer for layer in wiring if not layer.recyclable]
    assert mixed.name == "features_extractor.linear.0"
    assert "depend on several of its neurons, since it feeds lstm_actor (LSTM)" in mixed.reason
    assert (" and lstm_critic (LSTM)" in mixed.reason) == (settings == {})
    assert "_process_sequence" not in vars(model.policy)


# Recycling


def kill(model, known, neurons=2):
    """Silence the first neurons of every layer for good: 0 is dead for ReLU and for tanh."""
    with torch.no_grad():
        for name in known:
            layer = model.policy.get_submodule(name)
            layer.weight[:neurons] = 0.0
            layer.bias[:neurons] = 0.0


def outputs_of(model, batch):
    """What every network of the policy says of a batch, asked as SB3 asks."""
    policy, (observations, actions, states) = model.policy, batch
    policy.set_training_mode(False)
    with torch.no_grad():
        if hasattr(policy, "critic") and hasattr(policy, "actor"):
            actor = policy.actor
            ask = getattr(actor, "get_action_dist_params", actor)
            said = ask(observations)
            said = said[:2] if isinstance(said, tuple) else [said]
            return [*said, *_listed(policy.critic(observations, actions))]
        if not is_on_policy_model(model):
            return [getattr(policy, "q_net", getattr(policy, "quantile_net", None))(observations)]
        actions = actions.long().flatten()
        if states:
            hidden_pi, cell_pi, hidden_vf, cell_vf = (state.transpose(0, 1).contiguous() for state in states[:4])
            memories = RNNStates((hidden_pi, cell_pi), (hidden_vf, cell_vf))
            return policy.evaluate_actions(observations, actions, memories, states[4])
        return policy.evaluate_actions(observations, actions)


def is_on_policy_model(model):
    return hasattr(model, "rollout_buffer")


def _listed(value):
    return [value] if isinstance(value, torch.Tensor) else list(value)


@pytest.mark.parametrize(("name", "kind"), [case(*each, SOME) for each in CASES])
def test_recycling_dead_neurons_changes_no_output(name, kind):
    model, known = build(name, kind).learn(32), known_layers(name, kind)
    kill(model, known)
    report = measure_dormancy(model, dormancy_threshold=0.0, batch_size=8)
    before = outputs_of(model, report.batch)
    # CrossQ normalises what a dead neuron says, so that its consumers hear a constant, for which their biases pay.
    record = recycle_dormant(model, report, compensate=name == "CrossQ")
    assert record.neurons.keys() == {layer for layer, what in known.items() if what.feeds}
    assert all({0, 1} <= set(neurons.tolist()) for neurons in record.neurons.values())
    for new, old in zip(outputs_of(model, report.batch), before, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-5)


class Watched(ReDoCallback):
    """Keeps the model as it was right before and after each recycling."""

    def __init__(self, **settings):
        # Scores average 1, so that of every layer some neurons are recycled and others are not.
        super().__init__(0.99, recycling_period=7, measuring_period=100, batch_size=8, **settings)
        self.seen = []

    def recycle(self, neurons, report):
        before = snapshot(self.model)
        super().recycle(neurons, report)
        self.seen.append((before, snapshot(self.model), dormant_in(report)))


def dormant_in(report):
    return {layer.name: layer.dormant for layer in report.layers if layer.recyclable and layer.dormant.any()}


def assert_recycled_in_a_run(name, kind, mode, second=0.0, **policy_kwargs):
    known = known_layers(name, kind)
    callback = Watched(optimizer_state=mode)
    model = build(name, kind, policy_kwargs=policy_kwargs)
    model.learn(steps_of(name), callback=callback)
    for before, after, dormant in callback.seen:
        assert_only_recycled(before, after, entries_of(model.policy, known, dormant), mode, second)
    touched = {layer for _, _, dormant in callback.seen for layer in dormant}
    assert touched == {layer for layer, what in known.items() if what.feeds}
    return callback.seen[-1][0]


@each_case
def test_only_entries_of_recycled_neurons_change_in_weights_and_in_every_optimizer(name, kind):
    before = assert_recycled_in_a_run(name, kind, "match")
    layers = {f"{layer}.weight" for layer in known_layers(name, kind)}
    with_state = {parameter for _, parameter, what in before if what == "step"}
    # TRPO's optimizer moves the critic alone, and none of what it shares with the actor.
    assert with_state >= {layer for layer in layers if name != "TRPO" or "value_net" in layer}


@pytest.mark.parametrize(
    ("mode", "name"), alternating(("clear", "restart"), ("DQN", "TD3", "SAC", "CrossQ", "PPO", "A2C", "TRPO"))
)
def test_second_moments_go_back_to_where_they_began(name, mode):
    assert_recycled_in_a_run(name, VECTORS, mode)


@pytest.mark.parametrize(("mode", "second"), [("match", None), ("clear", 1.0), ("restart", 1.0)])
def test_tensorflow_like_rmsprop_goes_back_to_ones(mode, second):
    assert_recycled_in_a_run("A2C", VECTORS, mode, second, optimizer_class=RMSpropTFLike, optimizer_kwargs={})


def test_a_shared_extractor_is_renewed_in_both_of_td3s_optimizers():
    shared = {"share_features_extractor": True}
    model, known = build("TD3", IMAGES, policy_kwargs=shared).learn(32), known_layers("TD3", IMAGES, **shared)
    extractor = list(model.actor.features_extractor.parameters())
    for parameter in extractor:
        # Held by both, but the critic's loss is not differentiated that far.
        assert any(parameter is held for group in model.critic.optimizer.param_groups for held in group["params"])
        assert parameter in model.actor.optimizer.state
        state = model.actor.optimizer.state[parameter]
        model.critic.optimizer.state[parameter] = {key: value.clone() for key, value in state.items()}
    report = measure_dormancy(model, dormancy_threshold=0.8, batch_size=8)
    before = snapshot(model)
    recycle_dormant(model, report)
    assert any("features_extractor" in layer for layer in dormant_in(report))
    assert_only_recycled(before, snapshot(model), entries_of(model.policy, known, dormant_in(report)), "match")


@pytest.mark.parametrize("name", ["SAC", pytest.param("TD3", marks=pytest.mark.slow)])
def test_recycled_neurons_of_twin_critics_get_weights_of_their_own(name):
    model = build(name).learn(32)
    # No score of eight neurons is beyond 8, so that the same neurons of both are recycled: all.
    recycle_dormant(model, measure_dormancy(model, dormancy_threshold=8.0, batch_size=8))
    first, second = (model.policy.get_parameter(f"critic.qf{number}.0.weight") for number in (0, 1))
    assert (first != second).all()


def test_crossqs_normalisation_forgets_recycled_neurons():
    callback, known = Watched(), known_layers("CrossQ", VECTORS)
    model = build("CrossQ").learn(steps_of("CrossQ"), callback=callback)
    fresh = {"ra_mean": 0.0, "ra_var": 1.0, "scale": 1.0, "bias": 0.0}
    for before, after, dormant in callback.seen:
        entries = entries_of(model.policy, known, dormant)
        assert_only_recycled(before, after, entries, "match")
        for name, recycled in entries.normalised.items():
            assert (after["policy", name, "value"][recycled] == fresh[name.split(".")[-1]]).all(), name
        for (holder, name, what), state in after.items():
            if holder != "policy" and what == "exp_avg" and name in entries.normalised:
                assert not state[entries.normalised[name]].any(), name
