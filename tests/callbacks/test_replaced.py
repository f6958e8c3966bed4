"""Optimizers, layers and whole policies that are replaced in the middle of a training are followed from then on."""

import copy
import gc
import sys
import weakref

import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn.utils.prune import random_unstructured
from torch.optim.optimizer import _global_optimizer_pre_hooks

from sb3_redo import DormancyCallback, ReDoCallback, measure_dormancy, recycle_dormant
from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.interventions import (
    AdaptiveReplayRatioCallback,
    ContinualBackpropCallback,
    FireCallback,
    GradientReDoCallback,
    NormProjectionCallback,
    OptimizerResetCallback,
    ParsevalCallback,
    PruningCallback,
    RegenerativeCallback,
    ResetCallback,
    ShrinkAndPerturbCallback,
    WeightClippingCallback,
)
from sb3_redo.plasticity import BrownianMotionCallback, PlasticityCallback, ProbeTaskCallback
from tests.helpers.algorithms import build
from tests.helpers.marks import alternating, mostly_slow
from tests.helpers.runs import TINY, dqn, hooks_of, sac


class At(BaseCallback):
    """Does something to the model once, when a rollout is about to begin."""

    def __init__(self, step, act):
        super().__init__()
        self.step, self.act, self.done = step, act, False

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        if self.num_timesteps >= self.step and not self.done:
            self.done = True
            self.act(self.model)


class EachStep(GradientStepCallback):
    """Notes every gradient step, and how often the network had been prepared for."""

    on_policy_moment = "gradient_step"

    def __init__(self):
        super().__init__()
        self.seen, self.prepared = [], 0

    def prepare(self):
        self.prepared += 1

    def after_gradient_steps(self, before, gradient_step):
        self.seen.append(gradient_step)


def adam(parameters):
    return torch.optim.Adam(list(parameters), lr=1e-3)


def fresh_optimizers(model):
    holders = {model.policy, *(getattr(model, name) for name in ("actor", "critic") if hasattr(model, name))}
    for holder in holders:
        if isinstance(getattr(holder, "optimizer", None), torch.optim.Optimizer):
            parameters = [each for group in holder.optimizer.param_groups for each in group["params"]]
            holder.optimizer = adam(parameters)


def fresh_policy(model):
    spaces = model.observation_space, model.action_space
    model.policy = model.policy_class(*spaces, model.lr_schedule, **model.policy_kwargs)
    if hasattr(model, "_create_aliases"):
        model._create_aliases()


def loaded_parameters(model):
    model.set_parameters(model.get_parameters())


def fresh_actor_optimizer(model):
    model.actor.optimizer = adam(model.actor.parameters())


def fresh_critic_optimizer(model):
    model.critic.optimizer = adam(model.critic.parameters())


def wider(model):
    policy = model.policy
    policy.q_net.q_net[0], policy.q_net.q_net[2] = nn.Linear(4, 12), nn.Linear(12, 8)
    policy.q_net_target = copy.deepcopy(policy.q_net)
    policy.optimizer = adam(policy.q_net.parameters())
    model._create_aliases()


def remade_target(model):
    model.policy.q_net_target = copy.deepcopy(model.policy.q_net).requires_grad_(False)
    model._create_aliases()


CHANGES = {
    "DQN, fresh optimizer": (dqn, fresh_optimizers),
    "DQN, fresh policy": (dqn, fresh_policy),
    "DQN, parameters loaded": (dqn, loaded_parameters),
    "DQN, wider layer": (dqn, wider),
    "DQN, target remade": (dqn, remade_target),
    "DQN, long train() calls": (lambda: dqn(train_freq=32, gradient_steps=32), fresh_optimizers),
    "SAC, fresh optimizers": (sac, fresh_optimizers),
    "SAC, fresh optimizer of the actor": (sac, fresh_actor_optimizer),
    "SAC, fresh optimizer of the critic": (sac, fresh_critic_optimizer),
    "SAC, fresh policy": (sac, fresh_policy),
    "TD3, fresh policy": (lambda: build("TD3", batch_size=8), fresh_policy),
    "PPO, fresh optimizer": (lambda: build("PPO"), fresh_optimizers),
    "PPO, fresh policy": (lambda: build("PPO"), fresh_policy),
    "A2C, fresh optimizer": (lambda: build("A2C"), fresh_optimizers),
    "RecurrentPPO, fresh policy": (lambda: build("RecurrentPPO"), fresh_policy),
}
FAST = {"DQN, wider layer", "DQN, parameters loaded", "SAC, fresh optimizer of the actor", "PPO, fresh policy"}


