"""Double DQN, DrQ and dueling networks: SB3's DQN but for what their papers change."""

from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from rl_zoo3.utils import ALGOS
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_redo import ReDoCallback, measure_dormancy
from sb3_redo.algorithms import ALGORITHMS, DoubleDQN, DrQ
from sb3_redo.algorithms.double_dqn import _Chosen
from sb3_redo.algorithms.drq import _Augmented, augmented
from sb3_redo.networks import DuelingDQNCnnPolicy, DuelingDQNMlpPolicy
from sb3_redo.sweeps.run import OUR_ALGORITHMS
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import Corridor, differences, fingerprint, reloaded

CONFIGS = Path(__file__).parents[2] / "zoo_configs"
IMAGE = spaces.Box(0, 255, (1, 36, 36), "uint8")
SETTINGS = {"learning_starts": 20, "batch_size": 8, "buffer_size": 200, "train_freq": 4, "gradient_steps": 4, "seed": 0}
# Exploration that does not depend on how long learn() is asked to train.
STEADY = {"exploration_initial_eps": 0.1, "exploration_final_eps": 0.1}


def vectors(cls=DoubleDQN, policy="MlpPolicy", **settings):
    return cls(policy, "CartPole-v1", policy_kwargs={"net_arch": [8, 8]}, **{**SETTINGS, **STEADY, **settings})


def images(cls=DrQ, policy=DuelingDQNCnnPolicy, **settings):
    env = DummyVecEnv([lambda: Corridor(7, IMAGE, spaces.Discrete(3))])
    kwargs = {"features_extractor_kwargs": {"features_dim": 8}}
    return cls(policy, env, policy_kwargs=kwargs, **{**SETTINGS, **STEADY, **settings})


# Double Q-learning


class Online(nn.Module):
    def set_training_mode(self, mode):
        self.train(mode)

    def forward(self, observations):
        return torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0]])


def test_worked_targets():
    target = lambda observations: torch.tensor([[10.0, -20.0, 30.0], [-1.0, 7.0, 8.0]])  # noqa: E731
    values = _Chosen(Online(), target)(None)
    # What the target network thinks of actions 1 and 0, which the online network prefers.
    assert values.max(dim=1).values.tolist() == [-20.0, -1.0]


def test_the_loss_is_that_of_double_q_learning():
    model = vectors(learning_rate=1e-9)
    model.learn(100)
    for parameter in model.q_net_target.parameters():
        nn.init.normal_(parameter.data)
    batch = model.replay_buffer.sample(64)
    with torch.no_grad():
        chosen = model.q_net(batch.next_observations).argmax(1, keepdim=True)
        following = model.q_net_target(batch.next_observations).gather(1, chosen)
        targets = batch.rewards + (1 - batch.dones) * model.gamma * following
        current = model.q_net(batch.observations).gather(1, batch.actions.long())
        expected = float(nn.functional.smooth_l1_loss(current, targets))
        single = (
            batch.rewards
            + (1 - batch.dones) * model.gamma * model.q_net_target(batch.next_observations).max(1, keepdim=True).values
        )
        other = float(nn.functional.smooth_l1_loss(current, single))
    model.replay_buffer.sample = lambda *_, **__: batch
    model.train(1, 64)
    assert model.logger.name_to_value["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(other, rel=1e-3)


def test_the_target_network_is_back_after_training_even_when_it_fails():
    model = vectors()
    target = model.q_net_target
    model.learn(100)
    assert model.q_net_target is target is model.policy.q_net_target
    model.replay_buffer.sample = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model.train(1)
    assert model.q_net_target is target


def test_with_the_online_network_as_target_it_is_dqn():
    # Then the largest value of the target is that of the action that the online network chooses.
    def run(cls):
        model = vectors(cls, target_update_interval=1, gradient_steps=1)

        class Synchronised(BaseCallback):
            def _on_step(self):
                return True

            def _on_rollout_end(self):
                self.model.q_net_target.load_state_dict(self.model.q_net.state_dict())

        return fingerprint(model.learn(100, callback=Synchronised()))

    assert differences(run(DQN), run(DoubleDQN)) == []


def test_rmsprop_of_the_configuration_has_epsilon_in_the_root():
    # As optax has it in DQN Zoo. torch.optim.RMSprop adds it to the root, so that steps are up to 320 times as large.
    text = yaml.safe_load((CONFIGS / "double_dqn.yml").read_text())["atari"]["policy_kwargs"]
    settings = eval(text, {"RMSpropTFLike": RMSpropTFLike})  # as the zoo does
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = settings["optimizer_class"]([weight], lr=0.00025, **settings["optimizer_kwargs"])
    value, square, mean, epsilon = 0.0, 1.0, 0.0, 0.01 / 1024
    for step in range(400):
        gradient = 0.01 * (step % 3)
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        square = 0.95 * square + 0.05 * gradient**2
        mean = 0.95 * mean + 0.05 * gradient
        value -= 0.00025 * gradient / (square - mean**2 + epsilon) ** 0.5
        assert float(weight.detach()) == pytest.approx(value)


# Augmentation


def test_images_are_shifted_as_a_whole_and_the_edge_is_repeated():
    torch.manual_seed(0)
    ramp = (torch.arange(20) * 100).float().view(1, 1, 1, 20).expand(200, 2, 20, 20)
    frames = torch.stack([ramp[:, 0], ramp[:, 0].transpose(1, 2)], 1) + 1000
    shifted = augmented(frames)
    seen = set()
    for image in shifted:
        # Times its brightness, each row of the first frame is the ramp moved, its edge repeated.
        differences_in_row = (image[0, 10, 1:] - image[0, 10, :-1]).round()
        brightness = float(differences_in_row.max()) / 100
        across = round(float(image[0, 10, 10]) / brightness / 100 - 20)
        down = round(float(image[1, 10, 10]) / brightness / 100 - 20)
        seen.add((across, down))
        ramps = [1000 + 100 * torch.clamp(torch.arange(20) + moved, 0, 19) for moved in (across, down)]
        torch.testing.assert_close(image[0, 5], ramps[0] * brightness, rtol=0.01, atol=20.0)
        torch.testing.assert_close(image[1, :, 5], ramps[1] * brightness, rtol=0.01, atol=20.0)
    assert {across for across, _ in seen} == {down for _, down in seen} == set(range(-4, 5))
    assert len(seen) > 60  # of 81


def test_brightness_is_within_two_deviations_of_a_twentieth():
    torch.manual_seed(0)
    factors = augmented(torch.ones(4000, 1, 8, 8))[:, 0, 0, 0]
    assert 0.9 - 1e-6 <= float(factors.min()) < 0.901
    assert 1.099 < float(factors.max()) <= 1.1 + 1e-6
    assert float(factors.mean()) == pytest.approx(1, abs=0.003)
    assert float(factors.std()) == pytest.approx(0.05 * 0.94, rel=0.05)  # of a normal cut off at two deviations


def test_bytes_are_taken_and_the_scale_is_kept():
    images = torch.full((2, 4, 8, 8), 200, dtype=torch.uint8)
    result = augmented(images)
    assert result.dtype == torch.float32
    assert result.shape == images.shape
    assert 170 < float(result.min()) <= float(result.max()) < 230
    with pytest.raises(ValueError, match="augments images"):
        augmented(torch.ones(3, 4))


def test_drq_trains_on_augmented_images_and_acts_on_plain_ones():
    model = images()
    seen = []
    model.q_net.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].dtype))
    buffer = model.replay_buffer
    model.learn(60)
    assert model.replay_buffer is buffer
    assert set(seen) == {torch.uint8, torch.float32}
    with pytest.raises(ValueError, match="DrQ augments images"):
        vectors(DrQ)


