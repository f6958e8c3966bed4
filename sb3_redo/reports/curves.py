"""Computes curves over seeds: the runs of a condition at shared checkpoints."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from sb3_redo.reports.scores import atari_game, frames_per_step, reference_of
from sb3_redo.reports.statistics import is_few, score_intervals, stacked
from sb3_redo.reports.sweep_folder import RETURN as RETURN

ACCURACY = "classifier/accuracy"
"""Share of all images with the correct label of the current task."""
LOSS = "offline/loss"
"""Huber loss (smooth L1, as in DQN) on the transitions of the dormancy measurement, before the next step."""
LAYERS = "dormancy_layers/"
ALL = "all environments"
CHECKPOINTS = 50

_STEPS = "environment steps"
# Runs with different replay ratios end a few steps apart.
_SAME_BUDGET = 0.99


def over_seeds(curves: pd.DataFrame, key: str, by: str = "gradient_step", checkpoints: int = 100) -> pd.DataFrame:
    """Compute one key's mean, lowest and highest over the runs that came to a checkpoint, by environment and condition.

    A finished run counts up to the end of its condition's curve. Once a run has finished, unfinished ones do not count
    at the last checkpoint. So a curve ends at the value of the finished runs.

    :param curves: from :func:`~sb3_redo.reports.tables.read_curves`
    :param key: a logged key, such as ``dormancy/fraction``
    :param by: ``gradient_step`` or ``step``
    :param checkpoints: number of checkpoints, evenly spaced over the runs of the condition
    :return: columns that describe the condition, and ``key``, ``by``, ``at``, ``value``, ``low``, ``high``, ``runs``,
        ``seeds`` (the values of the single runs, a tuple)
    """
    return _over_seeds(curves, [key], by, checkpoints)


def side_by_side(curves: pd.DataFrame, keys: Mapping[str, str], by: str = "gradient_step") -> pd.DataFrame:
    """Compute :func:`over_seeds` for several keys of the same runs. Each key gets the name of a condition.

    :param keys: names without commas to keys
    """
    tables = []
    for name, key in keys.items():
        table = over_seeds(curves, key, by)
        if len(table):
            condition = table["condition"].astype(str) + "," + name
            tables.append(table.assign(condition=condition, setting=table["setting"].astype(str) + "," + name))
    return pd.concat(tables, ignore_index=True) if tables else over_seeds(curves, "", by)


def layers_over_seeds(curves: pd.DataFrame, by: str = "gradient_step", checkpoints: int = 60) -> pd.DataFrame:
    """Compute :func:`over_seeds` for the dormant fraction of every layer, with a column ``layer``."""
    keys = [key for key in curves["key"].cat.categories if key.startswith(LAYERS)]
    table = _over_seeds(curves, keys, by, checkpoints)
    return table.assign(layer=table["key"].str.removeprefix(LAYERS))


def _over_seeds(curves: pd.DataFrame, keys: list[str], by: str, checkpoints: int) -> pd.DataFrame:
    mine = _of_keys(curves, keys, by)
    tables = []
    for _, condition in mine.groupby(["environment", "condition"], observed=True, sort=False):
        grid = np.unique(np.linspace(condition[by].min(), condition[by].max(), checkpoints))
        for key in keys:
            group = condition[condition["key"] == key]
            if len(group):
                values = np.stack([_at(grid, *run) for run in _split(group, by).values()])
                tables.append(_spread(grid, values).assign(key=key, which=condition.index[0]))
    if not tables:
        return pd.DataFrame(columns=["environment", "condition", "setting", "redo", "key", "by", "at", "value"])
    return _described(pd.concat(tables, ignore_index=True), mine).assign(by=by)


def _spread(grid: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    """Compute mean, lowest and highest over runs, ignoring NaN: ``values`` is ``[runs, checkpoints]``."""
    there = np.isfinite(values)
    some = there.any(axis=0)
    values = values[:, some]
    drawn = {"at": grid[some], "value": np.nanmean(values, axis=0), "low": np.nanmin(values, axis=0)}
    drawn |= {"high": np.nanmax(values, axis=0), "runs": there[:, some].sum(axis=0)}
    return pd.DataFrame(drawn).assign(seeds=list(map(tuple, values.T.tolist())))


def pooled(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the same curves with all environments joined into one."""
    return curves.assign(environment=ALL)


def is_normalised(environments: Iterable[str]) -> bool:
    """Return whether all environments have reference scores, so that their returns can be pooled."""
    environments = list(environments)
    return bool(environments) and all(reference_of(environment) for environment in environments)


def measure_of(environments: Iterable[str]) -> str:
    """Return a label for the return on an axis."""
    environments = list(environments)
    if not is_normalised(environments):
        return "episode return (mean of the last 100 episodes)"
    if all(atari_game(environment) for environment in environments):
        return "human-normalised return (0: random play, 1: human)"
    return "normalised return (0 and 1: the zoo's reference scores)"


