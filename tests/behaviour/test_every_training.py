"""Trainings over all algorithms, spaces, buffers and settings are bit for bit what they are without measuring."""

import functools
import warnings

import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import ARS
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from tests.helpers.algorithms import ALGORITHMS, CONTINUOUS, DICTIONARIES, IMAGE, IMAGES, Q_LEARNERS, VECTORS, build
from tests.helpers.dormancy_everywhere import measured_everywhere
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import NOISY, Corridor, differences, fingerprint

OFF_POLICY = [name for name, algorithm in ALGORITHMS.items() if not algorithm.is_on_policy]
CONTINUOUS_ONLY = [name for name in OFF_POLICY if name not in Q_LEARNERS]
ON_POLICY = [name for name in ALGORITHMS if name not in OFF_POLICY]

OBSERVATIONS = {
    "vector": spaces.Box(-1.0, 1.0, (3,)),
    "matrix": spaces.Box(-1.0, 1.0, (3, 2)),
    "image": IMAGE,
    "image, channels last": spaces.Box(0, 255, (44, 44, 3), "uint8"),
    "number": spaces.Discrete(5),
    "numbers": spaces.MultiDiscrete([3, 4]),
    "bits": spaces.MultiBinary(4),
    "dictionary": spaces.Dict({"camera": IMAGE, "room": spaces.Discrete(4), "switches": spaces.MultiBinary(2)}),
}
ACTIONS = {
    "number": spaces.Discrete(3),
    "vector": CONTINUOUS,
    "numbers": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(2),
}
BUFFERS = {
    "memory": {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    "returns over three steps": {"n_steps": 3},
}


def kind_of(space):
    is_image = isinstance(space, spaces.Box) and len(space.shape) == 3
    return DICTIONARIES if isinstance(space, spaces.Dict) else IMAGES if is_image else VECTORS


def actions_of(name):
    if name in Q_LEARNERS:
        return ["number"]
    return (
        ["vector"]
        if name in CONTINUOUS_ONLY
        else [each for each in ACTIONS if (name, each) != ("MaskablePPO", "vector")]
    )


def has(name, kind):
    aliases = ALGORITHMS[name].cls.policy_aliases
    return kind in aliases or kind.replace("Policy", "LstmPolicy") in aliases


def envs(observations, actions, number=1, length=7):
    return DummyVecEnv([lambda: Corridor(length, observations, actions)] * number)


def with_spaces(name, observations, actions, number=1, **settings):
    kind = kind_of(OBSERVATIONS[observations])
    return build(name, kind, envs(OBSERVATIONS[observations], ACTIONS[actions], number), **settings)


def bit_flipping(name):
    env = BitFlippingEnv(n_bits=4, continuous=name not in Q_LEARNERS)
    env.np_random = np.random.default_rng(0)
    return DummyVecEnv([lambda: env])


def plain(name, **settings):
    return with_spaces(name, "vector", actions_of(name)[0], **settings)


def normalised(name):
    env = envs(OBSERVATIONS["vector"], ACTIONS[actions_of(name)[0]], 2)
    return build(name, VECTORS, VecNormalize(env))


def stacked(name):
    return build(name, IMAGES, VecFrameStack(envs(IMAGE, ACTIONS[actions_of(name)[0]]), 2))


def noisy(noise):
    return {"action_noise": noise(np.zeros(2), 0.1 * np.ones(2))}


SETTINGS = {
    **{f"{name}, two environments": functools.partial(plain, name, number=2) for name in OFF_POLICY},
    **{f"{name}, all of an episode": functools.partial(plain, name, train_freq=(1, "episode")) for name in OFF_POLICY},
    **{f"{name}, as many gradient steps": functools.partial(plain, name, gradient_steps=-1) for name in OFF_POLICY},
    **{f"{name}, normalised observations": functools.partial(normalised, name) for name in ALGORITHMS},
    **{f"{name}, stacked frames": functools.partial(stacked, name) for name in ("DQN", "SAC", "PPO")},
    **{
        f"{name}, a schedule": functools.partial(plain, name, learning_rate=lambda left: 1e-3 * left)
        for name in ALGORITHMS
    },
    **{
        f"{name}, dropout and batch norm": functools.partial(plain, name, policy_kwargs=NOISY)
        for name in ALGORITHMS
        if name != "RecurrentPPO"
    },
    **{
        f"{name}, state-dependent exploration": functools.partial(
            with_spaces, name, "vector", "vector", use_sde=True, sde_sample_freq=2
        )
        for name in ("SAC", "TQC", "PPO", "A2C", "TRPO", "RecurrentPPO")
    },
    **{
        f"{name}, Gaussian noise": functools.partial(plain, name, **noisy(NormalActionNoise))
        for name in CONTINUOUS_ONLY
    },
    **{
        f"{name}, Ornstein-Uhlenbeck noise": functools.partial(plain, name, **noisy(OrnsteinUhlenbeckActionNoise))
        for name in CONTINUOUS_ONLY
    },
    "SAC, shared extractor": functools.partial(
        with_spaces, "SAC", "image", "vector", policy_kwargs={"share_features_extractor": True}
    ),
    "PPO, two extractors": functools.partial(
        with_spaces, "PPO", "image", "number", policy_kwargs={"share_features_extractor": False}
    ),
    "PPO, stopped early": functools.partial(plain, "PPO", target_kl=1e-3, learning_rate=0.01, n_epochs=4),
    "DQN, one sample": functools.partial(plain, "DQN", buffer_size=5, batch_size=4, learning_starts=2),
    "PPO, no hidden layer": functools.partial(plain, "PPO", policy_kwargs={"net_arch": []}),
}
TRAININGS = {
    **{
        f"{name}, {observations} to {actions}": functools.partial(with_spaces, name, observations, actions)
        for name in ALGORITHMS
        for observations in OBSERVATIONS
        for actions in actions_of(name)
        if (observations == "vector" or actions == actions_of(name)[0])
        and has(name, kind_of(OBSERVATIONS[observations]))
    },
    **{
        f"{name}, {buffer}": functools.partial(plain, name, **settings)
        for name in OFF_POLICY
        for buffer, settings in BUFFERS.items()
    },
    **{
        f"{name}, hindsight": lambda name=name: build(
            name, DICTIONARIES, bit_flipping(name), replay_buffer_class=HerReplayBuffer
        )
        for name in OFF_POLICY
        if has(name, DICTIONARIES)
    },
    **SETTINGS,
    "ARS": lambda: ARS("MlpPolicy", envs(OBSERVATIONS["vector"], CONTINUOUS), n_delta=2, n_eval_episodes=1, seed=0),
}
# sb3-contrib cannot train these.
for without in ("RecurrentPPO, vector to bits", "RecurrentPPO, numbers to number"):
    del TRAININGS[without]
UNMEASURED = {"ARS", "DQN, one sample", "PPO, no hidden layer"}


@pytest.mark.parametrize(
    "case", mostly_slow(list(TRAININGS), ["TQC, returns over three steps", "MaskablePPO, vector to bits"])
)
def test_a_training_is_what_it_is_without_measuring(case):
    def left():
        model = TRAININGS[case]()
        model.learn(64)
        return fingerprint(model)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        without = left()
        with measured_everywhere(measuring_period=5, batch_size=8) as counts:
            measured = left()
    assert differences(without, measured) == []
    assert (counts["measurements"] > 0) == (case not in UNMEASURED)
