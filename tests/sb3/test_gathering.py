"""A model without stored observations is measured on those that it meets in its environment."""

import copy
import io

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_redo import measure_dormancy
from sb3_redo.sb3.gathering import gather_batch
from sb3_redo.sb3.measuring import measure_on
from sb3_redo.sb3.model import gradient_steps_of
from sb3_redo.sb3.seeds import integer_seed
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import Corridor, plain, random_streams


def small(**more):
    return {"seed": 3, "device": "cpu", "policy_kwargs": {"net_arch": [8, 8]}, **more}


def replay(**more):
    return small(**{"buffer_size": 500, "learning_starts": 10, **more})


def rollout(**more):
    return small(n_steps=16, batch_size=16, n_epochs=1, **more)


def recurrent():
    return {**rollout(), "policy_kwargs": {"net_arch": [8], "lstm_hidden_size": 6}}


class Masked(Corridor):
    """Allows one of two actions at a time, and refuses the other."""

    def action_masks(self):
        return np.array([self.steps % 2 == 0, self.steps % 2 == 1])

    def step(self, action):
        assert self.action_masks()[action]
        return super().step(action)


class Recording(gym.Wrapper):
    """Notes what the agent saw and did."""

    def __init__(self, env):
        super().__init__(env)
        self.seen, self.done = [], []

    def reset(self, **kwargs):
        observation, info = self.env.reset(**kwargs)
        self.seen.append(observation)
        return observation, info

    def step(self, action):
        self.done.append(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not (terminated or truncated):
            self.seen.append(observation)
        return observation, reward, terminated, truncated, info


def bits():
    return BitFlippingEnv(n_bits=4, max_steps=6)


MODELS = {
    "DQN": lambda: DQN("MlpPolicy", Corridor(), **replay()),
    "HER": lambda: DQN("MultiInputPolicy", bits(), replay_buffer_class=HerReplayBuffer, **replay()),
    "SAC": lambda: SAC("MlpPolicy", "Pendulum-v1", **replay()),
    "PPO": lambda: PPO("MlpPolicy", Corridor(), **rollout()),
    "MaskablePPO": lambda: MaskablePPO("MlpPolicy", Masked(), **rollout()),
    "RecurrentPPO": lambda: RecurrentPPO("MlpLstmPolicy", Corridor(), **recurrent()),
}


def reloaded(model, env=None, **settings):
    """What a zip of the model becomes in a fresh copy of its environment."""
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return type(model).load(file, env=copy.deepcopy(model.get_env()) if env is None else env, **settings)


def trained(name, steps=32):
    return MODELS[name]().learn(steps)


def scores(report):
    return torch.cat([layer.scores for layer in report.layers])


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_agent_is_measured_on_what_it_meets(name):
    model = reloaded(trained(name))
    report = measure_dormancy(model, batch_size=40)
    batch = gather_batch(model, 40, integer_seed((3, gradient_steps_of(model))))
    assert report.observations == 40
    assert torch.equal(scores(report), scores(measure_on(model, batch, 0.1)))
    assert torch.equal(scores(report), scores(measure_dormancy(model, batch_size=40)))
    if batch.actions is None and not batch.states:
        seen = batch.observations
        given = {key: value.numpy() for key, value in seen.items()} if isinstance(seen, dict) else seen.numpy()
        assert torch.equal(scores(report), scores(measure_dormancy(model, observations=given)))


@pytest.mark.parametrize("name", MODELS)
def test_nothing_but_the_environment_moves(name):
    model = trained(name)
    model.policy.set_training_mode(True)

    def state():
        counters = model.num_timesteps, model._n_updates, getattr(model, "exploration_rate", None)
        modes = [module.training for module in model.policy.modules()]
        return plain([model.policy.state_dict(), modes, counters, random_streams(model)])

    before = state()
    gather_batch(model, 30, seed=1)
    assert state() == before


@pytest.mark.parametrize("name", MODELS)
def test_training_goes_on_with_a_new_episode(name):
    model = trained(name)
    gather_batch(model, 13, seed=1)
    assert model._last_episode_starts.all()
    model.learn(32, reset_num_timesteps=False)
    again = reloaded(model)
    gather_batch(again, 13, seed=1)
    assert again._last_obs is None
    again.learn(32)


def test_a_measurement_from_within_training_does_not_disturb_it():
    model, reports = MODELS["PPO"](), []

    def measure(local_variables, global_variables):
        model.rollout_buffer.reset() if not reports else None
        reports.append(measure_dormancy(model, batch_size=8) if not reports else None)

    model.learn(64, callback=measure)
    assert reports[0].observations == 8


def test_the_seed_decides_what_is_met():
    model = reloaded(trained("DQN"))
    model.exploration_rate = 0.5
    one, same, other = (gather_batch(model, 20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.observations, same.observations)
    assert not torch.equal(one.observations, other.observations)


def test_the_seed_decides_what_is_done():
    model, env = reloaded(trained("DQN")), Recording(Corridor())
    model.exploration_rate = 1.0
    for _ in range(2):
        model.action_space.sample()
        gather_batch(model, 20, seed=1, env=DummyVecEnv([lambda: env]))
    assert env.done[:20] == env.done[20:]


def test_observations_are_counted_over_environments_and_shown_as_they_come():
    model = PPO("MlpPolicy", DummyVecEnv([Corridor] * 3), **rollout())
    progress = []
    assert len(gather_batch(model, 10, seed=0, progress=progress.append).observations) == 10
    assert progress == [3, 3, 3, 1]


def test_a_dqn_explores_as_much_as_training_last_did():
    model = reloaded(trained("DQN"))
    for rate, expected in ((0.0, 1), (1.0, 2)):
        model.exploration_rate = rate
        with torch.no_grad():
            model.q_net.q_net[-1].bias.copy_(torch.tensor([0.0, 1000.0]))
        env = Recording(Corridor())
        gather_batch(model, 50, seed=0, env=DummyVecEnv([lambda env=env: env]))
        assert len({int(action) for action in env.done}) == expected


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_critics_get_the_actions_that_were_taken_between_minus_one_and_one(algorithm):
    model = algorithm("MlpPolicy", "Pendulum-v1", action_noise=NormalActionNoise(np.zeros(1), np.ones(1)), **replay())
    env = Recording(gym.make("Pendulum-v1"))
    batch = gather_batch(model, 30, seed=0, env=DummyVecEnv([lambda: env]))
    np.testing.assert_array_equal(batch.observations, np.array(env.seen[:30]))
    np.testing.assert_allclose(batch.actions, np.array(env.done) / 2, atol=1e-6)
    assert batch.actions.abs().max() <= 1
    with torch.no_grad():
        assert (batch.actions - model.policy(batch.observations, deterministic=True)).abs().mean() > 0.1


def test_noise_of_several_environments_is_taken_to_one_and_stays_as_it_was():
    noise = VectorizedActionNoise(OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1)), 4)
    model = TD3("MlpPolicy", "Pendulum-v1", action_noise=noise, **replay())
    noise()
    before = [single.noise_prev.copy() for single in noise.noises]
    batch = gather_batch(model, 5, seed=0)
    assert batch.actions.shape == (5, 1)
    assert all((x == y.noise_prev).all() for x, y in zip(before, noise.noises, strict=True))


