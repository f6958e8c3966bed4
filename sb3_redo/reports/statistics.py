"""Computes aggregates of runs, differences between runs, and their intervals.

All tables follow one rule. With fewer than :data:`FEW_RUNS` runs in a condition, values are means with t intervals,
because bootstrap intervals of few runs are too short. Otherwise they are interquartile means with stratified bootstrap
intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95
RESAMPLES = 2000
FEW_RUNS = 10
"""With fewer runs than this, intervals are those of Student's t distribution."""
TOO_FEW_RUNS = 5
"""With fewer runs than this, a reader is warned."""
_PERCENTILES = (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE))


@dataclass(frozen=True)
class Estimate:
    """Holds values with their intervals, one entry per checkpoint; NaN where there is none."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interquartile_mean(scores: np.ndarray) -> float:
    """Return the mean of the middle half: a quarter of the scores, rounded down, is left out at each end.

    NaN stands for a missing run.

    >>> interquartile_mean(np.array([9.0, 1.0, 2.0, 3.0, -50.0]))
    2.0
    """
    flat = np.asarray(scores, dtype=np.float64).reshape(1, -1)
    return float(_middle_mean(flat, int(np.isfinite(flat).sum()))[0])


@dataclass(frozen=True)
class Interval:
    """Holds one value with its 95 % interval; NaN where there is none.

    :param count: the number of runs, or of pairs of runs
    :param p_value: of no difference, two-sided, where the value is a difference
    """

    value: float
    low: float
    high: float
    count: int
    p_value: float = np.nan


def is_few(counts: Sequence[int]) -> bool:
    """Return whether a condition has so few runs that its whole table uses means with t intervals.

    :param counts: the number of runs of each condition
    """
    return min(counts, default=0) < FEW_RUNS


def mean_interval(scores: np.ndarray) -> Interval:
    """Compute the mean over all runs with its t interval.

    Runs of several environments form strata: only the spread within an environment counts, and the degrees of freedom
    are those of Satterthwaite (1946). With one environment this is the ordinary t interval.

    :param scores: ``[runs]`` or ``[runs, environments]``, NaN where a run is missing
    :return: with the p-value of a mean of 0. Interval and p-value are NaN if an environment has a single run

    >>> found = mean_interval(np.array([1.0, 2.0, 3.0]))
    >>> found.value, round(found.low, 3), round(found.high, 3), found.count
    (2.0, -0.484, 4.484, 3)
    """
    scores = np.asarray(scores, dtype=np.float64)
    columns = [column[np.isfinite(column)] for column in scores.reshape(len(scores), -1).T]
    columns = [column for column in columns if len(column)]
    count = sum(map(len, columns))
    if not count:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(np.concatenate(columns).mean())
    if min(map(len, columns)) < 2:
        return Interval(mean, np.nan, np.nan, count)
    # The variance of the mean, by environment.
    parts = np.array([len(column) * column.var(ddof=1) for column in columns]) / count**2
    variance = parts.sum()
    if variance == 0:
        return Interval(mean, mean, mean, count, float(mean == 0))
    freedom = variance**2 / sum(part**2 / (len(column) - 1) for part, column in zip(parts, columns, strict=True))
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(variance))
    p_value = float(2 * stdtr(freedom, -abs(mean) / np.sqrt(variance)))
    return Interval(mean, mean - half, mean + half, count, p_value)


def paired_difference(scores: np.ndarray, baseline: np.ndarray, few: bool = True, seed: int = 0) -> Interval:
    """Compute the difference to a baseline, paired by seed. Runs without a partner are left out.

    :param scores: ``[seeds]`` or ``[seeds, environments]``, NaN where a run is missing
    :param baseline: the baseline's scores, with the same seeds and environments at the same positions
    :param few: if true, compute the mean difference, t interval and p-value of the paired t test; else the difference
        of interquartile means, resampled in pairs
    :param seed: of the resamples
    :return: ``count`` is the number of pairs
    """
    scores, baseline = (np.asarray(each, dtype=np.float64).reshape(len(each), -1) for each in (scores, baseline))
    differences = scores - baseline
    if few:
        return mean_interval(differences)
    alone = ~np.isfinite(differences)
    count = int((~alone).sum())
    mine, theirs = np.where(alone, np.nan, scores), np.where(alone, np.nan, baseline)
    value = interquartile_mean(mine) - interquartile_mean(theirs)
    if np.isfinite(differences).sum(axis=0).max(initial=0) < 2:
        return Interval(value, np.nan, np.nan, count)
    # With the same seed, both are resampled with the same pairs.
    drawn = _resampled_means(mine, seed, RESAMPLES) - _resampled_means(theirs, seed, RESAMPLES)
    low, high = np.percentile(drawn, _PERCENTILES)
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Interval(value, float(low), float(high), count, float(min(1.0, 2 * (tail + 1) / (RESAMPLES + 1))))


def probability_of_improvement(scores: np.ndarray, baseline: np.ndarray) -> float:
    """Compute the probability that a run exceeds a baseline run of its environment (Agarwal et al. 2021).

    This is the Mann-Whitney U statistic over its maximum, the mean over environments. Ties count half.

    :param scores: ``[runs]`` or ``[runs, environments]``, NaN where a run is missing
    :param baseline: the baseline's scores; the number of runs may differ
    :return: in [0, 1]; NaN if no environment has runs of both

    >>> probability_of_improvement(np.array([1.0, 3.0]), np.array([2.0, 0.0]))
    0.75
    """
    found = []
    for mine, theirs in zip(*(np.reshape(each, (len(each), -1)).T for each in (scores, baseline)), strict=True):
        signs = np.sign(mine[np.isfinite(mine)][:, None] - theirs[np.isfinite(theirs)])
        if signs.size:
            found.append((1 + signs.mean()) / 2)
    return float(np.mean(found)) if found else np.nan


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust the p-values of a family of comparisons by Holm's method (1979).

    :param p_values: of all comparisons of the family; NaN is ignored
    :return: in the same order. Rejecting at 0.05 gives any false finding in at most 5 % of families

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    order = np.argsort(values)[: int(np.isfinite(values).sum())]  # NaN is sorted to the end
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def score_intervals(scores: np.ndarray, few: bool, seed: int = 0) -> Estimate:
    """Compute the aggregate of runs at each checkpoint, by the rule of this module.

    :param scores: ``[runs, environments, checkpoints]``, NaN where a run is missing or did not come that far
    :param few: means with t intervals if so, else interquartile means with stratified bootstrap intervals
    :param seed: of the resamples
    """
    if not few:
        return stratified_intervals(scores, seed)
    found = [mean_interval(scores[:, :, checkpoint]) for checkpoint in range(scores.shape[2])]
    return Estimate(*(np.array([getattr(each, name) for each in found]) for name in ("value", "low", "high")))


def stratified_intervals(scores: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Compute interquartile means over runs and environments, with percentile intervals of a stratified bootstrap.

    Runs are drawn with replacement within each environment (Agarwal et al. 2021). If every environment has the same
    number of runs, ``rliable.library.get_interval_estimates`` gives the same intervals with the same seed of NumPy's
    global generator. Here the generator is separate, all resamples are drawn at once, and runs may be missing. All
    checkpoints use the same resamples, so that intervals are smooth along a curve.

    :param scores: ``[runs, environments, checkpoints]``, NaN where a run is missing or did not come that far
    :param seed: of the resamples
    :param resamples: number of resamples
    :return: per checkpoint; the interval is NaN if no environment has two runs
    """
    scores = np.asarray(scores, dtype=np.float64)
    value, low, high = (np.full(scores.shape[2], np.nan) for _ in range(3))
    for checkpoint in range(scores.shape[2]):
        mine = scores[:, :, checkpoint]
        value[checkpoint] = interquartile_mean(mine)
        if np.isfinite(mine).sum(axis=0).max(initial=0) > 1:
            low[checkpoint], high[checkpoint] = np.percentile(_resampled_means(mine, seed, resamples), _PERCENTILES)
    return Estimate(value, low, high)


