"""A measured run is bit for bit the run without measurements."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_redo import DormancyCallback, ReDoCallback
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import NOISY, Corridor, differences, dqn, fingerprint, sac
from tests.helpers.stateful_networks import StatefulExtractor, everything_of

IMAGE = spaces.Box(0, 255, (1, 36, 36), "uint8")
DICTIONARY = spaces.Dict({"position": spaces.Box(-1, 1, (2,)), "room": spaces.Discrete(4)})


def two_cartpoles():
    return make_vec_env("CartPole-v1", 2, seed=0)


def corridor(observations):
    return Corridor(observation_space=observations)


def bit_flipping():
    env = BitFlippingEnv(n_bits=4)
    env.np_random = np.random.default_rng(0)
    return env


RUNS = {
    "DQN": lambda: dqn(),
    "DQN, long train() calls": lambda: dqn(train_freq=64, gradient_steps=64),
    "DQN, two environments": lambda: dqn(two_cartpoles(), gradient_steps=-1),
    "DQN, normalised observations": lambda: dqn(VecNormalize(two_cartpoles())),
    "DQN, batch norm and dropout": lambda: dqn(policy_kwargs=NOISY),
    "DQN, dictionary observations": lambda: dqn(corridor(DICTIONARY), "MultiInputPolicy"),
    "DQN, numbered observations": lambda: dqn(corridor(spaces.Discrete(5))),
    "DQN, hindsight replay": lambda: dqn(bit_flipping(), "MultiInputPolicy", replay_buffer_class=HerReplayBuffer),
    "DQN, images": lambda: dqn(corridor(IMAGE), "CnnPolicy", gradient_steps=2),
    "SAC": lambda: sac(),
    "SAC, long train() calls": lambda: sac(train_freq=32, gradient_steps=32),
    "SAC, state-dependent exploration": lambda: sac(use_sde=True),
    "SAC, batch norm and dropout": lambda: sac(policy_kwargs=NOISY),
    "SAC, shared extractor": lambda: sac(policy_kwargs={**NOISY, "share_features_extractor": True}),
}

# Each beside one that has the same of another algorithm.
SLOW = {"SAC, long train() calls", "SAC, batch norm and dropout"}


def learned(build, callback=None):
    """What a run leaves behind, and the return of the next episode."""
    model = build()
    model.learn(max(60, 2 * model.train_freq.frequency), callback=callback)
    left = fingerprint(model)
    model.env.seed(1)
    return left, evaluate_policy(model, model.env, n_eval_episodes=1)


def test_a_fingerprint_tells_a_recycled_run_from_the_run_without():
    recycling = ReDoCallback(0.5, recycling_period=20, batch_size=16)
    assert {"weights", "optimizers"} <= set(differences(learned(dqn)[0], learned(dqn, recycling)[0]))


@pytest.mark.parametrize("build", mostly_slow(RUNS, RUNS.keys() - SLOW))
def test_a_measured_run_equals_the_run_without_measurements(build):
    callback = DormancyCallback(measuring_period=7, batch_size=16, log_histograms=True)
    (plain, plain_return), (measured, measured_return) = learned(build), learned(build, callback)
    assert callback.report is not None
    assert differences(plain, measured) == []
    assert plain_return == measured_return


@pytest.mark.parametrize("build", [dqn, pytest.param(sac, marks=pytest.mark.slow)])
def test_a_run_in_which_no_neuron_is_dormant_equals_the_run_without_callback(build):
    def with_tanh():
        return build(policy_kwargs={"activation_fn": nn.Tanh})

    callback = ReDoCallback(0.0, recycling_period=10, batch_size=16)
    (plain, _), (recycled, _) = learned(with_tanh), learned(with_tanh, callback)
    assert callback.report is not None
    assert differences(plain, recycled) == []


@pytest.mark.parametrize("algorithm", [DQN, pytest.param(SAC, marks=pytest.mark.slow), PPO])
def test_a_measured_run_leaves_what_its_forward_pass_changes_as_it_was(algorithm):
    def learned(is_measured):
        policy_kwargs = {"features_extractor_class": StatefulExtractor, "net_arch": [8]}
        sizes = {"n_steps": 20, "batch_size": 10} if algorithm is PPO else {"learning_starts": 10, "batch_size": 8}
        env = Corridor(action_space=spaces.Box(-1, 1, (1,)) if algorithm is SAC else None)
        model = algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=0, **sizes)
        callback = DormancyCallback(measuring_period=5, batch_size=8)
        model.learn(40, callback=callback if is_measured else None)
        assert callback.report is not None or not is_measured
        policy = model.policy
        policy.optimizer = policy.lr_schedule = None
        return everything_of(policy.q_net if algorithm is DQN else policy)

    assert learned(True) == learned(False)
