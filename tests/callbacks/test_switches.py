"""Gradients that ``train()`` switches off for a part of each step do not make a network look frozen."""

import copy
import warnings

import pytest
import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback

from sb3_redo import DormancyCallback, ReDoCallback
from sb3_redo.interventions import ContinualBackpropCallback
from tests.helpers.runs import dqn, hooks_of

SETTINGS = {"learning_starts": 16, "batch_size": 8, "buffer_size": 200, "device": "cpu", "seed": 0}
CRITIC = {f"critic.qf{number}.{layer}" for number in (0, 1) for layer in (0, 2)}
ACTOR = {"actor.latent_pi.0", "actor.latent_pi.2"}


class Switching(SAC):
    """Switches the critic's gradients off for the actor's loss, as Spinning Up does."""

    def _setup_model(self):
        super()._setup_model()
        self.critic.optimizer.register_step_post_hook(lambda *_: self.critic.requires_grad_(False))

    def train(self, gradient_steps, batch_size=64):
        for _ in range(gradient_steps):
            super().train(1, batch_size)
            assert not self.critic.qf0[0].weight.requires_grad
            self.critic.requires_grad_(True)


class SwitchingOnLate(Switching):
    """Switches them on again only before the critic's next loss."""

    def train(self, gradient_steps, batch_size=64):
        for _ in range(gradient_steps):
            self.critic.requires_grad_(True)
            SAC.train(self, 1, batch_size)
            assert not self.critic.qf0[0].weight.requires_grad


class Recycled(ReDoCallback):
    """Recycles all that can be, and notes which layers were at each gradient step."""

    def __init__(self, period=4):
        super().__init__(100.0, period, 8)
        self.layers, self.prepared = {}, 0

    def prepare(self):
        super().prepare()
        self.prepared += 1

    def recycle(self, neurons, report):
        record = super().recycle(neurons, report)
        self.layers[self.gradient_step] = set(record.neurons)
        return record


def agent(kind, **settings):
    environment = "Pendulum-v1"
    return kind("MlpPolicy", environment, policy_kwargs={"net_arch": [8, 8]}, **{**SETTINGS, **settings})


@pytest.mark.parametrize("gradient_steps", [1, 8])
def test_a_critic_that_is_switched_off_for_the_actors_loss_is_recycled(gradient_steps):
    model, callback = agent(Switching, train_freq=gradient_steps, gradient_steps=gradient_steps), Recycled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(64, callback=callback)
    assert list(callback.layers.values()) == [CRITIC | ACTOR] * 12
    assert callback.prepared == 1
    assert all(parameter.requires_grad for parameter in model.critic.parameters())
    assert hooks_of(model) == hooks_of(agent(Switching))


def test_a_critic_that_stays_switched_off_is_recycled_throughout():
    model, callback = agent(SwitchingOnLate, train_freq=4, gradient_steps=4), Recycled(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(64, callback=callback)
    assert list(callback.layers.values()) == [CRITIC | ACTOR] * 24
    assert callback.prepared == 3
    assert not any(parameter.requires_grad for parameter in model.critic.parameters())


OTHERS = {DormancyCallback: {"measuring_period": 3, "batch_size": 8}, ContinualBackpropCallback: {"maturity": 3}}


@pytest.mark.parametrize(("kind", "settings"), OTHERS.items())
def test_other_callbacks_read_it_once_too(kind, settings):
    class Counting(kind):
        prepared = 0

        def prepare(self):
            super().prepare()
            self.prepared += 1

    model, callback = agent(Switching), Counting(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(40, callback=callback)
    assert callback.prepared == 1


class FreezesLast(BaseCallback):
    """Freezes a module when a rollout has ended, after all other callbacks."""

    def __init__(self, step, module_of):
        super().__init__()
        self.step, self.module_of = step, module_of

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        if self.num_timesteps == self.step:
            self.frozen = self.module_of(self.model).requires_grad_(False)
            self.weights = copy.deepcopy(self.frozen.state_dict())


FROZEN = {
    "DQN": (dqn, lambda model: model.q_net.q_net[0], {"q_net.q_net.0"}),
    "SAC, the critic": (lambda: agent(SAC), lambda model: model.critic.qf0, {"critic.qf0.0", "critic.qf0.2"}),
    "SAC, the actor": (lambda: agent(Switching), lambda model: model.actor.latent_pi, ACTOR),
    "TD3, the actor": (lambda: agent(TD3, policy_delay=1000), lambda model: model.actor, {"actor.mu.0", "actor.mu.2"}),
}


@pytest.mark.parametrize(("make", "module_of", "layers"), FROZEN.values(), ids=FROZEN)
@pytest.mark.filterwarnings("ignore:.* is not recycled. .* was frozen since it was measured")
def test_what_is_frozen_right_before_a_train_call_is_not_recycled_in_it(make, module_of, layers):
    model, callback, freezing = make(), Recycled(1), FreezesLast(40, module_of)
    model.learn(64, callback=[callback, freezing])
    made_before = 40 - (model.num_timesteps - model._n_updates) - model.train_freq.frequency
    is_recycled = [bool(layers & names) for names in callback.layers.values()]
    assert is_recycled == [step <= made_before for step in callback.layers]
    assert callback.prepared == 2
    weights = freezing.frozen.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in freezing.weights.items())