def stacked(of_environments: Sequence[np.ndarray]) -> np.ndarray:
    """Stack the scores of several environments.

    :param of_environments: ``[runs, checkpoints]`` of each
    :return: ``[runs, environments, checkpoints]``, with NaN for missing runs
    """
    shape = (max(map(len, of_environments)), len(of_environments), of_environments[0].shape[1])
    scores = np.full(shape, np.nan)
    for column, runs in enumerate(of_environments):
        scores[: len(runs), column] = runs
    return scores


def _resampled_means(scores: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Return the interquartile mean of every resample of scores ``[runs, environments]``."""
    present = np.isfinite(scores)
    counts = present.sum(axis=0)
    # Sorted with present runs first, so that draws below an environment's count select them.
    order = np.argsort(~present, axis=0, kind="stable")
    packed = np.take_along_axis(scores, order, axis=0)[: counts.max(), counts > 0]
    counts = counts[counts > 0]
    drawn = packed[_draws(tuple(counts.tolist()), seed, resamples), np.arange(len(counts))]
    drawn[:, np.arange(counts.max())[:, None] >= counts] = np.nan
    return _middle_mean(drawn.reshape(resamples, -1), int(counts.sum()))


@lru_cache(maxsize=4)  # identical for all checkpoints of a curve
def _draws(counts: tuple[int, ...], seed: int, resamples: int) -> np.ndarray:
    """Draw the indices of resampled runs: ``[resamples, runs, environments]``."""
    most = max(counts)
    shape = (resamples, most, len(counts))
    generator = np.random.RandomState(seed)  # rliable's random stream, to compare intervals with it
    if min(counts) == most:
        return np.asarray(generator.randint(0, most, shape))
    return np.asarray(generator.random_sample(shape) * counts).astype(np.int64)


def _middle_mean(rows: np.ndarray, count: int) -> np.ndarray:
    """Return the mean of each row's middle half; ``count`` of a row are numbers, the others NaN."""
    if count == 0:
        return np.full(len(rows), np.nan)
    cut = count // 4
    means: np.ndarray = np.sort(rows, axis=1)[:, cut : count - cut].mean(axis=1)  # NaN is sorted to the end
    return means
