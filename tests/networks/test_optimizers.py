"""Adam with an epsilon inside the root, RMSProp's two places for one, and how the zoo's YAML names an optimizer."""

import argparse
import doctest

import pytest
import torch
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3 import DQN
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from sb3_redo import ReDoCallback, measure_dormancy, recycle_dormant
from sb3_redo.networks import Adam, optimizers
from tests.helpers.algorithms import VECTORS, build, learn, scalable
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import Tape, differences, fingerprint, reloaded


def steps(make, gradients, **settings):
    """What a parameter that begins at 0 is after each of these gradients."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer, seen = make([parameter], **settings), []
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        seen.append(float(parameter.detach()))
    return seen


def agent(name="DQN", settings=None, **optimizer_kwargs):
    kwargs = {"optimizer_class": Adam, "optimizer_kwargs": {"eps_root": 1e-3, **optimizer_kwargs}}
    return build(name, VECTORS, policy=scalable(name, VECTORS), policy_kwargs=kwargs, **settings or {})


# Adam


def test_worked_numbers():
    # Moments, corrected: 3 and 9 after the first step; (0.9 * 0.3 + 0.1) / 0.19 and (0.9 * 0.9 + 0.1) / 0.19 after the
    # second.
    first = -2.0 * 3.0 / ((9.0 + 16.0) ** 0.5 + 1.0)
    second = first - 2.0 * (0.37 / 0.19) / ((0.91 / 0.19 + 16.0) ** 0.5 + 1.0)
    seen = steps(Adam, [3.0, 1.0], lr=2.0, betas=(0.9, 0.9), eps=1.0, eps_root=16.0)
    assert first == -1.0
    assert seen == pytest.approx([first, second], rel=1e-12)
    outside = steps(torch.optim.Adam, [3.0, 1.0], lr=2.0, betas=(0.9, 0.9), eps=1.0)
    assert outside[0] == pytest.approx(-2.0 * 3.0 / (3.0 + 1.0))


def test_small_gradients_make_small_steps():
    gradients = [1e-6] * 3
    assert abs(steps(Adam, gradients, lr=1.0, eps=1e-9, eps_root=1e-3)[-1]) < 1e-3
    assert abs(steps(Adam, gradients, lr=1.0, eps=1e-9)[-1]) > 2.9


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_without_it_it_is_torchs(weight_decay):
    gradients = torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist()
    settings = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": weight_decay}
    assert steps(Adam, gradients, **settings) == pytest.approx(steps(torch.optim.Adam, gradients, **settings), rel=1e-9)


def test_what_has_no_gradient_is_left_alone_and_a_closure_is_called():
    one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Adam([one, other], lr=0.1, weight_decay=0.5)

    def closure():
        optimizer.zero_grad()
        loss = one.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert torch.equal(other.detach(), torch.ones(2))
    assert other not in optimizer.state
    assert (one < 1).all()


def test_a_step_calls_its_hooks_once():
    torch.optim.Adam([nn.Parameter(torch.ones(1))])  # whose step has hooks of its own from then on
    calls = []
    parameter = nn.Parameter(torch.ones(1))
    optimizer = Adam([parameter], eps_root=1e-3)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    parameter.grad = torch.ones(1)
    optimizer.step()
    assert calls == [1]


def test_groups_have_settings_of_their_own_and_torchs_are_taken_over():
    one, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = Adam([{"params": [one], "eps_root": 24.0}], lr=1.0, eps=0.0)
    optimizer.add_param_group({"params": [other]})
    one.grad, other.grad = torch.ones(1), torch.ones(1)
    optimizer.step()
    assert (one.item(), other.item()) == (pytest.approx(-0.2), pytest.approx(-1.0))
    torchs = torch.optim.Adam([one, other], lr=1.0)
    torchs.step()
    ours = Adam([one, other], eps_root=1e-3)
    ours.load_state_dict(torchs.state_dict())
    ours.step()
    assert {int(state["step"]) for state in ours.state.values()} == {2}
    assert ours.param_groups[0]["eps_root"] == 1e-3


@pytest.mark.parametrize("name", mostly_slow(["DQN", "SAC", "PPO"], ["DQN"]))
def test_a_run_saved_and_continued_is_the_uninterrupted_run(name, tmp_path):
    length = 48 if name == "PPO" else 40

    def recycling():
        return ReDoCallback(0.9, recycling_period=11, measuring_period=11, batch_size=8)

    whole, parts = Tape(), Tape()
    uninterrupted = fingerprint(learn(agent(name), recycling(), 2 * length, whole))
    first = learn(agent(name), recycling(), length, parts)
    continued = learn(reloaded(first, tmp_path), recycling(), length, parts)
    assert parts.points == whole.points
    if name != "PPO":
        # Every step is counted, and once.
        assert whole.values("dormancy/gradient_step") == list(range(0, continued._n_updates + 1, 11))
    assert differences(uninterrupted, fingerprint(continued)) == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"eps_root": -1e-3}, ValueError, "eps_root must be a finite number of at least 0"),
        ({"eps_root": "1e-3"}, TypeError, "PyYAML reads 1e-3 as text"),
        ({"eps": -1.0}, ValueError, "Invalid epsilon"),
        ({"amsgrad": True}, TypeError, "amsgrad"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Adam([nn.Parameter(torch.ones(1))], **settings)


# What recycling clears


def recycled_state(make, **settings):
    """A DQN's optimizer state of the output layer's weights after recycling two of the neurons that it reads."""
    kwargs = {"net_arch": [8], "optimizer_class": make, "optimizer_kwargs": settings}
    model = build("DQN", VECTORS, policy_kwargs=kwargs)
    model.learn(40)
    with torch.no_grad():
        model.q_net.q_net[0].bias[[1, 3]] = -1000.0
    recycle_dormant(model, measure_dormancy(model, 0.0, batch_size=16), optimizer_state="clear")
    weight = model.q_net.q_net[2].weight
    assert not weight[:, [1, 3]].any()
    return model.policy.optimizer.state[weight]


def test_recycling_clears_the_moments_of_ours():
    state = recycled_state(Adam, eps_root=1e-3)
    for moment in (state["exp_avg"], state["exp_avg_sq"]):
        assert not moment[:, [1, 3]].any()
        assert moment[:, [0, 2]].any()


@pytest.mark.parametrize(("make", "initial"), [(torch.optim.RMSprop, 0.0), (RMSpropTFLike, 1.0)])
def test_recycling_clears_the_mean_gradient_of_centred_rmsprop_too(make, initial):
    state = recycled_state(make, alpha=0.95, eps=0.01 / 32**2, centered=True)
    assert not state["grad_avg"][:, [1, 3]].any()
    assert state["grad_avg"][:, [0, 2]].any()
    assert (state["square_avg"][:, [1, 3]] == initial).all()


# RMSProp


def test_centred_rmsprop_of_dqn_zoo_has_its_epsilon_inside_the_root_and_torchs_outside():
    settings = {"lr": 1.0, "alpha": 0.5, "eps": 0.25, "centered": True}
    # After one gradient of 2: mean square 2, mean 1, variance 1.
    assert steps(torch.optim.RMSprop, [2.0], **settings) == pytest.approx([-2.0 / (1.0 + 0.25)])
    # SB3's twin of TensorFlow's: the root of 1.25, but for a mean square that begins at 1, so that it is 2.5 here.
    assert steps(RMSpropTFLike, [2.0], **settings) == pytest.approx([-2.0 / (2.5 - 1.0 + 0.25) ** 0.5])


# From YAML


def from_zoo(text, tmp_path):
    """A DQN with what the zoo makes of a configuration."""
    (tmp_path / "config.yml").write_text(text)
    manager = ExperimentManager(
        argparse.Namespace(),
        "dqn",
        "CartPole-v1",
        log_folder=str(tmp_path),
        config=str(tmp_path / "config.yml"),
        eval_freq=-1,
        verbose=0,
    )
    hyperparameters, *_ = manager._preprocess_hyperparams(manager.read_hyperparameters()[0])
    return DQN(env="CartPole-v1", device="cpu", **hyperparameters)


PLAIN = """
CartPole-v1:
  n_timesteps: 100
  policy: {policy}
  policy_kwargs:
    net_arch: [8]
    optimizer_class: {optimizer}
    optimizer_kwargs: {settings}
