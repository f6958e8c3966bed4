"""Computes intervals of a mean over seeds."""

import numpy as np
import pandas as pd


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean and the ends of its interval."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def cell(values: "pd.Series[float]", form: str) -> str:
    """Write mean and interval, each in the given format; a hyphen where there are no values."""
    if values.isna().all():
        return "-"
    mean, low, high = (format(value, form) for value in interval(values.dropna().to_numpy()))
    return f"{mean} [{low}, {high}]"