def blocks_of(environments: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return title and environments of each block of a table: all together if possible, then each alone."""
    names = list(dict.fromkeys(environments))
    together = [(ALL, names)] if len(names) > 1 and is_normalised(names) else []
    return together + [(name, [name]) for name in names]


def return_curves(curves: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Compute the return of each condition at checkpoints, with the intervals of the statistics module.

    Returns are normalised and pooled if all environments have reference scores. Otherwise they are raw, for each
    environment alone. The last value equals that of the finished runs in
    :func:`~sb3_redo.reports.outcomes.condition_outcomes`.

    :param seed: of the bootstrap
    :return: as :func:`over_seeds`, with ``unit`` (of ``at``), ``measure``, ``estimator`` (``mean`` or ``IQM``)
    """
    mine = _of_keys(curves, [RETURN], "step")
    names = list(mine["environment"].unique())
    blocks = blocks_of(names)
    tables = []
    for title, group in blocks[:1] if blocks and blocks[0][0] == ALL else blocks:
        of_group = mine[mine["environment"].isin(group)]
        few = is_few(_counts(curves[curves["environment"].isin(group)]))
        ends = of_group.groupby("environment", observed=True)["step"].max()
        for _, condition in of_group.groupby("condition", observed=True, sort=False):
            scores = scores_at(condition, group)
            estimate = score_intervals(scores, few, seed)
            drawn = pd.DataFrame({"value": estimate.value, "low": estimate.low, "high": estimate.high})
            drawn = drawn.assign(runs=np.isfinite(scores).sum(axis=(0, 1)), **_axis(ends, condition))
            if len(group) == 1:  # single runs of several games would need different scales
                drawn = drawn.assign(seeds=list(map(tuple, scores[:, 0].T.tolist())))
            drawn = drawn[drawn["runs"] > 0].assign(which=condition.index[0], title=title)
            tables.append(drawn.assign(estimator="mean" if few else "IQM"))
    if not tables:
        return pd.DataFrame(columns=["environment", "condition", "at", "value"])
    described = _described(pd.concat(tables, ignore_index=True), mine).assign(measure=measure_of(names))
    return described.assign(environment=described["title"]).drop(columns="title")


def _counts(curves: pd.DataFrame) -> list[int]:
    """Return the number of finished runs of each condition; if none has finished, the number of all."""
    runs = curves.drop_duplicates("run")
    return list((runs[runs["finished"]] if runs["finished"].any() else runs)["condition"].astype(str).value_counts())


def _axis(ends: pd.Series, condition: pd.DataFrame) -> dict[str, Any]:
    """Return the x values of a condition's checkpoints, and their unit.

    If environments differ in their budgets, the unit is the share of the budget.

    :param ends: the last environment step of any run, by environment
    """
    mine = condition.groupby("environment", observed=True)["step"].max()
    parts = np.linspace(0, 1, CHECKPOINTS + 1)[1:]
    if ends.min() < _SAME_BUDGET * ends.max():
        return {"at": parts * float((mine / ends).max()) * 100, "unit": "share of the training [%]"}
    frames = {frames_per_step(name) for name in ends.index}
    unit = max(frames) if len(frames) == 1 else 1
    return {"at": parts * mine.max() * unit, "unit": "frames (4 in an environment step)" if unit > 1 else _STEPS}


def scores_at(curves: pd.DataFrame, environments: list[str]) -> np.ndarray:
    """Compute one condition's returns at checkpoints, normalised where references are known.

    The checkpoints of an environment are evenly spaced up to the last step of the condition's runs in it.

    :param environments: to pool
    :return: ``[runs, environments, checkpoints]``
    """
    of = []
    for environment in environments:
        mine = curves[curves["environment"] == environment]
        grid = np.linspace(0, mine["step"].max() if len(mine) else 1, CHECKPOINTS + 1)[1:]
        values = [_at(grid, *run) for run in _split(mine, "step").values()] if len(mine) else []
        reference = reference_of(environment) if is_normalised(environments) else None
        scores = np.reshape(values, (-1, CHECKPOINTS))
        of.append(scores if reference is None else reference.normalise(scores))
    return stacked(of)


def _of_keys(curves: pd.DataFrame, keys: list[str], by: str) -> pd.DataFrame:
    mine = curves[curves["key"].isin(keys) & curves[by].notna() & np.isfinite(curves["value"])]
    # Ordered by seed, as in the table, because the bootstrap draws positions.
    return mine.sort_values(["seed", "run", by], kind="stable", ignore_index=True)


def _split(group: pd.DataFrame, by: str) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Return steps, values and the last counted step of each run, from a table sorted by run."""
    codes = group["run"].cat.codes.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    names = group["run"].cat.categories[codes[starts]]
    finished = group["finished"].to_numpy()[starts]
    xs, ys = (np.split(group[column].to_numpy(), starts[1:]) for column in (by, "value"))
    # An unfinished run has no value at the last checkpoint, which belongs to the finished ones.
    before = np.nextafter(group[by].max(), 0) if finished.any() else np.inf
    reaches = (np.inf if whole else min(x[-1], before) for x, whole in zip(xs, finished, strict=True))
    return dict(zip(names, zip(xs, ys, reaches, strict=True), strict=True))


def _at(grid: np.ndarray, x: np.ndarray, y: np.ndarray, reach: float) -> np.ndarray:
    values = np.asarray(np.interp(grid, x, y, left=np.nan))
    values[grid > reach] = np.nan
    return values


def _described(drawn: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that describe each row's condition, from row ``which`` of the curves."""
    varying = ["run", "seed", "finished", "key", "step", "gradient_step", "value"]
    described = curves.drop(columns=varying).loc[drawn["which"]].reset_index(drop=True)
    return pd.concat([drawn.drop(columns="which"), described], axis=1)
