"""What else an algorithm may be set to: measuring leaves no trace, the clock is exact, and recycling runs."""

import inspect

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import A2C, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_redo import DormancyCallback, ReDoCallback
from tests.helpers.algorithms import (
    ALGORITHMS,
    CONTINUOUS,
    DICTIONARIES,
    IMAGES,
    PERIOD,
    STOPS_EARLY,
    VECTORS,
    NotesRolloutEnds,
    build,
    due,
    known_layers,
    steps_of,
)
from tests.helpers.runs import NOISY, Corridor, Tape, differences, fingerprint, hooks_of

NUMBERED, CHOICES, SWITCHES = spaces.Discrete(5), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)


def bit_flipping():
    env = BitFlippingEnv(n_bits=4, continuous=True)
    env.np_random = np.random.default_rng(0)
    return env


def hindsight():
    return {"kind": DICTIONARIES, "env": bit_flipping(), "replay_buffer_class": HerReplayBuffer, **NO_CAMERA}


NO_CAMERA = {"policy_kwargs": {"features_extractor_kwargs": {}}}


def corridors(n_envs, actions=CONTINUOUS, observations=None):
    return DummyVecEnv([lambda: Corridor(7, observations, actions)] * n_envs)


def normalised(actions=CONTINUOUS):
    return {"env": VecNormalize(corridors(2, actions))}


def recurrent(**policy_kwargs):
    return {"policy_kwargs": {"lstm_hidden_size": 8, **policy_kwargs}}


EPISODES = {"train_freq": (1, "episode"), "gradient_steps": -1}
SAVES_MEMORY = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
APART = {"policy_kwargs": {"share_features_extractor": False}}

RUNS = {
    "SAC, hindsight replay": ("SAC", hindsight),
    "TD3, hindsight replay": ("TD3", hindsight),
    "TQC, hindsight replay": ("TQC", hindsight),
    "SAC, normalised": ("SAC", normalised),
    "PPO, normalised": ("PPO", lambda: normalised(spaces.Discrete(2))),
    "TD3, three environments": ("TD3", lambda: {"env": corridors(3), "gradient_steps": -1}),
    "QR-DQN, two environments": ("QR-DQN", lambda: {"env": corridors(2, spaces.Discrete(2)), "gradient_steps": -1}),
    "CrossQ, two environments": ("CrossQ", lambda: {"env": corridors(2)}),
    "SAC, episodes": ("SAC", lambda: EPISODES),
    "CrossQ, episodes": ("CrossQ", lambda: EPISODES),
    "DDPG, episodes": ("DDPG", lambda: EPISODES),
    "DQN, three-step replay": ("DQN", lambda: {"n_steps": 3}),
    "TD3, three-step replay": ("TD3", lambda: {"n_steps": 3}),
    "TQC, saving memory": ("TQC", lambda: SAVES_MEMORY | {"buffer_size": 30}),
    "SAC, state-dependent exploration": ("SAC", lambda: {"use_sde": True, "sde_sample_freq": 4}),
    "TQC, state-dependent exploration": ("TQC", lambda: {"use_sde": True}),
    "CrossQ, state-dependent exploration": ("CrossQ", lambda: {"use_sde": True}),
    "PPO, state-dependent exploration": ("PPO", lambda: {"use_sde": True, "actions": CONTINUOUS}),
    "A2C, state-dependent exploration": ("A2C", lambda: {"use_sde": True, "actions": CONTINUOUS}),
    "TRPO, state-dependent exploration": ("TRPO", lambda: {"use_sde": True, "actions": CONTINUOUS}),
    "TD3, batch norm and dropout": ("TD3", lambda: {"policy_kwargs": NOISY}),
    "PPO, batch norm and dropout": ("PPO", lambda: {"policy_kwargs": NOISY}),
    "PPO, continuous actions": ("PPO", lambda: {"actions": CONTINUOUS}),
    "PPO, several choices": ("PPO", lambda: {"actions": CHOICES}),
    "PPO, switches": ("PPO", lambda: {"actions": SWITCHES}),
    "PPO, stopping early": ("PPO", lambda: STOPS_EARLY),
    "PPO, numbered observations": ("PPO", lambda: {"env": corridors(1, spaces.Discrete(2), NUMBERED), "n_steps": 16}),
    "QR-DQN, numbered observations": ("QR-DQN", lambda: {"env": corridors(1, spaces.Discrete(2), NUMBERED)}),
    "SAC, numbered observations": ("SAC", lambda: {"env": corridors(1, CONTINUOUS, NUMBERED)}),
    "MaskablePPO, several choices": ("MaskablePPO", lambda: {"actions": CHOICES}),
    "TRPO, continuous actions": ("TRPO", lambda: {"actions": CONTINUOUS, "sub_sampling_factor": 2}),
    "RecurrentPPO, one LSTM": ("RecurrentPPO", lambda: recurrent(shared_lstm=True, enable_critic_lstm=False)),
    "RecurrentPPO, no LSTM of the critic": ("RecurrentPPO", lambda: recurrent(enable_critic_lstm=False)),
    "RecurrentPPO, two layers": ("RecurrentPPO", lambda: recurrent(n_lstm_layers=2)),
    "RecurrentPPO, continuous actions": ("RecurrentPPO", lambda: {"actions": CONTINUOUS}),
    "RecurrentPPO, images, one LSTM": (
        "RecurrentPPO",
        lambda: {"kind": IMAGES, **recurrent(shared_lstm=True, enable_critic_lstm=False)},
    ),
    "PPO, images, extractors apart": ("PPO", lambda: {"kind": IMAGES, **APART}),
    "PPO, dictionaries, extractors apart": ("PPO", lambda: {"kind": DICTIONARIES, **APART}),
    "SAC, images, one extractor": (
        "SAC",
        lambda: {"kind": IMAGES, "policy_kwargs": {"share_features_extractor": True}},
    ),
}
FAST = {
    *("SAC, hindsight replay", "SAC, normalised", "QR-DQN, two environments", "DDPG, episodes"),
    *("TD3, batch norm and dropout", "A2C, state-dependent exploration", "PPO, several choices", "PPO, stopping early"),
    *("MaskablePPO, several choices", "DQN, three-step replay"),
}
each_run = pytest.mark.parametrize(
    ("name", "settings"),
    [pytest.param(*run, id=label, marks=[] if label in FAST else [pytest.mark.slow]) for label, run in RUNS.items()],
)


