"""Trains a DQN's Q-network on stored transitions only, with bootstrapped, fixed or a teacher's targets.

See Sokar et al. 2023, figures 4 and 8.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import polyak_update
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.experiments.offline_settings import BOOTSTRAPPED, FIXED, PRETRAINED, TEACHER, OfflineSettings
from sb3_redo.experiments.program import DormancyLog, Point
from sb3_redo.experiments.stored import load_dqn, load_transitions
from sb3_redo.forward.contexts import evaluating, everything_seeded
from sb3_redo.reports.curves import LOSS
from sb3_redo.sb3.agents import agent_of
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.model import meter_of
from sb3_redo.validation import UsageError

# Added to the seed, so that its draws differ from the student's.
_OF_TARGETS = 1_000_003
_OF_MEASUREMENTS = 2_000_003


class Regression(NamedTuple):
    """Predicted values and their targets, [transitions, actions], or [..., 1] for the taken action."""

    predicted: Tensor
    wanted: Tensor


class Student:
    """Trains a DQN with SB3's gradient steps on other targets.

    :param model: has a replay buffer; trained in place
    :param settings: its paths are not read
    :param teacher: for a teacher's targets; not changed
    """

    def __init__(self, model: DQN, settings: OfflineSettings, teacher: DQN | None = None):
        self.model, self.settings = model, settings
        self._regression: Callable[[Any], Regression] = self._bellman
        if settings.targets == TEACHER:
            assert teacher is not None
            self._teacher = teacher.q_net
            self._teacher.set_training_mode(False)
            self._regression = self._taught
        model.set_logger(Logger(None, []))  # SB3 logs the learning rate to it

    def step(self, gradient_step: int) -> None:
        """Make one gradient step as ``DQN.train(1)`` does, in place.

        :param gradient_step: its number, from 1 on
        """
        model, settings = self.model, self.settings
        made = gradient_step - 1
        # Updated here, not after the previous step: the loss must be measured on the targets that were learned.
        if settings.targets == BOOTSTRAPPED and made and made % settings.target_update_interval == 0:
            polyak_update(model.q_net.parameters(), model.q_net_target.parameters(), model.tau)
            polyak_update(model.batch_norm_stats, model.batch_norm_stats_target, 1.0)
        model.policy.set_training_mode(True)
        model._current_progress_remaining = 1 - made / settings.gradient_steps
        model._update_learning_rate(model.policy.optimizer)
        assert model.replay_buffer is not None
        transitions = model.replay_buffer.sample(settings.batch_size or model.batch_size)
        loss = smooth_l1_loss(*self._regression(transitions))
        model.policy.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
        model.policy.optimizer.step()

    def loss(self, transitions: Any) -> float:
        """Return the loss on transitions of a replay buffer's sample. Changes nothing."""
        with torch.no_grad(), evaluating(self.model.policy.modules()):
            return float(smooth_l1_loss(*self._regression(transitions)))

    def _bellman(self, transitions: Any) -> Regression:
        """Compare the actions' values with ``r + gamma * max_a Q_target(s', a)``, as ``DQN.train`` does."""
        # For n-step returns, the buffer has gamma**n.
        discounts = self.model.gamma if transitions.discounts is None else transitions.discounts
        with torch.no_grad():
            ahead = self.model.q_net_target(transitions.next_observations).max(dim=1).values.reshape(-1, 1)
            wanted = transitions.rewards + (1 - transitions.dones) * discounts * ahead
        values = self.model.q_net(transitions.observations)
        return Regression(torch.gather(values, 1, transitions.actions.long()), wanted)

    def _taught(self, transitions: Any) -> Regression:
        """Compare the values of all actions with the teacher's."""
        with torch.no_grad():
            wanted = self._teacher(transitions.observations)
        return Regression(self.model.q_net(transitions.observations), wanted)


def make_student(settings: OfflineSettings, seed: int, root: Path = Path()) -> Student:
    """Make the untrained student with its transitions.

    Seeds the random streams of the process, as SB3 does for each new model. Batches are drawn from NumPy's.

    :param root: root of the settings' paths
    :raises UsageError: when a stored file is missing or does not fit
    """
    teacher = None if settings.teacher is None else load_dqn(root / settings.teacher)
    model = load_dqn(root / settings.agent)
    saved = copy.deepcopy(model.policy.state_dict())
    model = _anew(model, settings, seed)
    if settings.student == PRETRAINED:
        model.policy.load_state_dict(saved)
    if settings.targets == FIXED:
        stranger = _anew(load_dqn(root / settings.agent), settings, seed + _OF_TARGETS)
        model.q_net_target.load_state_dict(stranger.q_net.state_dict())
    model.replay_buffer = load_transitions(root / settings.replay_buffer, model)
    if teacher is not None:
        _see_that_it_fits(teacher, model, str(settings.teacher))
    # Seeded again, so that batches do not depend on draws made while models were built.
    model.set_random_seed(seed)
    return Student(model, settings, teacher)


def _anew(model: DQN, settings: OfflineSettings, seed: int) -> DQN:
    """Reset weights, target and optimizer to an untrained model's of another seed, in place."""
    model.seed = seed
    if settings.learning_rate is not None:
        model.learning_rate = settings.learning_rate
    model._setup_model()
    return model


def _see_that_it_fits(teacher: DQN, student: DQN, name: str) -> None:
    if (teacher.observation_space, teacher.action_space) != (student.observation_space, student.action_space):
        raise UsageError(
            f"teacher {name} is of another environment than the student: {teacher.observation_space} and "
            f"{teacher.action_space}, not {student.observation_space} and {student.action_space}"
        )


class _Watch:
    """Measures a student, always on the same transitions."""

    def __init__(self, student: Student, seed: int):
        self.student = student
        buffer = student.model.replay_buffer
        assert buffer is not None
        with everything_seeded(seed + _OF_MEASUREMENTS):
            self.transitions: Any = buffer.sample(student.settings.score_batch_size)
        self._batch = Batch(self.transitions.observations)
        self._agent = agent_of(student.model)
        self._meter = meter_of(student.model, self._batch)
        self._log = DormancyLog()

    def report(self) -> DormancyReport:
        policy = self.student.model.policy
        threshold = self.student.settings.dormancy_threshold
        return self._meter.measure(lambda part: self._agent.forward(policy, part), self._batch, threshold)

    def point(self, step: int) -> Point:
        values = self._log.values(self.report(), step)
        return Point(step, values | {LOSS: self.student.loss(self.transitions)})


def train_offline(settings: OfflineSettings, seed: int, root: Path = Path()) -> Iterator[Point]:
    """Train, and yield the values to log, before the first gradient step and after each period.

    A fresh student's initial weights, the batches, and the measured transitions depend only on the seed, so conditions
    differ in nothing else. Seeds the random streams of the process and draws from them.

    :param root: root of the settings' paths
    :raises UsageError: when a stored file is missing or does not fit
    """
    student = make_student(settings, seed, root)
    watch = _Watch(student, seed)
    yield watch.point(0)
    for step in range(1, settings.gradient_steps + 1):
        student.step(step)
        if step % settings.measuring_period == 0:
            yield watch.point(step)
