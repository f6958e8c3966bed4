"""Categorical DQN: two-hot targets, the loss on them, and an agent like any other."""

import doctest
import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_redo import ReDoCallback, measure_dormancy
from sb3_redo.algorithms import CategoricalDQN, DoubleDQN
from sb3_redo.networks import CategoricalDQNMlpPolicy, categorical
from sb3_redo.networks.categorical import Support, two_hot
from tests.helpers.algorithms import DISCRETE, OBSERVATIONS, VECTORS
from tests.helpers.runs import Corridor, differences, fingerprint, reloaded

# Exploration does not depend on how long learn() is asked to train.
SETTINGS = {
    "learning_starts": 20,
    "batch_size": 8,
    "buffer_size": 200,
    "train_freq": 4,
    "gradient_steps": 4,
    "exploration_initial_eps": 0.1,
    "exploration_final_eps": 0.1,
    "seed": 0,
}
KINDS = pytest.mark.parametrize("kind", OBSERVATIONS)


def build(kind=VECTORS, policy=None, **settings):
    env = DummyVecEnv([lambda: Corridor(7, OBSERVATIONS[kind], DISCRETE)])
    kwargs = {"net_arch": [8, 8], **settings.pop("policy_kwargs", {})}
    return CategoricalDQN(policy or kind, env, policy_kwargs=kwargs, **{**SETTINGS, **settings})


# Two-hot


def test_worked_encodings():
    values = torch.tensor([0.0, 0.3, 10.0, -9.9, 12.0, -1e6])
    encoded = two_hot(values, Support().centres())  # 51 bins, 0.4 apart
    expected = torch.zeros(6, 51)
    expected[0, 25] = 1
    expected[1, 25], expected[1, 26] = 0.25, 0.75  # 0 * 0.25 + 0.4 * 0.75
    expected[2, 50] = 1
    expected[3, 0], expected[3, 1] = 0.75, 0.25  # -10 * 0.75 - 9.6 * 0.25
    expected[4, 50] = 1
    expected[5, 0] = 1
    torch.testing.assert_close(encoded, expected, atol=1e-5, rtol=0)


def test_examples_in_docstrings_hold():
    outcome = doctest.testmod(categorical)
    assert outcome.attempted
    assert not outcome.failed


@pytest.mark.parametrize("support", [Support(), Support(2, 0.0, 1.0), Support(7, 3.0, 400.0), Support(601, -300, 300)])
def test_an_encoding_is_a_distribution_over_neighbours_whose_mean_is_the_value(support):
    centres = support.centres()
    generator = torch.Generator().manual_seed(0)
    middle, reach = (support.v_max + support.v_min) / 2, support.v_max - support.v_min
    values = middle + reach * (torch.rand(500, generator=generator) - 0.5) * 1.5
    encoded = two_hot(values, centres)
    assert encoded.shape == (500, support.n_bins)
    assert (encoded >= 0).all()
    torch.testing.assert_close(encoded.sum(1), torch.ones(500), atol=1e-4, rtol=0)
    torch.testing.assert_close(encoded @ centres, values.clamp(support.v_min, support.v_max), atol=1e-4 * reach, rtol=0)
    for row in encoded:
        filled = (row > 1e-4).nonzero().view(-1).tolist()
        assert filled in ([filled[0]], [filled[0], filled[0] + 1])


# The loss


def constant(network, first, second):
    """Make a network say the same of every observation: these distributions for its two actions."""
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    network.q_net[-1].bias.data = torch.tensor([*first, *second]).log()


def worked(**batch):
    """A model of two actions with bins at 0, 1 and 2, before one step of plain gradient descent on a batch."""
    kwargs = {"net_arch": [4], "n_bins": 3, "v_min": 0, "v_max": 2, "optimizer_class": torch.optim.SGD}
    env = Corridor(7, spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2))
    settings = {**SETTINGS, "learning_rate": 1.0, "gamma": 0.5, "max_grad_norm": math.inf}
    model = CategoricalDQN(VECTORS, env, policy_kwargs=kwargs, **settings)
    model.learn(1)
    constant(model.q_net, (0.5, 0.25, 0.25), (0.1, 0.2, 0.7))
    constant(model.q_net_target, (0.25, 0.5, 0.25), (0.5, 0.5, 0.0 + 1e-12))
    size = len(batch["rewards"])
    columns = {name: torch.tensor(values).view(-1, 1) for name, values in batch.items()}
    observations = {"observations": torch.zeros(size, 3), "next_observations": torch.zeros(size, 3)}
    model.replay_buffer.sample = lambda *_, **__: SimpleNamespace(**{"discounts": None, **observations, **columns})
    return model


