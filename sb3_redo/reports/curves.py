"""Computes curves over seeds: the runs of a condition at shared checkpoints."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from sb3_redo.reports.scores import atari_game, frames_per_step, reference_of
from sb3_redo.reports.statistics import stacked, stratified_intervals

RETURN = "rollout/ep_rew_mean"
ACCURACY = "classifier/accuracy"
"""Share of all images to which a classifier gives the labels of the present task."""
LOSS = "offline/loss"
"""Huber loss (smooth L1, as DQN has it) on the transitions that dormancy is measured on, before the next step."""
LAYERS = "dormancy_layers/"
ALL = "all environments"
CHECKPOINTS = 50

# A run counts as having come to a checkpoint when it ended this close before: runs of other replay ratios end a
# few steps apart.
_REACH = 1.01


def over_seeds(curves: pd.DataFrame, key: str, by: str = "gradient_step", checkpoints: int = 100) -> pd.DataFrame:
    """Compute one key's mean, lowest and highest over the runs that came to a checkpoint, by environment and condition.

    :param curves: from :func:`~sb3_redo.reports.tables.read_curves`
    :param key: what was logged, such as ``dormancy/fraction``
    :param by: ``gradient_step`` or ``step``
    :param checkpoints: how many, evenly spaced over the runs of the condition
    :return: columns that describe the condition, and ``key``, ``by``, ``at``, ``value``, ``low``, ``high``, ``runs``
    """
    return _over_seeds(curves, [key], by, checkpoints)


def side_by_side(curves: pd.DataFrame, keys: Mapping[str, str], by: str = "gradient_step") -> pd.DataFrame:
    """Compute :func:`over_seeds` for several keys of the same runs, each under a name like that of a condition.

    :param keys: name, in which there is no comma, to key
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
                values = np.stack([_at(grid, x, y, x[-1]) for x, y in _split(group, by).values()])
                tables.append(_spread(grid, values).assign(key=key, which=condition.index[0]))
    if not tables:
        return pd.DataFrame(columns=["environment", "condition", "setting", "redo", "key", "by", "at", "value"])
    return _described(pd.concat(tables, ignore_index=True), mine).assign(by=by)


def _spread(grid: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    """Compute mean, lowest and highest over runs, where there are any: ``values`` is ``[runs, checkpoints]``."""
    there = np.isfinite(values)
    some = there.any(axis=0)
    values = values[:, some]
    drawn = {"at": grid[some], "value": np.nanmean(values, axis=0), "low": np.nanmin(values, axis=0)}
    return pd.DataFrame(drawn | {"high": np.nanmax(values, axis=0), "runs": there[:, some].sum(axis=0)})


def pooled(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the same curves as if all were of one environment."""
    return curves.assign(environment=ALL)


def is_normalised(environments: Iterable[str]) -> bool:
    """Say whether the reference scores of all environments are known, so that their returns go together."""
    environments = list(environments)
    return bool(environments) and all(reference_of(environment) for environment in environments)


def measure_of(environments: Iterable[str]) -> str:
    """Say in words what is drawn as return."""
    environments = list(environments)
    if not is_normalised(environments):
        return "episode return (mean of the last 100 episodes)"
    if all(atari_game(environment) for environment in environments):
        return "human-normalised return (0: random play, 1: human)"
    return "normalised return (0 and 1: the zoo's reference scores)"


def return_curves(curves: pd.DataFrame, n_timesteps: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Compute the interquartile mean of the return over runs and environments, with 95 % bootstrap intervals.

    Normalised, and over all environments, where the reference scores of every one are known; otherwise of the raw
    return, for each environment by itself. Where environments were given different budgets, up to the shortest.

    :param n_timesteps: environment steps of a whole run; without it, those of the longest
    :param seed: of the bootstrap
    :return: as :func:`over_seeds`, with ``unit`` (of ``at``), ``measure``
    """
    mine = _of_keys(curves, [RETURN], "step")
    names = list(mine["environment"].unique())
    ends = curves.groupby("run", observed=True)["step"].max()
    together = is_normalised(names)
    groups = [names] if together else [[name] for name in names]
    tables = []
    for group in groups if names else []:
        of_group = mine[mine["environment"].isin(group)]
        frames = {frames_per_step(name) for name in group}
        unit = max(frames) if len(frames) == 1 else 1
        last = of_group.groupby("environment", observed=True)["step"].max().min()
        grid = np.linspace(0, n_timesteps or last, CHECKPOINTS + 1)[1:]
        for _, condition in of_group.groupby("condition", observed=True, sort=False):
            scores = scores_at(condition, group, grid, ends)
            estimate = stratified_intervals(scores, seed)
            drawn = pd.DataFrame({"at": grid * unit, "value": estimate.value, "low": estimate.low})
            drawn = drawn.assign(high=estimate.high, runs=np.isfinite(scores).sum(axis=(0, 1)))
            words = "frames (4 in an environment step)" if unit > 1 else "environment steps"
            title = ALL if together and len(group) > 1 else group[0]
            drawn = drawn[drawn["runs"] > 0].assign(which=condition.index[0], unit=words, title=title)
            tables.append(drawn)
    if not tables:
        return pd.DataFrame(columns=["environment", "condition", "at", "value"])
    described = _described(pd.concat(tables, ignore_index=True), mine).assign(measure=measure_of(names))
    return described.assign(environment=described["title"]).drop(columns="title")


def scores_at(curves: pd.DataFrame, environments: list[str], grid: np.ndarray, ends: pd.Series) -> np.ndarray:
    """Compute one condition's returns at checkpoints, normalised where references are known.

    :param ends: the last environment step of each run; its return is held from its last log up to there
    :return: ``[runs, environments, checkpoints]``
    """
    of: list[list[np.ndarray]] = [[] for _ in environments]
    environment_of = dict(zip(curves["run"], curves["environment"], strict=True))
    for name, (steps, returns) in _split(curves, "step").items():
        environment = environment_of[name]
        values = _at(grid, steps, returns, ends[name])
        reference = reference_of(environment) if is_normalised(environments) else None
        of[environments.index(environment)].append(values if reference is None else reference.normalise(values))
    return stacked([np.reshape(runs, (-1, len(grid))) for runs in of])


def _of_keys(curves: pd.DataFrame, keys: list[str], by: str) -> pd.DataFrame:
    mine = curves[curves["key"].isin(keys) & curves[by].notna() & np.isfinite(curves["value"])]
    return mine.sort_values(["run", by], kind="stable", ignore_index=True)


def _split(group: pd.DataFrame, by: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the steps and values of each run, of a table that is sorted by run."""
    codes = group["run"].cat.codes.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    names = group["run"].cat.categories[codes[starts]]
    parts = (np.split(group[column].to_numpy(), starts[1:]) for column in (by, "value"))
    return dict(zip(names, zip(*parts, strict=True), strict=True))


def _at(grid: np.ndarray, x: np.ndarray, y: np.ndarray, end: float) -> np.ndarray:
    values = np.asarray(np.interp(grid, x, y, left=np.nan))
    values[grid > end * _REACH] = np.nan
    return values


def _described(drawn: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that describe the condition of each row: those of the row ``which`` of the curves."""
    varying = ["run", "seed", "key", "step", "gradient_step", "value"]
    described = curves.drop(columns=varying).loc[drawn["which"]].reset_index(drop=True)
    return pd.concat([drawn.drop(columns="which"), described], axis=1)