"""
TEXT = """
CartPole-v1:
  n_timesteps: 100
  policy: MlpPolicy
  policy_kwargs: "dict(net_arch=[8], optimizer_class={optimizer}, optimizer_kwargs=dict(weight_decay=0.01))"
"""


@pytest.mark.parametrize(
    ("optimizer", "settings", "expected"),
    [
        ("torch.optim.AdamW", "{weight_decay: 0.01}", torch.optim.AdamW),
        ("torch.optim.RMSprop", "{alpha: 0.95, centered: true, eps: 9.77e-6}", torch.optim.RMSprop),
        ("sb3_redo.networks.Adam", "{eps_root: 0.001, betas: [0.9, 0.9], eps: 1.0e-9}", Adam),
        ("stable_baselines3.common.sb2_compat.rmsprop_tf_like.RMSpropTFLike", "{eps: 1.0e-5}", RMSpropTFLike),
    ],
)
def test_our_policies_take_an_optimizer_by_its_path_in_plain_yaml(optimizer, settings, expected, tmp_path):
    text = PLAIN.format(policy="sb3_redo.networks.DQNMlpPolicy", optimizer=optimizer, settings=settings)
    model = from_zoo(text, tmp_path)
    assert type(model.policy.optimizer) is expected
    given = yaml.safe_load(settings)
    group = model.policy.optimizer.param_groups[0]
    assert {name: list(group[name]) if name == "betas" else group[name] for name in given} == given
    learn(model, None, 120)
    model.save(tmp_path / "agent")
    loaded = type(model).load(tmp_path / "agent")
    assert type(loaded.policy.optimizer) is expected
    loaded.policy.save(tmp_path / "policy")
    assert type(type(loaded.policy).load(tmp_path / "policy").optimizer) is expected


@pytest.mark.parametrize(
    ("optimizer", "decayed"),
    [
        # L2: the penalty's gradient, decay times the weight, goes through Adam, whose first step divides by its size.
        (None, lambda weight: weight - 0.1 * 0.5 * weight / (0.5 * weight.abs() + 1e-8)),
        # Decoupled (Loshchilov & Hutter 2019): a share of the weight, whatever Adam does.
        ("torch.optim.AdamW", lambda weight: weight * (1 - 0.1 * 0.5)),
    ],
    ids=["l2", "decoupled"],
)
def test_where_the_loss_is_flat_weights_decay_by_the_formula(optimizer, decayed):
    kwargs = {"optimizer_kwargs": {"weight_decay": 0.5}} | ({"optimizer_class": optimizer} if optimizer else {})
    policy = build("DQN", policy=scalable("DQN", VECTORS), policy_kwargs=kwargs, learning_rate=0.1).policy
    before = {name: parameter.detach().clone() for name, parameter in policy.q_net.named_parameters()}
    for parameter in policy.q_net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    policy.optimizer.step()
    for name, parameter in policy.q_net.named_parameters():
        torch.testing.assert_close(parameter.detach(), decayed(before[name]))


def test_sb3s_policies_take_one_in_python_that_the_zoo_evaluates(tmp_path):
    model = from_zoo(TEXT.format(optimizer="th.optim.AdamW"), tmp_path)
    assert type(model.policy.optimizer) is torch.optim.AdamW
    assert model.policy.optimizer.param_groups[0]["weight_decay"] == 0.01


def test_sb3s_policies_take_none_from_plain_yaml_and_the_zoo_does_not_know_the_word_torch(tmp_path):
    with pytest.raises(TypeError, match="'str' object is not callable"):
        from_zoo(PLAIN.format(policy="MlpPolicy", optimizer="torch.optim.AdamW", settings="{}"), tmp_path)
    with pytest.raises(NameError, match="torch"):
        from_zoo(TEXT.format(optimizer="torch.optim.AdamW"), tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("torch.optim.AdamV", "optimizer_class must be the path of a class, .* got 'torch.optim.AdamV'"),
        ("AdamW", "optimizer_class must be the path of a class, such as torch.optim.AdamW, got 'AdamW'"),
        ("no_such.Adam", "No module named 'no_such'"),
        ("torch.nn.Linear", "must be the path of an optimizer"),
        ("torch.optim.lr_scheduler", "must be the path of an optimizer"),
    ],
)
def test_what_is_no_optimizer_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        build("DQN", policy=scalable("DQN", VECTORS), policy_kwargs={"optimizer_class": path})


def test_examples_in_docstrings_hold():
    assert doctest.testmod(optimizers) == doctest.TestResults(failed=0, attempted=1)
