"""Computes interquartile means and how sure of them one can be."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """Holds values with their intervals, one entry per checkpoint; NaN where there is none."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interquartile_mean(scores: np.ndarray) -> float:
    """Return the mean of the middle half: a quarter of the scores, rounded down, is left out at either end.

    NaN scores are those of runs that are missing.

    >>> interquartile_mean(np.array([9.0, 1.0, 2.0, 3.0, -50.0]))
    2.0
    """
    flat = np.asarray(scores, dtype=np.float64).reshape(1, -1)
    return float(_middle_mean(flat, int(np.isfinite(flat).sum()))[0])


def stratified_intervals(scores: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Compute interquartile means over runs and environments, with percentile intervals of a stratified bootstrap.

    Runs are drawn with replacement within each environment (Agarwal et al. 2021). For the same seed of NumPy's
    global generator, ``rliable.library.get_interval_estimates`` gives the same intervals, where every environment
    has the same number of runs; here the generator is our own, resamples are drawn at once, and runs may be missing.
    All checkpoints are resampled alike, so that the interval's edges do not jitter along a curve.

    :param scores: ``[runs, environments, checkpoints]``, NaN where a run is missing or did not come that far
    :param seed: of the resamples
    :param resamples: how many
    :return: per checkpoint; the interval is NaN where no environment has two runs, which say nothing of the spread
    """
    scores = np.asarray(scores, dtype=np.float64)
    value, low, high = (np.full(scores.shape[2], np.nan) for _ in range(3))
    for checkpoint in range(scores.shape[2]):
        mine = scores[:, :, checkpoint]
        value[checkpoint] = interquartile_mean(mine)
        if np.isfinite(mine).sum(axis=0).max(initial=0) > 1:
            low[checkpoint], high[checkpoint] = _interval(mine, seed, resamples)
    return Estimate(value, low, high)


def stacked(of_environments: Sequence[np.ndarray]) -> np.ndarray:
    """Put the runs of several environments beside each other.

    :param of_environments: ``[runs, checkpoints]`` of each
    :return: ``[runs, environments, checkpoints]``, NaN where an environment has fewer runs than another
    """
    shape = (max(map(len, of_environments)), len(of_environments), of_environments[0].shape[1])
    scores = np.full(shape, np.nan)
    for column, runs in enumerate(of_environments):
        scores[: len(runs), column] = runs
    return scores


def _interval(scores: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    present = np.isfinite(scores)
    counts = present.sum(axis=0)
    # Present runs first, so that a draw below an environment's count is one of them.
    order = np.argsort(~present, axis=0, kind="stable")
    packed = np.take_along_axis(scores, order, axis=0)[: counts.max(), counts > 0]
    counts = counts[counts > 0]
    drawn = packed[_draws(tuple(counts.tolist()), seed, resamples), np.arange(len(counts))]
    drawn[:, np.arange(counts.max())[:, None] >= counts] = np.nan
    means = _middle_mean(drawn.reshape(resamples, -1), int(counts.sum()))
    tail = (1 - CONFIDENCE) / 2
    interval: np.ndarray = np.percentile(means, [100 * tail, 100 * (1 - tail)])
    return interval


@lru_cache(maxsize=4)  # the checkpoints of a curve have the same
def _draws(counts: tuple[int, ...], seed: int, resamples: int) -> np.ndarray:
    """Draw which run takes each place: ``[resamples, runs, environments]``."""
    most = max(counts)
    shape = (resamples, most, len(counts))
    generator = np.random.RandomState(seed)  # rliable's stream, so that its intervals can be compared with
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
