"""Every algorithm, saved, loaded and continued, recycles as the uninterrupted run does."""

import pytest
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from sb3_redo import ReDoCallback
from tests.helpers.algorithms import CASES, IMAGES, PERIOD, STOPS_EARLY, build, case, is_on_policy
from tests.helpers.runs import Tape, differences, fingerprint, reloaded

pytestmark = pytest.mark.usefixtures("known_wirings")

# One with each kind of clock and memory.
SOME = {"DQN", "TD3", "A2C", "RecurrentPPO"}


def recycling():
    return ReDoCallback(0.8, recycling_period=7, measuring_period=PERIOD, batch_size=8)


def learn(model, tape, steps):
    model.set_logger(Logger(None, [tape]))
    return model.learn(steps, callback=recycling(), reset_num_timesteps=False)


@pytest.mark.parametrize(("name", "kind"), [case(*each, SOME) for each in CASES])
def test_a_run_saved_and_continued_is_bit_for_bit_the_uninterrupted_run(name, kind, tmp_path):
    whole, parts = Tape(), Tape()
    half = {"A2C": 64}.get(name, 48 if is_on_policy(name) else 40)
    uninterrupted = fingerprint(learn(build(name, kind), whole, 2 * half))
    first = learn(build(name, kind), parts, half)
    so_far = parts.values("redo/recycled_total")[-1]
    continued = fingerprint(learn(reloaded(first, tmp_path), parts, half))
    assert parts.points == whole.points
    assert differences(uninterrupted, continued) == []
    assert 0 < so_far < whole.values("redo/recycled_total")[-1] == sum(whole.values("redo/recycled"))
    assert len(whole.values("dormancy/overlap")) > 1


def test_a_run_in_which_nothing_is_recycled_leaves_the_observation_space_alone():
    def left(callback=None):
        return fingerprint(build("DQN", IMAGES).learn(60, callback=callback))

    assert differences(left(), left(ReDoCallback(0.8, recycling_period=1000, batch_size=8))) == []


@pytest.mark.parametrize(
    ("name", "settings"),
    [("A2C", {"policy_kwargs": {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {}}}), ("PPO", STOPS_EARLY)],
    ids=["A2C, optimizer without steps", "PPO, stopping early"],
)
def test_gradient_steps_are_remembered_where_nobody_else_counts_them(name, settings, tmp_path):
    whole, parts = Tape(), Tape()
    uninterrupted = fingerprint(learn(build(name, **settings), whole, 128))
    first = learn(build(name, **settings), parts, 64)
    assert first.dormancy_memory["gradient_steps"] == parts_steps(name, settings)
    continued = fingerprint(learn(reloaded(first, tmp_path), parts, 64))
    assert parts.points == whole.points
    assert differences(uninterrupted, continued) == []


def parts_steps(name, settings):
    """Steps of the optimizer in 64 environment steps, counted by a hook of our own, where recycling changes none."""
    model, tape = build(name, **settings), Tape()
    tape.watch(model).learn(64, callback=recycling())
    return [event for event, _ in tape.events].count("policy.optimizer step")