def test_noise_that_remembers_is_not_reset():
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1))
    model = TD3("MlpPolicy", "Pendulum-v1", action_noise=noise, **replay())
    noise()
    before = noise.noise_prev.copy()
    gather_batch(model, 5, seed=0)
    assert noise.noise_prev == before


def test_every_observation_has_the_lstm_states_it_was_met_with():
    model = RecurrentPPO("MlpLstmPolicy", Corridor(10), **recurrent())
    batch = gather_batch(model, 25, seed=0)
    actor_hidden, actor_cell, critic_hidden, critic_cell, starts = batch.states
    assert starts.nonzero().flatten().tolist() == [0, 10, 20]
    assert critic_hidden.shape == (25, 1, 6)
    for lstm, hidden, cell in (
        (model.policy.lstm_actor, actor_hidden, actor_cell),
        (model.policy.lstm_critic, critic_hidden, critic_cell),
    ):
        for step in range(24):
            keep = 1 - starts[step]
            with torch.no_grad():
                _, after = lstm(batch.observations[step : step + 1], (hidden[step] * keep, cell[step] * keep))
            torch.testing.assert_close(after, (hidden[step + 1], cell[step + 1]))


def test_only_allowed_actions_are_taken():
    batch = gather_batch(trained("MaskablePPO"), 30, seed=0)  # Masked refuses others
    assert len(batch.observations) == 30


