"""Makes tables and figures of finished runs, from their TensorBoard files alone.

    python -m studies.training_curves --figure docs/demo.png "with ReDo=runs/demo" "without=runs/demo_baseline"

A condition is a label and a folder; every TensorBoard file below the folder is one run (seed) of it. Prints a
Markdown table of the dormant fraction at the start, middle and end, for each layer, and of the episode return.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from sb3_redo.reports.curves import LAYERS, RETURN
from sb3_redo.reports.events import read_event_file

# Okabe and Ito's palette, told apart with every common colour blindness; the line style says it again.
STYLES: Sequence[Mapping[str, Any]] = (
    {"color": "#D55E00", "linestyle": "-"},
    {"color": "#0072B2", "linestyle": "--"},
    {"color": "#009E73", "linestyle": ":"},
)
FRACTION = "dormancy/fraction"


def read_condition(label: str, folder: Path) -> pd.DataFrame:
    """Read every scalar of every run below a folder: columns ``condition``, ``run``, ``key``, ``step``, ``value``.

    :raises FileNotFoundError: when there is no TensorBoard file
    """
    files = sorted(folder.rglob("events.out.tfevents.*"))
    if not files:
        raise FileNotFoundError(f"no TensorBoard file below {folder}")
    read = [read_event_file(file) for file in files]
    columns = [{"run": run, "key": of.keys, "step": of.steps, "value": of.values} for run, of in enumerate(read)]
    return pd.concat(map(pd.DataFrame, columns)).assign(condition=label)


def three_moments(points: pd.DataFrame) -> list[float]:
    """Return the means over runs of the first value, the one nearest the middle of the run, and the last."""
    each = []
    for _, run in points.groupby("run"):
        values = run.sort_values("step")["value"].to_numpy()
        each.append([values[0], values[len(values) // 2], values[-1]])
    return [float(value) for value in np.mean(each, axis=0)]


def table(points: pd.DataFrame) -> str:
    """Write the dormant fraction, pooled and per layer, and the episode return, as Markdown."""
    layers = sorted(key for key in points["key"].unique() if key.startswith(LAYERS))
    of_layers = {key: f"`{key.removeprefix(LAYERS)}`" for key in layers}
    names = {FRACTION: "all layers", **of_layers, RETURN: "episode return"}
    lines = ["| condition | | start | middle | end | each run's end |", "|---|---|---|---|---|---|"]
    for condition, mine in points.groupby("condition", sort=False):
        for key, name in names.items():
            of_key = mine[mine["key"] == key]
            if of_key.empty:
                continue
            factor, unit = (1, "") if key == RETURN else (100, " %")
            cells = [f"{factor * value:.0f}{unit}" for value in three_moments(of_key)]
            ends = ", ".join(f"{factor * value:.0f}" for value in last_values(of_key))
            lines.append(f"| {condition} | {name} | {' | '.join(cells)} | {ends}{unit} |")
    return "\n".join(lines)


def last_values(points: pd.DataFrame) -> list[float]:
    """Return the last value of every run."""
    return [float(run.sort_values("step")["value"].iloc[-1]) for _, run in points.groupby("run")]


def draw_key(points: pd.DataFrame, key: str, label: str, scale: float = 1.0, ax: Any = None) -> Any:
    """Draw one key against environment steps: each run thin, the mean over runs thick. Returns the axes."""
    ax = ax or plt.subplots()[1]
    of_key = points[points["key"] == key]
    for style, (condition, mine) in zip(STYLES, of_key.groupby("condition", sort=False), strict=False):
        runs = [run.sort_values("step") for _, run in mine.groupby("run")]
        for run in runs:
            ax.plot(run["step"], run["value"] * scale, linewidth=0.8, alpha=0.5, **style)
        # Episodes end at other steps in every run, so the mean is taken between points.
        grid = np.linspace(max(run["step"].iloc[0] for run in runs), min(run["step"].iloc[-1] for run in runs), 200)
        mean = np.mean([np.interp(grid, run["step"], run["value"] * scale) for run in runs], axis=0)
        count = f", mean of {len(runs)} seeds" if len(runs) > 1 else ""
        ax.plot(grid, mean, linewidth=2.5, label=f"{condition}{count}", **style)
    ax.set_xlabel("environment steps")
    ax.set_ylabel(label)
    ax.grid(alpha=0.3)
    return ax


def figure(points: pd.DataFrame, title: str) -> Any:
    """Draw the dormant fraction beside the episode return."""
    drawing, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    draw_key(points, FRACTION, "dormant neurons [%]", 100.0, left)
    left.set_ylim(bottom=0)
    left.legend()
    draw_key(points, RETURN, "episode return (mean of the last 100)", 1.0, right)
    drawing.suptitle(title)
    return drawing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions", nargs="+", metavar="LABEL=FOLDER")
    parser.add_argument("--figure", type=Path, help="write a figure here")
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    pairs = [condition.rsplit("=", 1) for condition in arguments.conditions]
    points = pd.concat([read_condition(label, Path(folder)) for label, folder in pairs])
    print(table(points))
    if arguments.figure:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        figure(points, arguments.title).savefig(arguments.figure, dpi=110)


if __name__ == "__main__":
    main()