def test_values_are_means():
    model = worked(rewards=[0.0], dones=[0.0], actions=[0])
    # 0.25 + 2 * 0.25 and 0.2 + 2 * 0.7; the target network's are 1 and 0.5.
    torch.testing.assert_close(model.q_net(torch.zeros(2, 3)), torch.tensor([[0.75, 1.6]] * 2))
    torch.testing.assert_close(model.q_net_target(torch.zeros(1, 3)), torch.tensor([[1.0, 0.5]]))
    assert model.predict(np.zeros(3, "float32"), deterministic=True)[0] == 1


def test_worked_loss_and_gradient():
    # Targets 0.25 + 0.5 * 1 = 0.75; 1, a terminal state; 3 + 0.5 * 1 and -1 + 0.5 * 1, beyond the support.
    model = worked(rewards=[0.25, 1.0, 3.0, -1.0], dones=[0.0, 1.0, 0.0, 0.0], actions=[0, 0, 1, 1])
    last = model.q_net.q_net[-1]
    before = last.bias.detach().clone()
    model.train(1, 4)
    first = -(0.25 * math.log(0.5) + 0.75 * math.log(0.25))
    expected = (first - math.log(0.25) - math.log(0.7) - math.log(0.1)) / 4
    assert model.logger.name_to_value["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert model.logger.name_to_value["train/clipped_targets"] == pytest.approx(2 / 4)
    assert model.logger.name_to_value["train/n_updates"] == model._n_updates == 1
    # The gradient of cross-entropy is softmax minus target; each action's bins learn from its own samples alone.
    of_first = [(0.5 - 0.25) + 0.5, (0.25 - 0.75) + (0.25 - 1), 0.25 + 0.25]
    of_second = [0.1 + (0.1 - 1), 0.2 + 0.2, (0.7 - 1) + 0.7]
    gradient = torch.tensor([*of_first, *of_second]) / 4
    torch.testing.assert_close(last.bias.detach(), before - gradient)


def test_discounts_of_longer_returns_are_each_samples_own():
    model = worked(rewards=[0.5, 0.5], dones=[0.0, 0.0], actions=[0, 0], discounts=[0.25, 1.0])
    targets = model._targets(model.replay_buffer.sample())
    assert targets.tolist() == pytest.approx([0.75, 1.5])
    assert not targets.requires_grad


def test_gradients_are_clipped_as_in_dqn():
    model = worked(rewards=[1.0], dones=[1.0], actions=[0])
    model.max_grad_norm = 0.01
    before = model.q_net.q_net[-1].bias.detach().clone()
    model.train(1, 1)
    assert float((model.q_net.q_net[-1].bias.detach() - before).norm()) == pytest.approx(0.01, rel=1e-3)


# Learning


class Steps(gym.Env):
    """Three steps up, and a reward of 1 at the top; whoever turns round gets 0.1 and has to go."""

    observation_space = spaces.Box(0.0, 1.0, (3,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.height = 0
        return np.eye(3, dtype="float32")[0], {}

    def step(self, action):
        if action == 0:
            return np.zeros(3, "float32"), 0.1, True, False, {}
        self.height += 1
        if self.height == 3:
            return np.zeros(3, "float32"), 1.0, True, False, {}
        return np.eye(3, dtype="float32")[self.height], 0.0, False, False, {}


def test_it_learns_the_values_of_a_small_environment():
    kwargs = {"net_arch": [32], "n_bins": 11, "v_min": -1.0, "v_max": 2.0}
    settings = {"learning_starts": 100, "train_freq": 2, "gradient_steps": 2, "target_update_interval": 50}
    exploration = {"exploration_initial_eps": 1.0, "exploration_final_eps": 0.5}
    model = CategoricalDQN(
        VECTORS, Steps(), learning_rate=0.03, gamma=0.9, seed=0, policy_kwargs=kwargs, **settings, **exploration
    )
    model.learn(600)
    values = model.q_net(torch.eye(3)).detach()
    expected = torch.tensor([[0.1, 0.81], [0.1, 0.9], [0.1, 1.0]])
    torch.testing.assert_close(values, expected, atol=0.05, rtol=0)


# As any other agent


@KINDS
def test_a_saved_agent_has_its_bins(kind, tmp_path):
    model = build(kind, policy_kwargs={"n_bins": 5, "v_min": -1.0, "v_max": 3.0}).learn(40)
    loaded = reloaded(model, tmp_path)
    observations, _ = model.policy.obs_to_tensor(model.env.reset())
    for network, other in ((model.q_net, loaded.q_net), (model.q_net_target, loaded.q_net_target)):
        assert other.centres.tolist() == [-1, 0, 1, 2, 3]
        assert other.q_net[-1].out_features == 3 * 5
        assert torch.equal(network(observations), other(observations))
    model.policy.save(tmp_path / "policy.zip")
    policy = type(model.policy).load(tmp_path / "policy.zip", device="cpu")
    assert torch.equal(policy.q_net(observations), model.q_net(observations))
    model.q_net.save(tmp_path / "network.zip")
    network = type(model.q_net).load(tmp_path / "network.zip", device="cpu")
    assert torch.equal(network(observations), model.q_net(observations))


@KINDS
def test_the_head_is_an_output_and_what_feeds_it_is_recyclable(kind):
    model = build(kind).learn(40)
    report = measure_dormancy(model, batch_size=32)
    assert all(layer.recyclable for layer in report.layers)
    assert {layer.name.rpartition(".")[2] for layer in report.layers} >= {"0", "2"}
    assert "q_net.q_net.4" not in {layer.name for layer in report.layers}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == VECTORS else pytest.mark.slow) for kind in OBSERVATIONS]
)
def test_a_run_saved_and_continued_is_the_uninterrupted_run(kind, tmp_path):
    def recycling():
        return ReDoCallback(0.8, recycling_period=7, measuring_period=7, batch_size=8)

    uninterrupted = fingerprint(build(kind).learn(80, callback=recycling()))
    first = build(kind).learn(40, callback=recycling())
    continued = reloaded(first, tmp_path).learn(40, callback=recycling(), reset_num_timesteps=False)
    assert continued.dormancy_memory["recycled_total"] > 0
    assert differences(uninterrupted, fingerprint(continued)) == []
    assert differences(uninterrupted, fingerprint(build(kind, seed=1).learn(80, callback=recycling()))) != []


