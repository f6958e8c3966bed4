"""The callbacks get along with others, with Ctrl-C and with a process that is killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_redo import DormancyCallback, ReDoCallback
from tests.helpers.algorithms import ALGORITHMS, PERIOD, NotesRolloutEnds, build, due, steps_of
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import Corridor, Tape, differences, fingerprint, hooks_of

ALWAYS = ["TD3", "PPO"]
FAMILIES = [*ALWAYS, "QR-DQN", "SAC", "TRPO", "RecurrentPPO"]
each_family = pytest.mark.parametrize("name", mostly_slow(FAMILIES, ALWAYS))
td3_at_least = pytest.mark.parametrize("name", mostly_slow(FAMILIES, ["TD3"]))
ppo_at_least = pytest.mark.parametrize("name", mostly_slow(FAMILIES, ["PPO"]))


def measuring(dormancy_threshold=0.1, period=PERIOD):
    return DormancyCallback(dormancy_threshold, measuring_period=period, batch_size=8)


def recycling():
    return ReDoCallback(0.8, recycling_period=7, measuring_period=PERIOD, batch_size=8)


# Other callbacks


@td3_at_least
def test_checkpoints_and_evaluations_change_nothing_and_are_all_made(name, tmp_path):
    alone = fingerprint(build(name).learn(steps_of(name), callback=recycling()))
    model = build(name)
    before = hooks_of(model)
    env = make_vec_env(lambda: Corridor(7, model.observation_space, model.action_space), 1, seed=1)
    evaluation = EvalCallback(env, eval_freq=8, n_eval_episodes=1, verbose=0)
    others = CallbackList([CheckpointCallback(8, tmp_path), recycling(), evaluation])
    model.learn(steps_of(name), callback=[others, StopTrainingOnMaxEpisodes(1000)])
    assert differences(alone, fingerprint(model)) == []
    assert len(list(tmp_path.glob("*.zip"))) == steps_of(name) // model.n_envs // 8
    assert hooks_of(model) == before


@each_family
def test_inside_every_n_timesteps_measurements_are_made_all_the_same(name):
    tape, callback = Tape(), measuring()
    model = tape.watch(build(name))
    model.learn(steps_of(name), callback=EveryNTimesteps(16, callback))
    assert len(tape.values("dormancy/fraction")) > 1
    assert tape.values("dormancy/gradient_step") == tape.at_gradient_steps("measured", ALGORITHMS[name].clock)


@pytest.mark.filterwarnings("ignore:rich is experimental")
@pytest.mark.parametrize("name", ["DQN", "PPO"])
def test_with_a_progress_bar(name):
    pytest.importorskip("rich")
    pytest.importorskip("tqdm")
    tape = Tape()
    model = tape.watch(build(name))
    model.learn(steps_of(name), callback=[NotesRolloutEnds(tape), recycling()], progress_bar=True)
    assert tape.values("dormancy/gradient_step") == due(name, tape.events, "policy.optimizer")
    assert sum(tape.values("redo/recycled")) > 0


@ppo_at_least
def test_two_measurements_with_different_settings_do_not_disturb_each_other(name):
    def points(*callbacks):
        tape = Tape()
        tape.watch(build(name)).learn(steps_of(name), callback=list(callbacks))
        return tape.points

    often, seldom = points(measuring(0.1, 4)), points(measuring(0.8, 8))
    both = points(measuring(0.1, 4), measuring(0.8, 8))
    assert [point for point in both if point in often] == often
    theirs = [(step, values) for step, values in both if "dormancy_2/gradient_step" in values]
    assert [(step, {key.replace("_2/", "/"): x for key, x in values.items()}) for step, values in theirs] == seldom
    assert len(both) == len(often) + len(seldom)
    assert len(often) > len(seldom) > 1


# Ctrl-C


class Interrupted(Corridor):
    """Raises what Ctrl-C raises in one of its steps."""

    def __init__(self, at, *arguments):
        super().__init__(*arguments)
        self.left = at

    def step(self, action):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().step(action)


def interrupt_before_step(optimizer, number):
    """Raise what Ctrl-C raises right before one of the optimizer's steps, once."""
    made = 0

    def tick(*_):
        nonlocal made
        made += 1
        if made == number:
            raise KeyboardInterrupt

    optimizer.register_step_pre_hook(tick)


def continued(name, model, tape):
    """The rest of a training that Ctrl-C ended, and what must be true of all of it."""
    steps = steps_of(name)
    clock = ALGORITHMS[name].clock
    before = hooks_of(tape.watch(model))
    with pytest.raises(KeyboardInterrupt):
        model.learn(2 * steps, callback=[NotesRolloutEnds(tape), measuring()])
    assert [event for event, _ in tape.events].count(f"{clock} step") > 0
    model.learn(2 * steps, callback=[NotesRolloutEnds(tape), measuring()], reset_num_timesteps=False)
    assert hooks_of(model) == before
    expected = due(name, tape.events, clock)
    assert len(expected) > 2
    assert tape.values("dormancy/gradient_step") == tape.at_gradient_steps("measured", clock) == expected


@ppo_at_least
def test_after_ctrl_c_in_the_environment_the_model_is_measured_at_the_right_gradient_steps(name, tape):
    plain = build(name)
    env = Interrupted(40, 7, plain.observation_space, plain.action_space)
    continued(name, build(name, env=env), tape)


@td3_at_least
def test_after_ctrl_c_in_train_the_model_is_measured_at_the_right_gradient_steps(name, tape):
    model = build(name)
    clock = ALGORITHMS[name].clock.split(".")[0]
    interrupt_before_step(getattr(model, clock).optimizer, 11)
    continued(name, model, tape)


# A killed process

CHILD = """
import json, sys
from stable_baselines3.common.logger import KVWriter, configure
from tests.helpers.algorithms import build
from sb3_redo import DormancyCallback

class Prints(KVWriter):
    def write(self, key_values, key_excluded, step=0):
        if "dormancy/fraction" in key_values:
            names = ("dormancy/fraction", "dormancy/gradient_step")
            print(json.dumps([step, *(key_values[name] for name in names)]), flush=True)

    def close(self):
        pass

model = build(sys.argv[1], env="CartPole-v1")
logger = configure(sys.argv[2], ["tensorboard"])
logger.output_formats.append(Prints())
model.set_logger(logger)
model.learn(10**9, callback=DormancyCallback(measuring_period=10, batch_size=8), log_interval=None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DQN", "PPO"])
def test_a_killed_run_leaves_every_measurement_it_made(name, tmp_path):
    command = [sys.executable, "-c", CHILD, name, str(tmp_path)]
    printed = []
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as child:
        try:
            printed += [child.stdout.readline() for _ in range(30)]
        finally:
            child.send_signal(signal.SIGKILL)
        printed += child.stdout.readlines()  # what it printed until the signal came
    assert child.returncode == -signal.SIGKILL
    points = [json.loads(line) for line in printed if line.endswith("\n")]
    assert len(points) >= 30
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    fractions, gradient_steps = events.Scalars("dormancy/fraction"), events.Scalars("dormancy/gradient_step")
    for (step, fraction, gradient_step), seen, count in zip(points, fractions, gradient_steps, strict=False):
        assert (seen.step, seen.value, count.value) == (step, pytest.approx(fraction), gradient_step)
    # One more may have been written and not printed.
    assert 0 <= len(fractions) - len(points) <= 1
    assert 0 <= len(gradient_steps) - len(points) <= 1