def test_statistics_of_the_normalisation_stay():
    space = spaces.Box(100.0, 120.0, (3,))
    venv = VecNormalize(make_vec_env(lambda: Corridor(10, space), n_envs=2, seed=0))
    model = PPO("MlpPolicy", VecFrameStack(venv, 2), **rollout()).learn(32)
    before = plain([vars(venv.obs_rms), vars(venv.ret_rms)])
    batch = gather_batch(model, 40, seed=0)
    assert plain([vars(venv.obs_rms), vars(venv.ret_rms)]) == before
    assert venv.training
    assert batch.observations.shape == (40, 6)
    assert batch.observations.abs().max() <= venv.clip_obs < 100


def test_all_is_restored_when_the_environment_fails():
    class Breaks(Corridor):
        def step(self, action):
            raise RuntimeError("broken")

    venv = VecNormalize(DummyVecEnv([Breaks]))
    model = PPO("MlpPolicy", venv, **rollout())
    model.policy.set_training_mode(True)
    before = plain(random_streams(model))
    with pytest.raises(RuntimeError, match="broken"):
        gather_batch(model, 5, seed=0)
    assert plain(random_streams(model)) == before
    assert venv.training
    assert all(module.training for module in model.policy.modules())


def test_images_are_given_to_the_network_as_it_takes_them():
    env = Corridor(5, spaces.Box(0, 255, (36, 36, 3), np.uint8))
    model = DQN("CnnPolicy", env, **replay())
    batch = gather_batch(model, 7, seed=0)
    assert batch.observations.shape == (7, 3, 36, 36)
    assert batch.observations.dtype == torch.uint8


def test_without_observations_and_environment_it_is_said_what_to_do():
    file = io.BytesIO()
    MODELS["DQN"]().save(file)
    file.seek(0)
    model = DQN.load(file)
    with pytest.raises(ValueError, match=r"neither stored .* nor an environment.*pass observations=, or load"):
        measure_dormancy(model)
    with pytest.raises(ValueError, match="no environment to run in: load it with env="):
        gather_batch(model, 5, seed=0)


def test_a_short_rollout_is_measured_whole_and_that_is_said():
    model = A2C("MlpPolicy", Corridor(), **small()).learn(10)
    with pytest.warns(RuntimeWarning, match="holds 5 observations and batch_size is 256: .* on 5, and few"):
        report = measure_dormancy(model)
    assert report.observations == 5


def test_stored_observations_are_preferred_to_new_ones():
    model = trained("DQN")
    model.env = None
    assert measure_dormancy(model, batch_size=16).observations == 16


def test_runs_that_are_not_seeded_stay_different_after_an_inspection():
    def next_start():
        model = PPO("MlpPolicy", "CartPole-v1", **rollout(seed=None))
        gather_batch(model, 8, seed=0)
        return model.env.reset().tolist()

    assert next_start() != next_start()


def test_runs_that_are_seeded_stay_the_same():
    def next_start():
        model = PPO("MlpPolicy", "CartPole-v1", **rollout())
        gather_batch(model, 8, seed=0)
        return model.env.reset().tolist()

    assert next_start() == next_start()


