"""Intervals and differences are those of worked numbers and of other packages."""

import importlib.util
import sys
import types
import warnings

import numpy as np
import pytest

from sb3_redo.reports.statistics import interquartile_mean, stratified_intervals


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end():
    assert interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -100])) == np.mean([2, 3, 4, 5])
    assert interquartile_mean(np.array([[1.0, 2.0], [3.0, np.nan]])) == 2.0
    assert np.isnan(interquartile_mean(np.array([np.nan])))


def test_the_interval_of_two_runs_is_known():
    # Of two runs a resample is (a, a), (a, b) or (b, b): more than 2.5 % each, so the interval is from a to b.
    estimate = stratified_intervals(np.array([1.0, 3.0]).reshape(2, 1, 1))
    assert (estimate.value[0], estimate.low[0], estimate.high[0]) == (2.0, 1.0, 3.0)


def test_runs_are_drawn_within_their_environment():
    # The runs of each environment agree, so that nothing is left to chance; drawn across, it would be.
    estimate = stratified_intervals(np.tile([0.0, 10.0], (5, 1))[:, :, None])
    assert (estimate.value[0], estimate.low[0], estimate.high[0]) == (5.0, 5.0, 5.0)


def test_one_run_gives_no_interval_and_missing_runs_are_left_out():
    one = stratified_intervals(np.array([[[4.0]]]))
    assert one.value[0] == 4.0
    assert np.isnan([one.low[0], one.high[0]]).all()
    scores = np.random.default_rng(0).normal(size=(4, 3, 2))
    padded = np.concatenate([np.full((1, 3, 2), np.nan), scores])
    whole, with_gaps = stratified_intervals(scores), stratified_intervals(padded)
    assert np.array_equal(whole.low, with_gaps.low)
    ragged = scores.copy()
    ragged[2:, 0] = np.nan
    estimate = stratified_intervals(ragged)
    assert np.allclose(estimate.value, [interquartile_mean(ragged[..., i]) for i in range(2)])
    assert (estimate.low < estimate.value).all()
    assert (estimate.value < estimate.high).all()


def test_the_same_seed_gives_the_same_interval_and_numpys_generator_stays():
    scores = np.random.default_rng(0).normal(size=(5, 4, 3))
    np.random.seed(7)
    before = np.random.get_state()[1].tolist()
    one, same, other = (stratified_intervals(scores, seed) for seed in (1, 1, 2))
    assert np.random.get_state()[1].tolist() == before
    assert np.array_equal(one.low, same.low)
    assert np.array_equal(one.high, same.high)
    assert not np.array_equal(one.low, other.low)


def test_intervals_are_those_of_rliable():
    pytest.importorskip("rliable")
    if "arch" not in sys.modules:
        # Of arch, rliable needs the bootstrap alone; its other models do not import beside every pandas.
        stand_in = types.ModuleType("arch")
        stand_in.__path__ = list(importlib.util.find_spec("arch").submodule_search_locations)
        sys.modules["arch"] = stand_in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rliable import library, metrics
    scores = np.random.default_rng(0).normal(size=(5, 7))
    state = np.random.get_state()
    np.random.seed(3)
    value, interval = library.get_interval_estimates(
        {"ours": scores}, lambda drawn: np.array([metrics.aggregate_iqm(drawn)]), reps=500
    )
    np.random.set_state(state)
    estimate = stratified_intervals(scores[:, :, None], seed=3, resamples=500)
    assert np.allclose(
        [estimate.value[0], estimate.low[0], estimate.high[0]], [value["ours"][0], *interval["ours"][:, 0]]
    )