@pytest.mark.parametrize("case", mostly_slow(CHANGES, FAST))
@pytest.mark.parametrize("is_told_first", [True, False])
def test_the_count_goes_on_exactly(case, is_told_first):
    make, change = case
    before = list(_global_optimizer_pre_hooks)  # a training of another test may have been left by an exception
    model, counting, at = make(), EachStep(), At(48, change)
    model.learn(96, callback=[counting, at] if is_told_first else [at, counting])
    assert at.done
    assert counting.seen == list(range(1, len(counting.seen) + 1))
    if not counting.agent.at_rollout_end:
        assert counting.seen[-1] == model._n_updates
    assert counting.prepared == (1 if change is loaded_parameters else 2)
    assert hooks_of(model) == []
    assert list(_global_optimizer_pre_hooks) == before


class StepsOld(BaseCallback):
    """Goes on stepping the first optimizer, without gradients."""

    def _on_training_start(self):
        self.old = self.model.policy.optimizer

    def _on_step(self):
        if self.old is not self.model.policy.optimizer:
            self.old.step()
        return True


def test_steps_of_the_optimizer_that_was_replaced_do_not_count():
    model, counting = dqn(), EachStep()
    model.learn(96, callback=[At(48, fresh_optimizers), counting, StepsOld()])
    assert counting.seen == list(range(1, model._n_updates + 1))


