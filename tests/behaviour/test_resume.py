"""A run that is saved, loaded and continued recycles as the uninterrupted one does."""

from functools import cache

import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from torch import nn

from sb3_redo import DormancyCallback, ReDoCallback
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import Tape, differences, dqn, fingerprint, reloaded, sac

pytestmark = pytest.mark.usefixtures("known_wirings")

# Exploration that does not depend on how long learn() is asked to train.
STEADY = {"exploration_initial_eps": 0.1, "exploration_final_eps": 0.1}


def initialised_by_hand():
    model = dqn(**STEADY, policy_kwargs={"net_arch": [16, 16]})
    for layer in (model.q_net.q_net[0], model.q_net.q_net[2]):
        nn.init.normal_(layer.weight, std=20.0)
    return model


RUNS = {
    "DQN": lambda: dqn(**STEADY),
    "DQN, two environments": lambda: dqn(make_vec_env("CartPole-v1", 2, seed=0), **STEADY),
    "DQN, initialised by hand": initialised_by_hand,
    "SAC": lambda: sac(train_freq=4, gradient_steps=4),
}
each_run = pytest.mark.parametrize("build", mostly_slow(RUNS, RUNS.keys() - {"SAC"}))


def recycling():
    return ReDoCallback(0.7, recycling_period=15, measuring_period=10, batch_size=16)


def learn(model, tape, steps, callback=None):
    model.set_logger(Logger(None, [tape]))
    return model.learn(steps, callback=callback or recycling(), reset_num_timesteps=False)


@cache
def uninterrupted_run(build):
    """What a whole run leaves behind, and its tape: made once for all tests that look at it."""
    tape = Tape()
    return fingerprint(learn(build(), tape, 128)), tape


@each_run
def test_a_run_saved_and_continued_is_bit_for_bit_the_uninterrupted_run(build, tmp_path):
    (uninterrupted, whole), parts = uninterrupted_run(build), Tape()
    first = learn(build(), parts, 64)
    assert first.dormancy_memory
    continued = fingerprint(learn(reloaded(first, tmp_path), parts, 64))
    assert parts.points == whole.points
    assert differences(uninterrupted, continued) == []
    _recycled_in_both_halves(whole)


def _recycled_in_both_halves(tape):
    totals = tape.values("redo/recycled_total")
    assert 0 < totals[0] < totals[-1] == sum(tape.values("redo/recycled"))
    assert tape.values("dormancy/overlap")
    assert tape.values("dormancy/overlap_first")


@each_run
def test_continuing_in_the_same_process_with_a_new_callback_is_the_uninterrupted_run(build):
    (_, whole), parts = uninterrupted_run(build), Tape()
    learn(learn(build(), parts, 64), parts, 64)
    assert parts.points == whole.points


def test_gradient_steps_and_totals_go_on_where_environment_steps_start_anew(tmp_path):
    before, after = Tape(), Tape()
    first = learn(dqn(), before, 80)
    loaded = after.watch(reloaded(first, tmp_path))
    loaded.learn(80, callback=recycling())
    assert first._n_updates == 60
    assert loaded.num_timesteps == 80
    assert [60 + step for step in after.at_gradient_steps("recycled")] == [75, 90, 105, 120]
    assert after.values("dormancy/gradient_step") == [70, 80, 90, 100, 110, 120]
    recycled = before.values("redo/recycled") + after.values("redo/recycled")
    assert after.values("redo/recycled_total")[-1] == sum(recycled) > before.values("redo/recycled_total")[-1]


def test_callbacks_with_different_settings_keep_their_memories_apart(tmp_path):
    model, tape = dqn(), Tape()
    learn(model, tape, 60, [recycling(), DormancyCallback(0.3, batch_size=16, measuring_period=10)])
    loaded = reloaded(model, tmp_path)
    # Two sets of dormant neurons, how many were recycled in all, and the gradient steps.
    assert len(loaded.dormancy_memory) == 4
    assert loaded.dormancy_memory == model.dormancy_memory
