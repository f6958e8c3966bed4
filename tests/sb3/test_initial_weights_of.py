"""Which weights a model began with: a freshly built policy's, those of an initialisation by hand, or trained ones."""

import pytest
import torch
from stable_baselines3 import DQN, PPO
from torch import nn

from sb3_redo import ReDoCallback, measure_dormancy, recycle_dormant
from sb3_redo.interventions import ContinualBackpropCallback, ResetCallback, ShrinkAndPerturbCallback
from sb3_redo.sb3.model import initial_weights_of

NAME = "q_net.q_net.2.weight"
BOUND = 64**-0.5
"""Of a fresh layer with 64 inputs."""


def dqn(**settings):
    sizes = {"learning_starts": 20, "buffer_size": 500, "train_freq": 1, "batch_size": 32, "learning_rate": 0.01}
    return DQN("MlpPolicy", "CartPole-v1", seed=0, **{**sizes, **settings})


def drawn(model, initial_weights="auto", name=NAME):
    weight = model.policy.get_parameter(name)
    rows, generator = torch.arange(len(weight)), torch.Generator().manual_seed(0)
    return initial_weights_of(model, initial_weights).draw(name, weight, rows, generator)


def fill(model):
    """Stands for training: no weight is one that a fresh network has, but no layer has a structure either."""
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_(std=3.0)
    return model


def imitate(model, optimizer, steps=300):
    """Behaviour cloning in a loop of one's own."""
    network, generator = model.q_net, torch.Generator().manual_seed(0)
    for _ in range(steps):
        states = torch.randn(64, 4, generator=generator)
        actions = (states[:, 0] + states[:, 1].square() > 0.5).long()
        loss = nn.functional.cross_entropy(network(states), actions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


SGD = {"policy_kwargs": {"optimizer_class": torch.optim.SGD}}


def set_parameters(**settings):
    model = dqn(**settings)
    model.set_parameters(fill(dqn(**settings)).get_parameters())
    return model


def set_from_file(folder):
    fill(dqn()).save(folder / "donor.zip")
    model = dqn()
    model.set_parameters(folder / "donor.zip")
    return model


def set_policy_alone():
    donor, model = dqn(), dqn()
    imitate(donor, torch.optim.Adam(donor.q_net.parameters(), lr=0.01))
    model.set_parameters({"policy": donor.policy.state_dict()}, exact_match=False)
    return model


def load_state_dict():
    donor, model = dqn(), dqn()
    imitate(donor, torch.optim.Adam(donor.q_net.parameters(), lr=0.01))
    model.policy.load_state_dict(donor.policy.state_dict())
    return model


def cloned(with_its_optimizer):
    model = dqn()
    its = model.policy.optimizer
    imitate(model, its if with_its_optimizer else torch.optim.Adam(model.q_net.parameters(), lr=0.01))
    return fill(model)


def pretrained_encoder():
    model, donor = dqn(), dqn()
    imitate(donor, torch.optim.Adam(donor.q_net.parameters(), lr=0.01))
    model.q_net.q_net[2].load_state_dict(donor.q_net.q_net[2].state_dict())
    return model


TAKEN_OVER = {
    "set_parameters": lambda folder: set_parameters(),
    "set_parameters, SGD": lambda folder: set_parameters(**SGD),
    "set_parameters from a file": set_from_file,
    "set_parameters of the policy alone": lambda folder: set_policy_alone(),
    "load_state_dict": lambda folder: load_state_dict(),
    "cloned with its own optimizer": lambda folder: cloned(True),
    "cloned with another optimizer": lambda folder: cloned(False),
    "one layer loaded": lambda folder: pretrained_encoder(),
}


@pytest.mark.parametrize("kind", TAKEN_OVER)
def test_weights_that_were_taken_over_are_not_those_that_a_model_began_with(kind, tmp_path):
    model = TAKEN_OVER[kind](tmp_path)
    assert model.policy.get_parameter(NAME).abs().max() > BOUND
    weights = drawn(model)
    assert 0.95 * BOUND < weights.abs().max() <= BOUND


BY_HAND = {
    "normal": nn.init.normal_,
    "orthogonal": lambda weight: nn.init.orthogonal_(weight, 3.0),
    "constant": lambda weight: nn.init.constant_(weight, 0.7),
    "sparse": lambda weight: nn.init.sparse_(weight, 0.9, std=1.0),
    "positive": lambda weight: nn.init.uniform_(weight, 0.0, 1.0),
    "identity": nn.init.eye_,
}


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.Adagrad], ids=["Adam", "Adagrad"])
@pytest.mark.parametrize("kind", BY_HAND)
def test_an_initialisation_by_hand_counts(kind, optimizer):
    model = dqn(policy_kwargs={"optimizer_class": optimizer})
    for layer in model.q_net.q_net[:3:2]:
        BY_HAND[kind](layer.weight)
    weights = drawn(model)
    assert torch.isin(weights, model.policy.get_parameter(NAME)).all()
    assert weights.abs().max() > 4 * BOUND
    # A later callback finds the same, though the weights are others now.
    fill(model)
    assert torch.equal(drawn(model), weights)


