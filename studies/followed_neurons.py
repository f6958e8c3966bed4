"""Follows every neuron of DQN over training: whether dormant ones revive, and how scores are distributed.

    sb3-redo sweep studies/followed_neurons.yml --workers 2        in the root of a clone
    python -m studies.followed_neurons gather runs/followed_neurons
    python -m studies.followed_neurons write

``gather`` keeps means over time for each run in docs/results/. ``write`` makes tables and figures of docs/questions.md.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sb3_redo import DormancyCallback
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.reports import read_curves, read_sweep_folder
from sb3_redo.reports.statistics import mean_interval
from sb3_redo.tensorboard import write_point
from studies.replay_ratio import DOCS, RESULTS, written

PAGE = DOCS / "questions.md"
FILES = (RESULTS / "revived_neurons.csv", RESULTS / "score_quantiles.csv")
LAGS = (1, 2, 4, 8, 16)
"""In measurements."""
QUANTILES = tuple(np.round(np.arange(0.05, 1, 0.05), 2).tolist())
REVIVED, QUANTILE = "revived_after", "score_quantile"


class FollowedDormancyCallback(DormancyCallback):
    """Also logs which share of the neurons dormant some measurements ago is active now, and quantiles of scores.

    Keys are ``revived_after/<lag>``, ``revived_after/<lag>/<layer>`` and ``score_quantile/<quantile>/<layer>``.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self._dormant: list[dict[str, Tensor]] = []

    def log(self, report: DormancyReport | None, gradient_step: int) -> None:
        super().log(report, gradient_step)
        if report is None:
            return
        self._dormant.append({layer.name: layer.dormant.clone() for layer in report.layers})
        values: dict[str, Any] = {}
        for lag in LAGS:
            if len(self._dormant) > lag:
                values |= revived(self._dormant[-1 - lag], self._dormant[-1], lag)
        for layer in report.layers:
            scores = torch.quantile(layer.scores, torch.tensor(QUANTILES, dtype=layer.scores.dtype))
            values |= {f"{QUANTILE}/{q:g}/{layer.name}": float(s) for q, s in zip(QUANTILES, scores, strict=True)}
        write_point(self.logger, values, self.model.num_timesteps)


def revived(before: dict[str, Tensor], now: dict[str, Tensor], lag: int) -> dict[str, float]:
    """Return which share of the neurons that were dormant is active now; nothing for layers where none was dormant.

    :param before: layer name to bool mask of dormant neurons, [neurons]
    :param now: the same, ``lag`` measurements later
    """
    values = {}
    layers = {"": (torch.cat(list(before.values())), torch.cat(list(now.values())))}
    layers |= {f"/{name}": (before[name], now[name]) for name in before}
    for name, (was, is_) in layers.items():
        if was.any():
            values[f"{REVIVED}/{lag}{name}"] = float((was & ~is_).sum() / was.sum())
    return values


def gather(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the finished runs of the sweep.

    :return: ``environment``, ``seed``, ``layer`` (``all`` for all together), ``lag``, ``revived`` (mean over time);
        and ``environment``, ``layer``, ``quantile``, ``step``, ``score`` (mean over seeds)
    """
    sweep = read_sweep_folder(folder)
    curves = read_curves(sweep, max_points=10_000)
    parts = curves["key"].astype(str).str.split("/", n=2, expand=True)
    curves = curves.assign(kind=parts[0], number=parts[1], layer=parts[2].fillna("all"))
    shares = curves[curves["kind"] == REVIVED].assign(lag=lambda table: table["number"].astype(int))
    by = ["environment", "seed", "layer", "lag"]
    revivals = shares.groupby(by, observed=True)["value"].mean().rename("revived").reset_index()
    scores = curves[curves["kind"] == QUANTILE].assign(quantile=lambda table: table["number"].astype(float))
    by = ["environment", "layer", "quantile", "step"]
    return revivals, scores.groupby(by, observed=True)["value"].mean().rename("score").reset_index()


def revival_table(revivals: pd.DataFrame) -> str:
    """Write the share revived by lag and layer, mean over seeds with 95 % t interval, in %."""
    lags = sorted(revivals["lag"].unique())
    head = [f"after {lag}" for lag in lags]
    lines = [f"| task | layer | {' | '.join(head)} |", "|---" * (len(lags) + 2) + "|"]
    for (environment, layer), mine in revivals.groupby(["environment", "layer"]):
        found = [mean_interval(100 * mine["revived"][mine["lag"] == lag].to_numpy()) for lag in lags]
        cells = [f"{each.value:.0f} [{each.low:.0f}, {each.high:.0f}]" for each in found]
        lines.append(f"| {environment} | {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_scores(scores: pd.DataFrame, file: Path) -> None:
    """Draw quantiles of the scores over training as heat maps: a row for each task, a column for each layer."""
    environments, layers = scores["environment"].unique(), scores["layer"].unique()
    size = (4 * len(layers), 2.8 * len(environments))
    figure, axes = plt.subplots(len(environments), len(layers), figsize=size, squeeze=False, layout="constrained")
    for row, environment in zip(axes, environments, strict=True):
        for ax, layer in zip(row, layers, strict=True):
            mine = scores[(scores["environment"] == environment) & (scores["layer"] == layer)]
            table = mine.pivot(index="quantile", columns="step", values="score").clip(lower=1e-3)
            mesh = ax.pcolormesh(table.columns, 100 * table.index, table, norm="log", cmap="cividis", vmin=1e-3, vmax=3)
            ax.contour(table.columns, 100 * table.index, table, levels=[0.025], colors="white")
            ax.set_title(f"{environment}: {layer}", fontsize=9)
            ax.set_xlabel("environment steps")
        row[0].set_ylabel("neurons, by score [%]")
    figure.colorbar(mesh, ax=axes, label="score (1 is the layer's mean); white: 0.025")
    figure.savefig(file, dpi=110)


def main() -> None:
    """Gather or write."""
    parser = argparse.ArgumentParser(description="Follow every neuron of DQN over training.")
    parser.add_argument("command", choices=("gather", "write"))
    parser.add_argument("folder", type=Path, nargs="?", help="of the sweep, to gather")
    options = parser.parse_args()
    if options.command == "gather":
        for file, table in zip(FILES, gather(options.folder), strict=True):
            table.to_csv(file, index=False, float_format="%.4g")
    else:
        revivals, scores = map(pd.read_csv, FILES)
        PAGE.write_text(written(PAGE.read_text(), {"revived": revival_table(revivals)}))
        draw_scores(scores, DOCS / "images" / "score_quantiles.png")


if __name__ == "__main__":
    main()
