"""A replay ratio becomes SB3's settings exactly."""

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_redo.sb3.replay_ratio import target_update_interval, training_schedule


@settings(max_examples=200, deadline=None)
@given(st.fractions(min_value=Fraction(1, 100), max_value=100, max_denominator=100), st.integers(1, 10))
def test_a_schedule_gives_its_replay_ratio(ratio, n_envs):
    schedule = training_schedule(str(ratio), n_envs)
    assert Fraction(schedule.gradient_steps, schedule.train_freq * n_envs) == ratio


@pytest.mark.parametrize(
    ("ratio", "n_envs", "expected"), [(0.25, 1, (4, 1)), (0.1, 3, (10, 3)), (4, 1, (1, 4)), (0.5, 8, (1, 4))]
)
def test_worked_schedules(ratio, n_envs, expected):
    assert training_schedule(ratio, n_envs) == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.sampled_from([0.25, 0.5, 1, 2, 4, "1/3", "3/4"]), st.integers(1, 8))
def test_a_target_network_is_copied_after_the_same_gradient_steps_at_every_replay_ratio(period, ratio, n_envs):
    schedule = training_schedule(ratio, n_envs)
    try:
        interval = target_update_interval(period, *schedule, n_envs)
    except ValueError as refusal:
        assert period % schedule.gradient_steps
        near = int(re.search(r"; (\d+) can be had", str(refusal))[1])
        interval, period = target_update_interval(near, *schedule, n_envs), near
    # As SB3 counts: calls of all environments, of which every train_freq-th is followed by training.
    calls = interval // n_envs
    assert calls * n_envs == interval
    assert calls % schedule.train_freq == 0
    assert calls // schedule.train_freq * schedule.gradient_steps == period
