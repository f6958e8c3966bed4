"""The classifier of the recycling study, and the games that it is shown beside."""

import sys
from functools import cache
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env

import studies.minatar as minatar
import studies.shuffled_labels as labels
from sb3_redo import ReDoCallback
from tests.helpers.marks import mostly_slow


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    images = torch.rand(300, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(labels, "digits", lambda: images)


def test_a_task_can_be_learned():
    accuracies = labels.train_mode("none", "1e-8", 0, tasks=1, steps=300)["accuracy"]
    assert accuracies.iloc[0] > 0.5  # 0.1 is chance


@cache
def dormant_without_recycling():
    return labels.train_mode("none", "1e-8", 1, tasks=1, steps=150)["dormant"].iloc[0]


@pytest.mark.parametrize("mode", mostly_slow([*labels.SURGERIES], ["clear", "match_active", "gradient", "counted"]))
def test_a_training_is_the_same_again_and_recycles(mode):
    first, again = (labels.train_mode(mode, "1e-8", 1, tasks=1, steps=150) for _ in range(2))
    assert first.equals(again)
    assert first["dormant"].iloc[0] < dormant_without_recycling()


def test_labels_are_those_of_the_seed_whatever_is_recycled(monkeypatch):
    seen = {}
    step = labels.Renewing.step

    def watched(self, rows, targets):
        seen.setdefault(self.mode, []).append((torch.from_numpy(rows), targets))
        step(self, rows, targets)

    monkeypatch.setattr(labels.Renewing, "step", watched)
    for mode in ("none", "clear_active"):
        labels.train_mode(mode, "1e-8", 0, tasks=2, steps=110)
    for (rows, targets), (same_rows, same_targets) in zip(seen["none"], seen["clear_active"], strict=True):
        assert rows.equal(same_rows)
        assert targets.equal(same_targets)


def test_a_second_start_makes_what_is_missing(tmp_path):
    out = tmp_path / "labels.csv"
    every = labels.missing(out, range(2), labels.MODES)
    assert len(every) == 2 * len(labels.EPSILONS) * len(labels.MODES)
    labels.train_mode(*every[0], tasks=1, steps=1).to_csv(out, index=False)
    assert labels.missing(out, range(2), labels.MODES) == every[1:]
    labels.follow(*every[1], ages=(0,), tasks=1, steps=1).to_csv(tmp_path / "followed.csv", index=False)
    assert labels.missing(tmp_path / "followed.csv", range(2), labels.MODES) == [every[0], *every[2:]]


@pytest.mark.parametrize("mode", mostly_slow(["clear", "match_active", "gradient"], ["match_active"]))
def test_neurons_of_one_recycling_are_followed(mode):
    table = labels.follow(mode, "1e-8", 1, ages=(0, 1, 30), tasks=1, steps=300)
    assert table["age"].tolist() == [0, 1, 30]
    norms = table["survival/norm"]
    assert norms[0] == table["survival/contribution"][0] == 0.0
    assert 0 < norms[1] < norms[2]
    assert (table["survival/neurons"] > 0).all()
    assert labels.follow(mode, "1e-8", 1, ages=(0, 1, 30), tasks=1, steps=300).equals(table)


def test_they_are_recycled_once_while_labels_go_on_changing(monkeypatch):
    recycled, tasks = [], []
    monkeypatch.setattr(
        labels.Renewing, "recycle", noting(labels.Renewing.recycle, lambda _, step: recycled.append(step))
    )
    monkeypatch.setattr(labels.Renewing, "step", noting(labels.Renewing.step, lambda _, rows, to: tasks.append(to)))
    labels.follow("clear", "1e-8", 1, ages=(0, 45), tasks=2, steps=20)
    assert recycled == [40]
    changes = [step for step in range(1, len(tasks)) if not tasks[step].equal(tasks[step - 1])]
    assert changes == [20, 40, 60, 80]


def noting(method, note):
    def instead(*arguments):
        note(*arguments)
        return method(*arguments)

    return instead


class Game:
    """MinAtar's interface: a cell that moves to the right by the action, and is done at the edge."""

    def __init__(self, name):
        self.name, self.last_action, self.place = name, 5, 0

    def seed(self, seed):
        self.random = np.random.RandomState(seed)

    def minimal_action_set(self):
        return [0, 3]

    def state_shape(self):
        return [10, 10, 4]

    def reset(self):
        assert hasattr(self, "random")
        self.place = 0

    def act(self, action):
        self.place = min(self.place + action, 9)
        return self.place == 9, np.bool_(self.place == 9)

    def state(self):
        state = np.zeros((10, 10, 4), bool)
        state[2, self.place, 1] = True
        return state


@pytest.fixture
def game(monkeypatch):
    module = ModuleType("minatar")
    module.Environment = Game
    monkeypatch.setitem(sys.modules, "minatar", module)


def test_a_game_is_an_environment(game):
    environment = gym.make("MinAtarSpaceInvaders-v1")
    assert environment.unwrapped.game.name == "space_invaders"
    check_env(environment, warn=False)
    observation, _ = environment.reset(seed=0)
    assert environment.unwrapped.game.last_action == 0
    assert observation.shape == (4, 10, 10)
    assert observation[1, 2, 0] == 1
    observation, reward, *_ = environment.step(1)
    assert observation[1, 2, 3] == observation.sum() == 1
    assert reward == 0
    environment.step(1)
    assert environment.step(1)[1:3] == (1.0, True)


def test_all_its_layers_are_recycled(game):
    callback = ReDoCallback(dormancy_threshold=0.9, recycling_period=5, batch_size=8)
    kwargs = {"channels": 4, "features_dim": 8}
    environment = gym.make("MinAtarBreakout-v1")
    model = DQN(minatar.SmallPolicy, environment, policy_kwargs=kwargs, learning_starts=8, train_freq=1, seed=0)
    model.learn(20, callback=callback)
    assert [(layer.neurons, layer.recyclable) for layer in callback.report.layers] == [(4, True), (8, True)]
    assert model.__dict__["dormancy_memory"]["recycled_total"] > 0