OFF_POLICY = {"use_sde": True, "train_freq": 8}
ON_POLICY = {"use_sde": True, "n_steps": 8, "batch_size": 8}
NOISY_AGENTS = {
    "SAC": lambda **more: SAC("MlpPolicy", "Pendulum-v1", **replay(**OFF_POLICY, **more)),
    "SAC, per episode": lambda **more: SAC(
        "MlpPolicy",
        Corridor(8, action_space=spaces.Box(-1.0, 1.0, (1,))),
        **replay(use_sde=True, train_freq=(1, "episode"), **more),
    ),
    "TQC": lambda **more: TQC("MlpPolicy", "Pendulum-v1", **replay(**OFF_POLICY, **more)),
    "CrossQ": lambda **more: CrossQ("MlpPolicy", "Pendulum-v1", **replay(**OFF_POLICY, **more)),
    "A2C": lambda **more: A2C("MlpPolicy", "Pendulum-v1", **small(use_sde=True, n_steps=8, **more)),
    "PPO": lambda **more: PPO("MlpPolicy", "Pendulum-v1", **{**rollout(), **ON_POLICY, **more}),
    "RecurrentPPO": lambda **more: RecurrentPPO("MlpLstmPolicy", "Pendulum-v1", **{**recurrent(), **ON_POLICY, **more}),
}


def matrices_in_use(model, monkeypatch, run):
    """Number of the noise matrix that each action is drawn with, while something runs."""
    seen, steps = [], []

    def get_noise(self, latent_sde):
        seen.append(self.exploration_mat)
        steps.append(next(number for number, matrix in enumerate(seen) if matrix is seen[-1]))
        return real(self, latent_sde)

    real = StateDependentNoiseDistribution.get_noise
    monkeypatch.setattr(StateDependentNoiseDistribution, "get_noise", get_noise)
    run()
    monkeypatch.undo()
    return steps


@pytest.mark.parametrize("period", [-1, 3])
@pytest.mark.parametrize("name", mostly_slow(list(NOISY_AGENTS), {"SAC", "PPO", "RecurrentPPO"}))
def test_noise_matrices_are_drawn_anew_when_training_does(name, period, monkeypatch):
    # Nothing is trained, so that all noise is that of collecting.
    never = (
        {"learning_starts": 100, "use_sde_at_warmup": True} if "use_sde_at_warmup" in vars(NOISY_AGENTS[name]()) else {}
    )
    model = NOISY_AGENTS[name](sde_sample_freq=period, **never)
    monkeypatch.setattr(type(model), "train", lambda self, *_, **__: None)
    collected = matrices_in_use(model, monkeypatch, lambda: model.learn(24))
    gathered = matrices_in_use(model, monkeypatch, lambda: gather_batch(model, 24, seed=0))
    assert gathered == collected
    assert len(set(gathered)) == (9 if period == 3 else 3)


@pytest.mark.parametrize("name", mostly_slow(list(NOISY_AGENTS), {"SAC", "RecurrentPPO"}))
def test_noise_differs_between_seeds_and_is_put_back(name):
    model = NOISY_AGENTS[name]()
    holder = getattr(model, "actor", None) or model.policy
    before = dict(vars(holder.action_dist))
    one, same, other = (gather_batch(model, 10, seed=seed).observations for seed in (1, 1, 2))
    after = vars(holder.action_dist)
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] for key in before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with torch.no_grad():
        holder.reset_noise()  # the matrix that a loaded model happens to have decides nothing
    assert torch.equal(gather_batch(model, 10, seed=1).observations, one)


def test_with_several_environments_each_has_a_matrix_of_its_own(monkeypatch):
    model, used = SAC("MlpPolicy", make_vec_env("Pendulum-v1", 3), **replay(use_sde=True)), []
    real = StateDependentNoiseDistribution.get_noise
    monkeypatch.setattr(
        StateDependentNoiseDistribution,
        "get_noise",
        lambda self, latent: used.append(len(self.exploration_matrices)) or real(self, latent),
    )
    gather_batch(model, 9, seed=0)
    assert used == [3] * 3