def test_the_target_network_follows_at_its_interval():
    same = []

    class Compare(BaseCallback):
        def _on_step(self):
            pairs = zip(self.model.q_net.parameters(), self.model.q_net_target.parameters(), strict=True)
            same.append(all(torch.equal(online, target) for online, target in pairs))
            return True

    build(target_update_interval=30).learn(92, callback=Compare())
    # The first train() comes after step 24. Callbacks are called before the target network follows, which then is the
    # same until the next train(), of which one comes right after step 60.
    assert [step for step, is_same in enumerate(same, 1) if not is_same] == [*range(25, 31), *range(33, 91)]


def test_it_takes_the_settings_of_its_twins():
    model = build(policy_kwargs={"net_arch": [8], "width": 2, "layer_norm": True, "n_bins": 7})
    layers = [layer for layer in model.q_net.q_net if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in layers] == [16, 3 * 7]
    assert isinstance(model.q_net.q_net[1], torch.nn.LayerNorm)


# Refusals


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"n_bins": 1}, ValueError, "n_bins must be at least 2, got 1"),
        ({"n_bins": 2.5}, TypeError, "n_bins must be an integer, got 2.5"),
        ({"v_min": 1.0, "v_max": 1}, ValueError, "v_min must be below v_max, got 1.0 and 1"),
        ({"v_max": "1e2"}, TypeError, "v_max must be a number, got '1e2'"),
        ({"v_min": -math.inf}, ValueError, "v_min must be a finite number, got -inf"),
        ({"n_atoms": 51}, TypeError, "CategoricalDQNMlpPolicy has no setting 'n_atoms'"),
    ],
)
def test_supports_that_hold_no_values_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        build(policy_kwargs=settings)


def test_policies_without_bins_are_refused():
    with pytest.raises(TypeError, match=r"needs a policy whose values have bins, .* got DQNPolicy"):
        build(policy=DQN.policy_aliases[VECTORS])
    assert build(policy=CategoricalDQNMlpPolicy).q_net.centres.shape == (51,)


@pytest.mark.parametrize("algorithm", [DQN, DoubleDQN])
def test_other_algorithms_cannot_train_the_means_of_distributions(algorithm):
    model = algorithm(CategoricalDQNMlpPolicy, "CartPole-v1", learning_starts=20, gradient_steps=1)
    model.predict(model.get_env().reset())
    with pytest.raises(RuntimeError, match=r"learns distributions .* use sb3_redo\.algorithms\.CategoricalDQN"):
        model.learn(40)
