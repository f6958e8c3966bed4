"""Counts dormant neurons in a collection of trained agents, beside fresh networks of the same policies.

    python -m studies.census FOLDER --workers 2

Inspects every agent below the folder, and writes ``docs/results/census.csv`` and ``docs/images/census.png``. With
``--from TABLE``, an earlier table is drawn again and nothing is inspected. :mod:`studies.tables` writes the tables of
``docs/census.md``.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from sb3_redo.reports.styles import COLOURS

DOCS = Path(__file__).parents[1] / "docs"
TABLE, FIGURE = DOCS / "results/census.csv", DOCS / "images/census.png"
THRESHOLDS = ("0", "0.025", "0.1")
ALGORITHMS = ["DQN", "QRDQN", "DDPG", "TD3", "SAC", "TQC", "PPO", "A2C", "TRPO"]


def inspected(folder: Path, workers: int) -> pd.DataFrame:
    """Inspect every agent below a folder. Returns a row for each agent and layer, and one for each failure.

    :param folder: holds the agents
    :param workers: processes
    """
    with tempfile.NamedTemporaryFile(suffix=".csv") as table:
        command = [sys.executable, "-m", "sb3_redo", "inspect", "--recursive", str(folder), "--env", "auto"]
        subprocess.run([*command, "--workers", str(workers), "--csv", table.name], check=False)
        found = pd.read_csv(table.name)
    found["path"] = [str(Path(path).relative_to(folder)) for path in found["path"]]
    return found.drop(columns=["recyclable", "dormant", "dormant_fraction"]).round(4)


def of_agents(table: pd.DataFrame) -> pd.DataFrame:
    """Pool the layers of each agent, weighted by their neurons. Returns a row for each agent that opened.

    :param table: a row for each agent and layer
    """
    layers = table[table["status"] == "ok"]
    shares = [column for column in layers if "_fraction_" in column]
    about = ["path", "algorithm", "environment", "episode_return", "saved_return"]
    weighted = layers[shares].mul(layers["neurons"], axis=0).assign(neurons=layers["neurons"])
    pooled = weighted.groupby(layers["path"], sort=False).sum()
    pooled[shares] = pooled[shares].div(pooled["neurons"], axis=0)
    activation = layers.groupby("path", sort=False)["activation"].agg(lambda names: names.mode()[0])
    agents = layers.drop_duplicates("path")[about].set_index("path").join(pooled).assign(activation=activation)
    order = agents["algorithm"].map({name: number for number, name in enumerate(ALGORITHMS)})
    return agents.assign(order=order).sort_values(["order", "environment"]).drop(columns="order").reset_index()


def by_algorithm(agents: pd.DataFrame) -> str:
    """Return a Markdown table: the mean over agents of each algorithm and activation, in percent.

    :param agents: a row for each agent
    """
    shares = [f"{kind}_fraction_{t}" for t in THRESHOLDS for kind in ("dormant", "fresh")]
    means = agents.groupby(["algorithm", "activation"], sort=False)[shares].agg("mean")
    counts = agents.groupby(["algorithm", "activation"], sort=False).size()
    return _markdown(["algorithm", "activation", "agents"], [(*key, counts[key]) for key in means.index], means)


def by_position(table: pd.DataFrame) -> str:
    """Return a Markdown table: the mean over ReLU agents of each network's first, inner and last layers, in percent.

    :param table: a row for each agent and layer
    """
    layers = table[(table["status"] == "ok") & (table["activation"] == "ReLU")].copy()
    # A critic with several parts has the layers of one after those of another; their order within a part tells.
    part = [re.sub(r"\d+$", "", name) for name in layers["layer"]]
    within = layers.groupby(["path", "network", part], sort=False)
    first, last = within.cumcount() == 0, within.cumcount(ascending=False) == 0
    layers["position"] = ["first" if one else "last" if end else "inner" for one, end in zip(first, last, strict=True)]
    shares = [f"{kind}_fraction_{t}" for t in THRESHOLDS for kind in ("dormant", "fresh")]
    means = layers.groupby(["algorithm", "network", "position"])[shares].mean()
    counts = layers.groupby(["algorithm", "network", "position"]).size()
    order = {name: number for number, name in enumerate((*ALGORITHMS, "first", "inner", "last"))}
    means = means.sort_index(key=lambda index: [order.get(value, 0) for value in index])
    return _markdown(["algorithm", "network", "layer", "layers"], [(*key, counts[key]) for key in means.index], means)


def _markdown(names: list[str], keys: list[tuple[object, ...]], means: pd.DataFrame) -> str:
    head = [*names, *(f"{kind} at {t}" for t in THRESHOLDS for kind in ("agent", "fresh"))]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for key, row in zip(keys, means.to_numpy(), strict=True):
        lines.append("| " + " | ".join([*map(str, key), *(f"{100 * value:.0f}" for value in row)]) + " |")
    return "\n".join(lines)


def outcomes(table: pd.DataFrame) -> str:
    """Return a Markdown table of the agents that did not open, and why.

    :param table: a row for each agent and layer, and one for each failure
    """
    failed = table[table["status"] != "ok"]
    lines = ["| agent | reason |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| {path} | {why} |" for path, why in zip(failed["path"], failed["reason"], strict=True))]
    )


def draw(agents: pd.DataFrame, to: Path) -> None:
    """Draw every agent at threshold 0.1: its fresh network as a ring, the trained agent as a dot, a line between.

    :param agents: a row for each agent
    :param to: the file
    """
    figure, ax = plt.subplots(figsize=(7.5, 0.19 * len(agents) + 1.2), layout="constrained")
    colours = {"ReLU": COLOURS[0], "Tanh": COLOURS[1]}
    markers = {"ReLU": "o", "Tanh": "s"}
    shares, fresh_shares = list(agents["dormant_fraction_0.1"]), list(agents["fresh_fraction_0.1"])
    for row, agent in enumerate(agents.itertuples()):
        kind = agent.activation if agent.activation in colours else "ReLU"
        fresh, trained = 100 * fresh_shares[row], 100 * shares[row]
        ax.plot([fresh, trained], [row, row], color=colours[kind], linewidth=1)
        ax.plot(fresh, row, markers[kind], color=colours[kind], fillstyle="none", markersize=5)
        ax.plot(trained, row, markers[kind], color=colours[kind], markersize=5)
    labels = [f"{agent.algorithm}  {agent.environment}" for agent in agents.itertuples()]
    ax.set_yticks(range(len(agents)), labels, fontsize=7)
    ax.set_ylim(len(agents) - 0.5, -0.5)
    ax.set_xlabel("dormant neurons at threshold 0.1 [%], all layers pooled")
    ax.grid(axis="x", color="0.9")
    for kind, colour in colours.items():
        ax.plot([], [], markers[kind], color=colour, fillstyle="none", label=f"{kind}, fresh network")
        ax.plot([], [], markers[kind], color=colour, label=f"{kind}, trained agent")
    ax.legend(fontsize=7, loc="lower right")
    figure.savefig(to, dpi=150)
    plt.close(figure)


def main() -> None:
    """Make the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("folder", nargs="?", type=Path, help="holds the agents")
    source.add_argument("--from", dest="table", type=Path, help="a table that was made before")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    table = pd.read_csv(options.table) if options.table else inspected(options.folder, options.workers)
    table.to_csv(TABLE, index=False)
    agents = of_agents(table)
    draw(agents, FIGURE)


if __name__ == "__main__":
    main()