def test_fresh_weights_are_drawn_on_demand_and_an_initialisation_by_hand_is_not_forgotten():
    model = dqn()
    nn.init.normal_(model.q_net.q_net[2].weight)
    assert drawn(model, "fresh").abs().max() <= BOUND
    assert drawn(model).abs().max() > BOUND
    assert drawn(model, "fresh").abs().max() <= BOUND


@pytest.mark.parametrize("cls", [DQN, PPO], ids=["DQN", "PPO"])
def test_redo_recycles_with_fresh_weights_when_told_to(cls):
    def learnt(**settings):
        sizes = {"learning_starts": 20, "buffer_size": 500} if cls is DQN else {"n_steps": 64, "n_epochs": 1}
        model = fill(cls("MlpPolicy", "CartPole-v1", seed=0, **sizes))
        name = NAME if cls is DQN else "mlp_extractor.policy_net.2.weight"
        before = model.policy.get_parameter(name).detach().clone()
        every = lambda report, callback: {name.removesuffix(".weight"): torch.arange(64)}  # noqa: E731
        model.learn(128, callback=ReDoCallback(0.1, 1, 16, select=every, start=1, **settings))
        after = model.policy.get_parameter(name).detach()
        assert (after != before).float().mean() > 0.99
        return after

    # PPO's orthogonal rows have a norm of the root of 2, those of fill() one of 24.
    assert learnt(initial_weights="fresh").abs().max() < 1.1
    assert learnt().abs().max() > 3


def test_resets_and_a_recycling_by_hand_draw_fresh_weights_when_told_to():
    for callback in (ResetCallback, lambda **s: ShrinkAndPerturbCallback(0.0, 1.0, **s)):
        for settings, is_fresh in (({"initial_weights": "fresh"}, True), ({}, False)):
            model = fill(dqn()).learn(30, callback=callback(layers=["q_net.q_net.2"], period=6, **settings))
            # No more than steps of 0.01 from what was drawn.
            assert (model.q_net.q_net[2].weight.abs().max().item() < 0.4) is is_fresh
    model = fill(dqn()).learn(25)
    model._n_updates = 0
    model.policy.zero_grad()
    model.policy.optimizer.state.clear()
    report = measure_dormancy(model, 0.9, batch_size=16)
    rows = recycle_dormant(model, report, initial_weights="fresh").neurons["q_net.q_net.2"]
    assert model.q_net.q_net[2].weight[rows].abs().max() <= BOUND


@pytest.mark.parametrize(
    "build", [ReDoCallback, ResetCallback, ShrinkAndPerturbCallback, ContinualBackpropCallback, recycle_dormant]
)
def test_only_auto_and_fresh_are_known(build):
    given = (dqn(), None) if build is recycle_dormant else ()
    with pytest.raises(ValueError, match="initial_weights must be one of 'auto', 'fresh', got 'frsh'; did you mean"):
        build(*given, initial_weights="frsh")
    with pytest.raises(TypeError, match="initial_weights must be one of"):
        build(*given, initial_weights=True)


def test_the_setting_is_shown():
    assert "initial_weights='fresh'" in repr(ReDoCallback(initial_weights="fresh"))
    assert "initial_weights='auto'" in repr(ResetCallback())