class FreshInTrain(DQN):
    """Makes a new optimizer at the start of every train() call, or of every second gradient step."""

    def train(self, gradient_steps, batch_size=100):
        for _ in range(gradient_steps // 2):
            fresh_optimizers(self)
            super().train(2, batch_size)


class FreshAtEachRollout(PPO):
    def train(self):
        self.policy.optimizer = torch.optim.SGD(self.policy.parameters(), lr=1e-3)
        super().train()


def test_an_optimizer_that_train_replaces_is_followed_at_once(tape):
    model, counting = FreshInTrain("MlpPolicy", "CartPole-v1", train_freq=8, gradient_steps=8, **TINY), EachStep()
    model.set_logger(Logger(None, [tape]))
    model.learn(64, callback=[counting, ReDoCallback(0.5, 3, 8, measuring_period=5)])
    assert counting.seen == list(range(1, model._n_updates + 1))
    assert tape.values("dormancy/gradient_step") == list(range(0, model._n_updates + 1, 5))
    assert len(tape.values("redo/recycled")) == model._n_updates // 3
    assert hooks_of(model) == []


def test_on_policy_too(tape):
    settings = {"n_steps": 16, "batch_size": 8, "n_epochs": 2, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    model = FreshAtEachRollout("MlpPolicy", "CartPole-v1", **settings)
    model.set_logger(Logger(None, [tape]))
    model.learn(64, callback=DormancyCallback(measuring_period=4, batch_size=16))
    assert tape.values("dormancy/gradient_step") == [0, 4, 8, 12]


class TrainsElsewhere(DQN):
    def train(self, gradient_steps, batch_size=100):
        real, self.policy.optimizer = self.policy.optimizer, torch.optim.SGD(self.policy.parameters(), lr=1e-3)
        self.policy.optimizer.step = lambda: None  # made by hand, unseen
        super().train(gradient_steps, batch_size)
        self.policy.optimizer = real


def test_gradient_steps_that_are_not_heard_of_are_told_once():
    model = TrainsElsewhere("MlpPolicy", "CartPole-v1", **TINY)
    with pytest.warns(RuntimeWarning, match="has seen none of 10 gradient steps") as told:
        model.learn(96, callback=DormancyCallback(batch_size=8))
    assert len(told) == 1


def test_an_optimizer_of_someone_else_is_none_of_ours():
    class Elsewhere(EachStep):
        def after_gradient_steps(self, before, gradient_step):
            super().after_gradient_steps(before, gradient_step)
            weight = nn.Parameter(torch.zeros(1))
            weight.grad = torch.ones(1)
            adam([weight]).step()

    model, callback = dqn(), Elsewhere()
    model.learn(60, callback=callback)
    assert callback.seen == list(range(1, model._n_updates + 1))
    assert callback.prepared == 1


def test_one_line_of_the_log_tells(capsys):
    model = dqn()
    model.set_logger(Logger(None, [HumanOutputFormat(sys.stdout)]))
    model.learn(96, callback=[DormancyCallback(measuring_period=20, batch_size=8), At(48, fresh_optimizers)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "DormancyCallback" in line]
    assert all(line.startswith("DormancyCallback: ") for line in (lines.pop(0), lines.pop()))
    assert lines == ["DormancyCallback reads the model anew at gradient step 28: an optimizer was replaced"]


# What is acted on


def test_recycling_reaches_the_state_of_the_optimizer_that_trains_now():
    seen = []

    def first_two(report, callback):
        seen.append(callback.model.policy.optimizer)
        return {"q_net.q_net.0": torch.tensor([0, 1])}

    model = dqn()
    callback = ReDoCallback(0.0, 8, 8, optimizer_state="clear", select=first_two)
    at_last = []

    def note(*_):
        if len(seen) > 3:
            state = model.policy.optimizer.state[model.q_net.q_net[0].weight]["exp_avg"]
            at_last.append(bool((state[:2] == 0).all()))

    original = callback.recycle
    callback.recycle = lambda neurons, report: (original(neurons, report), note())
    model.learn(120, callback=[callback, At(60, fresh_optimizers)])
    assert len(set(map(id, seen))) == 2
    assert at_last
    assert all(at_last)


def freeze(model):
    model.q_net.q_net[0].requires_grad_(False)


def thaw(model):
    model.q_net.q_net[0].requires_grad_(True)


def take_from_optimizer(model):
    group = model.policy.optimizer.param_groups[0]
    group["params"] = group["params"][2:]


def give_to_optimizer(model):
    model.policy.optimizer.add_param_group({"params": list(model.q_net.q_net[0].parameters())})


def add_to_optimizer(model):
    model.policy.extra = nn.Parameter(torch.zeros(3))
    model.policy.optimizer.add_param_group({"params": [model.policy.extra]})


def prune(model):
    random_unstructured(model.q_net.q_net[0], "weight", 0.5)


@pytest.mark.parametrize("change", [freeze, take_from_optimizer, add_to_optimizer, prune])
def test_what_decides_whose_weights_they_are_is_noticed(change):
    model, counting = dqn(), EachStep()
    model.learn(96, callback=[counting, At(48, change)])
    assert counting.prepared == 2
    assert counting.seen == list(range(1, model._n_updates + 1))


def recycled_after(*changes):
    """Recycle all that can be, and return for each time whether the first layer's weights were among it."""
    callback, changed = ReDoCallback(100.0, 10, 8), {}
    recycle = callback.recycle

    def noted(neurons, report):
        before = model.q_net.q_net[0].weight.detach().clone()
        recycle(neurons, report)
        changed[callback.gradient_step] = not torch.equal(before, model.q_net.q_net[0].weight)

    callback.recycle = noted
    model = dqn()
    model.learn(140, callback=[callback, *(At(60 + 40 * number, change) for number, change in enumerate(changes))])
    return changed


def test_weights_that_are_frozen_in_the_middle_are_recycled_no_more_and_those_thawed_again():
    changed = recycled_after(freeze, thaw)
    assert list(changed.values()) == [True] * 4 + [False] * 4 + [True] * 4
    assert list(changed) == list(range(10, 121, 10))


def test_weights_taken_from_the_optimizer_in_the_middle_are_recycled_no_more_and_those_given_back_again():
    changed = recycled_after(take_from_optimizer, give_to_optimizer)
    assert list(changed.values()) == [True] * 4 + [False] * 4 + [True] * 4


def test_a_phase_in_which_all_is_frozen_is_no_error():
    model, callback = dqn(), ReDoCallback(100.0, 10, 8, measuring_period=10)
    freeze_all = At(60, lambda model: model.q_net.q_net[:4].requires_grad_(False))
    model.learn(100, callback=[callback, freeze_all])
    assert not any(layer.recyclable for layer in callback.report.layers)


class Freezing(BaseCallback):
    """Freezes a layer at the start and thaws it later: staged fine-tuning."""

    def _on_training_start(self):
        freeze(self.model)

    def _on_rollout_start(self):
        if self.num_timesteps >= 60:
            thaw(self.model)

    def _on_step(self):
        return True


def test_a_layer_thawed_later_is_regularised_from_then_on():
    model, callback = dqn(), WeightClippingCallback(bound=0.01, logging_period=10)
    model.learn(100, callback=[Freezing(), callback])
    assert float(model.q_net.q_net[0].weight.detach().abs().max()) <= 0.01
    assert hooks_of(model) == []


@pytest.mark.parametrize("change", [freeze, fresh_optimizers])
def test_hooks_act_once_in_each_step_afterwards(change):
    class Noting(RegenerativeCallback):
        acted = 0

        def before_step(self, names):
            self.acted += 1
            super().before_step(names)

    model, callback = dqn(), Noting()
    model.learn(96, callback=[callback, At(48, change)])
    assert callback.acted == model._n_updates


# Every callback

EVERY = {
    "dormancy": lambda: DormancyCallback(measuring_period=7, batch_size=8),
    "redo": lambda: ReDoCallback(0.5, 7, 8),
    "gradients": lambda: GradientReDoCallback(0.5, recycling_period=7, batch_size=8),
    "cbp": lambda: ContinualBackpropCallback(0.2, maturity=3, logging_period=7),
    "reset": lambda: ResetCallback(period=20),
    "optimizer reset": lambda: OptimizerResetCallback(20),
    "perturb": lambda: ShrinkAndPerturbCallback(period=20, reset_optimizer=True),
    "fire": lambda: FireCallback(period=20),
    "regenerative": lambda: RegenerativeCallback(0.1, logging_period=7),
    "parseval": lambda: ParsevalCallback(logging_period=7),
    "clipping": lambda: WeightClippingCallback(0.5, logging_period=7),
    "projection": lambda: NormProjectionCallback(logging_period=7),
    "pruning": lambda: PruningCallback(0.5, pruning_period=7, batch_size=8),
    "plasticity": lambda: PlasticityCallback(7, 8),
    "probe": lambda: ProbeTaskCallback(20, steps=2, targets=1, batch_size=8),
    "twin": lambda: BrownianMotionCallback(20, 8, steps=2, vectors=1),
}
REPLACED = {"optimizer": fresh_optimizers, "policy": fresh_policy, "frozen": freeze}


@pytest.mark.parametrize(("change", "make"), alternating(REPLACED, EVERY))
def test_every_callback_follows(change, make, tape):
    model, callback = dqn(), make()
    model.set_logger(Logger(None, [tape]))
    model.learn(120, callback=[callback, At(60, change)])
    assert callback.gradient_step == model._n_updates == 100
    assert tape.points[-1][0] > 90
    assert hooks_of(model) == []
    assert not model.policy.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("change", mostly_slow(REPLACED, ["policy"]))
def test_a_replay_ratio_that_has_risen_stays(change, tape):
    model, callback = dqn(), AdaptiveReplayRatioCallback(1, 2, 1.0, 7, 8)
    model.set_logger(Logger(None, [tape]))
    model.learn(120, callback=[callback, At(60, change)])
    assert callback.gradient_step == model._n_updates
    ratios = tape.values("replay_ratio/ratio")
    assert ratios == [1, *[2] * (len(ratios) - 1)]
    assert tape.values("replay_ratio/gradient_step")[-1] == model._n_updates // 7 * 7


def test_a_layer_of_another_width_is_told_of_by_what_must_know_where_it_began():
    with pytest.raises(RuntimeError, match=r"q_net\.q_net\.0\.weight is \(12, 4\), but \(8, 4\) when training began"):
        dqn().learn(80, callback=[RegenerativeCallback(), At(48, wider)])


def test_after_an_exception_nothing_keeps_the_model_alive():
    model, callback = dqn(), DormancyCallback(batch_size=8)
    with pytest.raises(KeyError):
        model.learn(60, callback=[callback, At(40, lambda model: {}["elsewhere"])])
    references = weakref.ref(model), weakref.ref(callback)
    del model, callback
    gc.collect()
    assert [reference() for reference in references] == [None, None]


class Scheduled(BaseFeaturesExtractor):
    """Two layers in a row. After many passes, or when its share is raised, the first feeds past the second."""

    def __init__(self, observation_space, passes):
        super().__init__(observation_space, features_dim=6)
        self.first, self.second = nn.Linear(observation_space.shape[0], 6), nn.Linear(6, 6)
        self.passes, self.seen, self.share = passes, 0, 0.0

    def forward(self, x):
        self.seen += 1
        first = torch.relu(self.first(x))
        second = torch.relu(self.second(first))
        if self.seen > self.passes or self.share:
            return second + first
        return second


@pytest.mark.parametrize("callback", [DormancyCallback, ReDoCallback])
@pytest.mark.parametrize(("passes", "share"), [(90, 0.0), (10**6, 0.5)], ids=["a counter", "a schedule"])
def test_another_way_that_the_network_takes_later_is_followed(callback, passes, share):
    kwargs = {"features_extractor_class": Scheduled, "features_extractor_kwargs": {"passes": passes}}
    model, period = dqn(policy_kwargs=kwargs), {"measuring_period": 4, "batch_size": 16}
    if callback is ReDoCallback:
        period["recycling_period"] = 4
    following, reasons = callback(**period), []

    def note(model):
        reasons.append(following.report.wiring["q_net.features_extractor.first"].reason)

    def change(model):
        note(model)
        model.q_net.features_extractor.share = share

    model.learn(96, callback=[following, At(32, change), At(92, note)])
    assert reasons[0] is None
    assert "what it feeds into q_net.q_net.0 is also fed by q_net.features_extractor.second" in reasons[1]


class WithTask(DQN):
    """A second task trains the extractor, by an optimizer of its own that a list holds."""

    def _setup_model(self):
        super()._setup_model()
        self.tasks = [torch.optim.Adam(self.q_net.features_extractor.parameters(), lr=1e-2)]

    def train(self, gradient_steps, batch_size=100):
        super().train(gradient_steps, batch_size)
        features = self.q_net.features_extractor(self.replay_buffer.sample(8).observations)
        self.tasks[0].zero_grad()
        (features - 1).square().sum().backward()
        self.tasks[0].step()


class TrainedByTask(WithTask):
    def _setup_model(self):
        super()._setup_model()
        self.policy.optimizer = torch.optim.Adam(self.q_net.q_net.parameters())


class Extractor(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, 8)
        self.layer = nn.Linear(4, 8)

    def forward(self, observations):
        return torch.relu(self.layer(observations))


@pytest.mark.parametrize("algorithm", [WithTask, TrainedByTask])
@pytest.mark.parametrize("by_hand", [True, False])
def test_an_optimizer_of_the_users_own_forgets_recycled_neurons_too(algorithm, by_hand):
    model = algorithm("MlpPolicy", "CartPole-v1", **TINY | {"policy_kwargs": {"features_extractor_class": Extractor}})
    seen = []

    class Recycling(ReDoCallback):
        def recycle(self, neurons, report):
            record = super().recycle(neurons, report)
            state = model.tasks[0].state[model.q_net.features_extractor.layer.weight]
            seen.append(state["exp_avg"][record.neurons["q_net.features_extractor.layer"]].clone())
            return record

    if by_hand:
        model.learn(64)
        record = recycle_dormant(model, measure_dormancy(model, 0.9, batch_size=16))
        state = model.tasks[0].state[model.q_net.features_extractor.layer.weight]
        seen = [state["exp_avg"][record.neurons["q_net.features_extractor.layer"]]]
    else:
        model.learn(64, callback=Recycling(0.9, recycling_period=10, batch_size=8))
    assert seen
    assert all(len(moments) and not moments.any() for moments in seen)