def test_drq_augments_observations_and_next_observations_each_by_itself():
    image = torch.randint(0, 256, (8, 1, 20, 20), dtype=torch.uint8)
    sample = ReplayBufferSamples(image, torch.zeros(8, 1), image, torch.zeros(8, 1), torch.arange(8.0), None)
    result = _Augmented(SimpleNamespace(sample=lambda batch_size, env: sample)).sample(8)
    assert result.observations.dtype == result.next_observations.dtype == torch.float32
    assert not torch.equal(result.observations, image.float())
    assert not torch.equal(result.next_observations, image.float())
    assert not torch.equal(result.observations, result.next_observations)
    assert torch.equal(result.rewards, sample.rewards)


# Dueling


def test_a_dueling_network_is_value_plus_centred_advantage():
    network = vectors(policy=DuelingDQNMlpPolicy).q_net
    observations = torch.randn(5, 4)
    values, advantages = network.value(observations), network.advantage(observations)
    expected = values + advantages - advantages.mean(1, keepdim=True)
    torch.testing.assert_close(network(observations), expected)
    torch.testing.assert_close(network(observations).mean(1, keepdim=True), values)
    assert not hasattr(network, "q_net")


def test_a_dueling_network_takes_the_settings_of_its_twins():
    kwargs = {"net_arch": [8], "width": 2, "layer_norm": True}
    model = DoubleDQN(DuelingDQNMlpPolicy, gym.make("CartPole-v1"), policy_kwargs=kwargs)
    assert [layer.out_features for layer in model.q_net.advantage if isinstance(layer, nn.Linear)] == [16, 2]
    assert isinstance(model.q_net.value[1], nn.LayerNorm)
    assert not isinstance(model.q_net.value[-1], nn.LayerNorm)


# As any other agent


@pytest.mark.parametrize("make", mostly_slow({"double_dqn": vectors, "drq": images}, ["double_dqn"]))
def test_a_run_saved_and_continued_is_the_uninterrupted_run(make, tmp_path):
    def recycling():
        return ReDoCallback(0.8, recycling_period=7, measuring_period=7, batch_size=8)

    uninterrupted = fingerprint(make().learn(60, callback=recycling()))
    first = make().learn(32, callback=recycling())
    continued = reloaded(first, tmp_path).learn(28, callback=recycling(), reset_num_timesteps=False)
    assert continued.dormancy_memory["recycled_total"] > 0
    assert differences(uninterrupted, fingerprint(continued)) == []


@pytest.mark.parametrize("make", [vectors, images], ids=["double_dqn", "drq"])
def test_the_heads_are_outputs_and_what_feeds_them_is_recyclable(make):
    model = make()
    model.learn(60)
    report = measure_dormancy(model, batch_size=32)
    assert all(layer.recyclable for layer in report.layers)
    assert all("value" not in layer.name and "advantage" not in layer.name for layer in report.layers)


def test_the_zoo_knows_them():
    assert tuple(ALGORITHMS) == OUR_ALGORITHMS
    assert {name: ALGOS[name] for name in ALGORITHMS} == ALGORITHMS


def test_augmentation_is_part_of_the_training_that_a_seed_repeats():
    runs = [fingerprint(images(seed=seed).learn(32)) for seed in (1, 1, 2)]
    assert differences(runs[0], runs[1]) == []
    assert differences(runs[0], runs[2]) != []
    assert np.isfinite([float(p.detach().sum()) for p in images().policy.parameters()]).all()