@each_run
def test_measuring_leaves_no_trace_and_keeps_time_and_recycling_runs(name, settings):
    tape, callback = Tape(), DormancyCallback(measuring_period=PERIOD, batch_size=8)
    unmeasured = fingerprint(build(name, **settings()).learn(steps_of(name)))
    model = tape.watch(build(name, **settings()))
    model.learn(steps_of(name), callback=[NotesRolloutEnds(tape), callback])
    assert differences(unmeasured, fingerprint(model)) == []
    clock = ALGORITHMS[name].clock
    expected = due(name, tape.events, clock)
    assert len(expected) > 1
    assert tape.values("dormancy/gradient_step") == tape.at_gradient_steps("measured", clock) == expected

    tape, recycled = Tape(), build(name, **settings())
    before = hooks_of(tape.watch(recycled))
    recycled.learn(steps_of(name), callback=ReDoCallback(0.8, recycling_period=7, batch_size=8))
    assert sum(tape.values("redo/recycled")) > 0
    assert hooks_of(recycled) == before


@pytest.mark.parametrize(
    ("name", "kind", "policy_kwargs"),
    [
        ("PPO", IMAGES, {"share_features_extractor": False}),
        pytest.param("PPO", DICTIONARIES, {"share_features_extractor": False}, marks=pytest.mark.slow),
        ("SAC", IMAGES, {"share_features_extractor": True}),
        pytest.param("TD3", IMAGES, {"share_features_extractor": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_extractors_shared_or_apart_are_counted_with_whom_they_serve(name, kind, policy_kwargs):
    callback, known = DormancyCallback(batch_size=8), known_layers(name, kind, **policy_kwargs)
    build(name, kind, policy_kwargs=policy_kwargs).learn(24, callback=callback)
    measured = {layer.name: layer.network for layer in callback.report.layers}
    assert measured == {layer: what.network for layer, what in known.items()}
    wired = {layer.name: layer.consumers.keys() for layer in callback.report.wiring}
    assert wired == {layer: what.feeds.keys() for layer, what in known.items()}


def test_stopping_early_leaves_out_gradient_steps():
    tape = Tape()
    tape.watch(build("PPO", **STOPS_EARLY)).learn(64, callback=NotesRolloutEnds(tape))
    made = [event for event, _ in tape.events].count("policy.optimizer step")
    assert 0 < made < 4 * STOPS_EARLY["n_epochs"] * 2


def test_a_rollout_of_five_observations_is_measured_whole_and_said():
    tape, callback = Tape(), DormancyCallback(measuring_period=2, batch_size=64)
    assert inspect.signature(A2C).parameters["n_steps"].default == 5
    unmeasured = fingerprint(build("A2C", VECTORS, Corridor(), n_steps=5).learn(25))
    model = tape.watch(build("A2C", VECTORS, Corridor(), n_steps=5))
    with pytest.warns(RuntimeWarning, match=r"a rollout holds 5 observations and batch_size is 64: .* measured on 5"):
        model.learn(25, callback=callback)
    assert tape.values("dormancy/gradient_step") == [0, 2, 4]
    assert len(callback.report.batch.observations) == 5
    assert differences(unmeasured, fingerprint(model)) == []
