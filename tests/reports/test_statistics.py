"""Intervals and differences are those of worked numbers and of other packages."""

import importlib.util
import sys
import types
import warnings

import numpy as np
import pytest
from scipy import stats

from sb3_redo.reports.statistics import (
    holm,
    interquartile_mean,
    is_few,
    mean_interval,
    paired_difference,
    probability_of_improvement,
    score_intervals,
    stratified_intervals,
)


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


def scores_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_t_intervals_and_p_values_are_those_of_scipy():
    mine, theirs = scores_of(7), scores_of(7, seed=1) + 0.5
    for found, expected in (
        (mean_interval(mine), stats.ttest_1samp(mine, 0)),
        (paired_difference(mine, theirs), stats.ttest_rel(mine, theirs)),
    ):
        assert np.allclose([found.low, found.high], expected.confidence_interval())
        assert np.isclose(found.p_value, expected.pvalue)
        assert found.count == 7


def test_the_spread_between_environments_does_not_count():
    scores = np.array([[0.0, 100.0], [1.0, 101.0], [2.0, 102.0]])
    found = mean_interval(scores)
    # Variance 1 in either environment: that of the mean of six is 1/6, with four degrees of freedom.
    assert np.isclose(found.value, 51)
    assert np.isclose(found.high - found.value, 2.7764451 * 6**-0.5)


def test_without_spread_within_an_environment_there_is_no_interval():
    found = mean_interval(np.array([[0.0, 5.0], [1.0, np.nan]]))
    assert (found.value, found.count) == (2.0, 3)
    assert np.isnan([found.low, found.high, found.p_value]).all()
    assert mean_interval(np.array([np.nan])).count == 0


def test_runs_that_agree_leave_nothing_to_chance():
    found = mean_interval(np.array([3.0, 3.0]))
    assert (found.low, found.high, found.p_value) == (3.0, 3.0, 0.0)
    assert mean_interval(np.zeros(2)).p_value == 1.0


@pytest.mark.parametrize("few", [True, False])
def test_differences_are_paired_and_runs_without_a_partner_left_out(few):
    baseline = 100 * scores_of(12)
    scores = baseline + 1 + 0.01 * scores_of(12, seed=1)
    alone = np.append(scores, 1e6), np.append(baseline, np.nan)
    found, whole = paired_difference(*alone, few), paired_difference(scores, baseline, few)
    # The seeds' own spread of 100 is gone.
    assert 0.9 < found.low < found.value < found.high < 1.1
    assert (
        (found.count, found.value, found.low) == (whole.count, whole.value, whole.low) == (12, found.value, found.low)
    )
    assert found.p_value < 0.01


def test_from_ten_runs_on_the_difference_is_that_of_the_interquartile_means():
    mine, theirs = scores_of(12, 3), scores_of(12, 3, seed=1)
    found = paired_difference(mine, theirs, few=False)
    assert np.isclose(found.value, interquartile_mean(mine) - interquartile_mean(theirs))
    assert found.low < found.value < found.high
    assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
    assert paired_difference(mine, theirs, few=False, seed=1).low != found.low
    assert np.isnan(paired_difference(mine[:1], theirs[:1], few=False).low)


def test_the_probability_of_improvement_is_mann_whitneys_by_environment():
    mine, theirs = scores_of(6, 2), scores_of(5, 2, seed=1)
    expected = [stats.mannwhitneyu(mine[:, each], theirs[:, each]).statistic / 30 for each in range(2)]
    assert np.isclose(probability_of_improvement(mine, theirs), np.mean(expected))
    assert probability_of_improvement(np.array([1.0, np.nan]), np.array([1.0])) == 0.5
    assert np.isnan(probability_of_improvement(np.array([np.nan]), np.array([1.0])))


def test_holms_p_values_are_worked_ones():
    # The smallest of three times 3, the next times 2, never less than the one before; at most 1.
    assert np.allclose(holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])
    assert np.allclose(holm([0.6, np.nan, 0.7]), [1.0, np.nan, 1.0], equal_nan=True)
    assert holm([]).size == 0


def test_a_table_with_one_small_condition_has_t_intervals():
    assert is_few([9, 30])
    assert not is_few([10, 30])
    scores = scores_of(12, 1, 2)
    few, many = score_intervals(scores, True), score_intervals(scores, False)
    assert np.isclose(few.low[1], mean_interval(scores[:, 0, 1]).low)
    assert np.array_equal(many.low, stratified_intervals(scores).low)
