"""What an inspection says of an agent agrees with a computation that shares nothing with it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_redo import measure_dormancy
from sb3_redo.zoo.environments import EnvironmentOptions
from sb3_redo.zoo.inspection import Failure, fresh_report, inspect_agent, to_frame
from sb3_redo.zoo.loading import open_agent

COLLECTION = os.environ.get("SB3_REDO_TRAINED_AGENTS")
KINDS = (DQN, QRDQN, SAC, TD3, DDPG, TQC, CrossQ, PPO, A2C, TRPO)
NAMES = {DQN: "dqn", QRDQN: "qrdqn", SAC: "sac", TD3: "td3", DDPG: "ddpg", TQC: "tqc", CrossQ: "crossq"}
NAMES |= {PPO: "ppo", A2C: "a2c", TRPO: "trpo"}


def environment(kind):
    return "CartPole-v1" if kind in (DQN, QRDQN, PPO, A2C, TRPO) else "Pendulum-v1"


def networks(model):
    """Layer by layer: a function of observations, and the parts of the network in the order in which they run."""
    policy = model.policy
    if isinstance(model, (DQN, QRDQN)):
        net = policy.q_net.q_net if isinstance(model, DQN) else policy.quantile_net.quantile_net
        return {("q_net.q_net" if isinstance(model, DQN) else "quantile_net.quantile_net"): net}
    if isinstance(model, (SAC, TQC)):
        return {"actor.latent_pi": policy.actor.latent_pi}
    if isinstance(model, (TD3, DDPG)):
        return {"actor.mu": policy.actor.mu[:-2]}  # without the output layer and its squashing
    return {
        "mlp_extractor.policy_net": policy.mlp_extractor.policy_net,
        "mlp_extractor.value_net": policy.mlp_extractor.value_net,
    }


def scores_by_hand(model, observations):
    """Scores of every hidden layer of some networks, from outputs of their activations, one after the other."""
    found = {}
    for name, net in networks(model).items():
        h = observations
        layer = None
        for index, module in enumerate(net):
            h = module(h)
            if isinstance(module, nn.Linear):
                layer = f"{name}.{index}"
            elif isinstance(module, (nn.ReLU, nn.Tanh)) and layer is not None:
                mean = h.abs().mean(0)
                found[layer] = mean / mean.mean()
                layer = None
    return found


def gathered_by_hand(model, n, seed):
    """Observations of the agent as it explores, from a loop of its own."""
    env = model.get_env()
    env.seed(seed)
    observations, seen = env.reset(), []
    for _ in range(n):
        seen.append(observations)
        actions, _ = model.predict(observations, deterministic=False)
        observations, _, _, _ = env.step(actions)
    return torch.as_tensor(np.concatenate(seen)).float()


def compared(path, algorithm, env, n):
    inspection = inspect_agent(path, algorithm=algorithm, env=env, n_samples=n, fresh_networks=1)
    model = open_agent(Path(path), algorithm, EnvironmentOptions(env=env)).model
    with torch.no_grad():
        by_hand = scores_by_hand(model, gathered_by_hand(model, n, 99))
    assert len(by_hand) >= 2
    for name, scores in by_hand.items():
        share = float((scores <= 0.1).float().mean())
        assert inspection.fraction(0.1, name) == pytest.approx(share, abs=0.1), name
        found = next(layer.scores for layer in inspection.report.layers if layer.name == name)
        # Between two samples of one policy, scores of all neurons go together.
        assert np.corrcoef(found.numpy(), scores.numpy())[0, 1] > 0.85, name
    return inspection


@pytest.mark.parametrize("kind", [DQN, PPO, pytest.param(SAC, marks=pytest.mark.slow)])
def test_shares_agree_with_a_computation_by_hand(tmp_path, kind):
    steps = {"learning_starts": 50} if kind is not PPO else {"n_steps": 128, "batch_size": 64}
    model = kind("MlpPolicy", environment(kind), seed=0, device="cpu", policy_kwargs={"net_arch": [32, 32]}, **steps)
    model.learn(200)
    model.save(tmp_path / "agent.zip")
    inspection = compared(tmp_path / "agent.zip", NAMES[kind], environment(kind), 1500)
    assert set(inspection.activations.values()) == ({"Tanh"} if kind is PPO else {"ReLU"})


@pytest.mark.slow
@pytest.mark.skipif(COLLECTION is None, reason="SB3_REDO_TRAINED_AGENTS names no folder")
@pytest.mark.parametrize(
    "agent",
    [
        *("a2c/Acrobot-v1_1", "ddpg/Pendulum-v1_1", "dqn/Acrobot-v1_1", "ppo/MountainCar-v0_1"),
        *("qrdqn/CartPole-v1_1", "sac/Pendulum-v1_1", "tqc/Pendulum-v1_1", "trpo/MountainCar-v0_1"),
    ],
)
def test_shares_of_public_agents_agree_with_a_computation_by_hand(agent):
    inspection = compared(Path(COLLECTION) / agent, None, None, 3000)
    assert inspection.episode_return == pytest.approx(inspection.saved_return, rel=1.0)


@pytest.mark.slow
@pytest.mark.skipif(COLLECTION is None, reason="SB3_REDO_TRAINED_AGENTS names no folder")
@pytest.mark.parametrize("safe", [False, True])
def test_every_public_agent_in_an_environment_that_is_here_opens(safe):
    from gymnasium import registry

    opened = 0
    for run in sorted(Path(COLLECTION).glob("*/*_1")):
        if run.parent.name != "ars" and run.name.removesuffix("_1") in registry and "Bipedal" not in run.name:
            open_agent(run, options=EnvironmentOptions(env="auto"), safe=safe).close()
            opened += 1
    assert opened >= 15


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_networks_are_those_of_a_fresh_model(kind):
    model = kind("MlpPolicy", environment(kind), seed=1, device="cpu", policy_kwargs={"net_arch": [16]})
    observations = np.stack([model.observation_space.sample() for _ in range(64)])
    report = measure_dormancy(model, observations=observations)
    torch.manual_seed(5)
    weights = [parameter.clone() for parameter in model.policy.parameters()]
    fresh = fresh_report(model, report, 3)
    assert [layer.name for layer in fresh.layers] == [layer.name for layer in report.layers]
    assert all(map(torch.equal, weights, model.policy.parameters()))
    # Another seed, another network; the same seed, the same one.
    again, other = fresh_report(model, report, 3), fresh_report(model, report, 4)
    assert all(torch.equal(one.scores, two.scores) for one, two in zip(fresh.layers, again.layers, strict=True))
    assert any(not torch.equal(one.scores, two.scores) for one, two in zip(fresh.layers, other.layers, strict=True))


def test_fresh_shares_are_the_mean_over_fresh_networks(tmp_path):
    DQN("MlpPolicy", "CartPole-v1", device="cpu", policy_kwargs={"net_arch": [16]}).save(tmp_path / "agent.zip")
    inspection = inspect_agent(tmp_path / "agent.zip", env="CartPole-v1", n_samples=100, fresh_networks=4)
    shares = [report.fraction_at(0.1) for report in inspection.fresh]
    assert len(set(shares)) > 1
    assert inspection.fresh_fraction(0.1) == pytest.approx(sum(shares) / 4)
    assert "No layer has noticeably more" in inspection.conclusion or "has lost" in inspection.conclusion


@pytest.mark.parametrize(("kind", "policy"), [(RecurrentPPO, "MlpLstmPolicy"), (MaskablePPO, "MlpPolicy")])
def test_agents_with_states_and_masks_are_inspected(tmp_path, kind, policy):
    kind(policy, "CartPole-v1", device="cpu", policy_kwargs={"net_arch": [8]}).save(tmp_path / "agent.zip")
    inspection = inspect_agent(tmp_path / "agent.zip", env="CartPole-v1", n_samples=50)
    assert inspection.algorithm == kind.__name__


def test_dead_neurons_are_told_in_the_closing_sentence(tmp_path):
    model = DQN("MlpPolicy", "CartPole-v1", device="cpu", seed=0, policy_kwargs={"net_arch": [16, 20]})
    with torch.no_grad():
        model.q_net.q_net[2].bias[:15] = -100.0
    model.save(tmp_path / "agent.zip")
    inspection = inspect_agent(tmp_path / "agent.zip", env="CartPole-v1", n_samples=100, seeds=2)
    lost = inspection.fraction(0.1, "q_net.q_net.2")
    assert lost >= 0.75
    assert inspection.conclusion.startswith(
        f"q_net.q_net.2, the last hidden layer of q_net, has lost {lost:.0%} of its"
    )
    assert "±" in str(inspection)
    frame = to_frame([inspection, Failure(Path("gone.zip"), "no such file")])
    assert frame["status"].tolist() == ["ok"] * 4 + ["failed"]
    assert frame["seed"].tolist()[:4] == [0, 0, 1, 1]
    assert frame.to_csv().splitlines()[1].split(",")[6:9] == ["100", "0", str(len(inspection.episode_returns))]
    assert frame["dormant_fraction_0.1"].tolist()[1] == pytest.approx(inspection.reports[0].layers[1].dormant_fraction)


class Functional(BaseFeaturesExtractor):
    """Calls functions where others have modules."""

    def __init__(self, space):
        super().__init__(space, 8)
        self.one, self.two = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.two(torch.tanh(self.one(x)))
        return torch.cat([torch.relu(x), torch.relu(-x)], dim=1)


def test_activations_that_are_functions_are_named(tmp_path):
    kwargs = {"features_extractor_class": Functional, "net_arch": [8]}
    DQN("MlpPolicy", "CartPole-v1", device="cpu", policy_kwargs=kwargs).save(tmp_path / "agent.zip")
    found = inspect_agent(tmp_path / "agent.zip", env="CartPole-v1", n_samples=20)
    assert list(found.activations.values()) == ["tanh", "relu", "ReLU"]
    assert "A Tanh neuron" in str(found)


def test_an_untrained_agent_has_lost_nothing(tmp_path):
    found = []
    for seed in range(4):
        DQN("MlpPolicy", "CartPole-v1", device="cpu", seed=seed).save(tmp_path / "agent.zip")
        found.append(inspect_agent(tmp_path / "agent.zip", env="CartPole-v1", n_samples=100, fresh_networks=5))
    assert sum("No layer has noticeably more" in each.conclusion for each in found) >= 3


def test_nothing_is_concluded_from_activations_that_are_not_finite(tmp_path):
    model = DQN("MlpPolicy", "CartPole-v1", device="cpu", policy_kwargs={"net_arch": [8]})
    with torch.no_grad():
        model.q_net.q_net[0].bias[0] = torch.nan
    model.save(tmp_path / "agent.zip")
    with pytest.warns(RuntimeWarning, match="NaN or infinite"):
        found = inspect_agent(tmp_path / "agent.zip", env="CartPole-v1", n_samples=20)
    assert found.conclusion == "Activations of q_net.q_net.0 are NaN or infinite: their shares mean nothing."


def test_episodes_are_counted_in_words(tmp_path):
    DQN("MlpPolicy", "MountainCar-v0", device="cpu", seed=0).save(tmp_path / "agent.zip")
    for samples, words in (
        (20, "MountainCar-v0: no episode ended"),
        (200, "MountainCar-v0: 1 episode, mean return -200.0"),
    ):
        assert inspect_agent(tmp_path / "agent.zip", env="MountainCar-v0", n_samples=samples).where().endswith(words)


def test_settings_are_checked_first():
    for settings in ({"n_samples": 0}, {"seeds": 0}, {"seed": -1}, {"dormancy_threshold": -0.1}, {"fresh_networks": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            inspect_agent("nothing.zip", **settings)
