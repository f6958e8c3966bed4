"""Writes the tables of docs/null_results.md: what made no difference that could be told."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from sb3_redo.reports.statistics import holm
from studies.intervals import MARK, family, rule
from studies.recycled_tables import late_tasks, markdown

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"
SWEEPS = {
    "small_replay_ratio": ("DQN on CartPole", "replay_ratio", "replay-ratio-dqn-on-cartpole"),
    "small_replay_ratio_fixed_steps": (
        "the same, another period of the target network",
        "replay_ratio",
        "replay-ratio-dqn-on-cartpole",
    ),
    "small_replay_ratio_n3": (
        "the same, three-step returns",
        "replay_ratio",
        "replay-ratio-with-returns-over-three-steps",
    ),
    "small_width": ("DQN on CartPole", "width", "width-dqn-on-cartpole"),
    "small_sac_width": ("SAC on HalfCheetah", "width", "width-sac-on-halfcheetah"),
}
Condition = tuple[str, str, str, str]
EPISODES = ": episode return (mean of the last 100 episodes)"
RETURN = f"final return{EPISODES}"
DORMANT = "dormant neurons at the end"
PROBED = "plasticity loss from the first probe to the end"
NULLS: dict[str, list[Condition]] = {
    "score_batch_size": [
        ("CartPole-v1", f"{DORMANT}, on 256 observations", "callback=redo 1024", "callback=redo 32"),
        ("CartPole-v1", RETURN, "callback=redo 1024", "callback=redo 32"),
    ],
    "pruning": [("CartPole-v1", RETURN, "callback=pruning", "callback=none")],
    "outgoing": [
        (environment, quantity, "callback=random", "callback=zero")
        for environment in ("CartPole-v1", "Acrobot-v1")
        for quantity in (DORMANT, RETURN)
    ],
    "activations": [
        ("CartPole-v1", RETURN, f"activation={name}", "activation=relu")
        for name in ("leaky relu", "elu", "gelu", "tanh")
    ],
    "threshold_period": [
        (
            "CartPole-v1",
            RETURN,
            "dormancy threshold=0.1, recycling period=100",
            "dormancy threshold=0, recycling period=2500",
        )
    ],
    "effective_rank": [("CartPole-v1", "srank of the features at the end", "callback=redo", "callback=none")],
    "layer_norm": [("CartPole-v1", PROBED, "layer norm=True", "layer norm=False")],
    "distillation": [("CartPole-v1", "Huber loss at the end", "student=pretrained", "student=fresh")],
    "block_mdp": [
        ("sb3_redo/BlockMDP-true-label-v0", PROBED, f"callback={name}", "callback=none")
        for name in ("weight decay", "shrink and perturb", "layer norm")
    ],
}
CONTRARY: dict[str, list[Condition]] = {
    "offline": [("CartPole-v1", "dead neurons at the end (threshold 0)", "targets=bootstrapped", "targets=fixed")],
    "layer_norm": [("CartPole-v1", RETURN, "layer norm=True", "layer norm=False")],
    "effective_rank": [
        ("CartPole-v1", f"{rank} rank of the features at the end", "callback=redo", "callback=none")
        for rank in ("effective", "stable")
    ],
}


def of_runs() -> str:
    """Write the differences between runs that share a seed."""
    found = [*_of_sweeps(), *_of_settings(), *_of_labels()]
    marked = family([difference for *_, difference in found], "+.3g")
    rows = [
        (what, where, len(difference.dropna()), written)
        for (what, where, difference), written in zip(found, marked, strict=True)
    ]
    table = markdown(["difference in", "of", "n", "mean [interval]"], rows)
    return f"{table}\n\n{rule(len(rows), 'all rows of the table')}"


def of_experiments(chosen: Mapping[str, list[Condition]]) -> str:
    """Write the differences between conditions of the small experiments of three seeds.

    Their files have the mean, the lowest and the highest seed, and so all three, but not which is which.

    :param chosen: of each experiment environment, quantity and two conditions
    """
    rows, p_values = [], []
    for name, conditions in chosen.items():
        numbers = pd.read_csv(DOCS / "experiments" / name / "numbers.csv").drop_duplicates(
            ["environment", "condition", "quantity", "sweep"]
        )
        for environment, quantity, one, other in conditions:
            mine = numbers[(numbers["environment"] == environment) & (numbers["quantity"] == quantity)]
            first, second = (three_seeds(mine[mine["condition"] == condition].iloc[0]) for condition in (one, other))
            test = stats.ttest_ind(first, second, equal_var=False)
            low, high = test.confidence_interval()
            p_values.append(test.pvalue)
            place = environment.removeprefix("sb3_redo/").removesuffix("-v1").removesuffix("-v0")
            written = f"{first.mean() - second.mean():+.3g} [{low:+.3g}, {high:+.3g}]"
            what = f"[{quantity.removesuffix(EPISODES)}](experiments/{name}.md)"
            rows.append([what, place, f"{one}, less {other}", "3, 3", written])
    for row, value in zip(rows, holm(p_values), strict=True):
        row[-1] += MARK if value < 0.05 else ""
    table = markdown(["difference in", "on", "between", "n", "mean [interval]"], rows)
    return (
        f"{table}\n\nDifferences of means with 95 % t intervals (Welch); shares of neurons are between 0 and 1.\n"
        f"{MARK.strip()} p < 0.05, by Holm over a family of {len(rows)}: all rows of the table."
    )


def read_labels() -> pd.DataFrame:
    """Read the classifiers whose labels change, by task."""
    return pd.read_csv(RESULTS / "recycling_labels.csv", dtype={"epsilon": str})


def three_seeds(row: "pd.Series[float]") -> np.ndarray:
    """Return the values of three seeds, of which a file has mean, lowest and highest."""
    assert row["runs"] == 3
    return np.array([row["low"], 3 * row["ours"] - row["low"] - row["high"], row["high"]])


def _of_sweeps() -> Iterator[tuple[str, str, "pd.Series[float]"]]:
    for name, (task, axis, anchor) in SWEEPS.items():
        for value, rows in pd.read_csv(RESULTS / f"{name}_runs.csv").groupby(axis):
            if (name, value) in (("small_width", 1), ("small_replay_ratio_fixed_steps", 1)):
                continue  # the runs of replay ratio 1 once more
            returns = rows.pivot(index="seed", columns="callback", values="final_return")
            where = f"[{task}, {axis.replace('_', ' ')} {value:g}](results.md#{anchor})"
            yield "return: ReDo less none", where, returns["redo"] - returns["none"]
    for name in ("small_replay_ratio", "small_replay_ratio_fixed_steps", "small_replay_ratio_n3"):
        task, axis, anchor = SWEEPS[name]
        runs = pd.read_csv(RESULTS / f"{name}_runs.csv")
        returns = runs[runs["callback"] == "none"].pivot(index="seed", columns=axis, values="final_return")
        what = "return without recycling: replay ratio 4 less 0.25"
        yield what, f"[{task}](results.md#{anchor})", returns[4.0] - returns[0.25]


def _of_settings() -> Iterator[tuple[str, str, "pd.Series[float]"]]:
    """Yield means over four thresholds and periods, by seed."""
    table = pd.read_csv(RESULTS / "recycling_settings.csv")
    for environment, rows in table[table["environment"] != "digits"].groupby("environment", sort=False):
        returns = rows.pivot_table(index="seed", columns="callback", values="return")
        where = f"[{environment}, four thresholds and periods](results/recycling.md#thresholds-and-periods)"
        yield "return: `match` less `clear`", where, returns["match"] - returns["clear"]


def _of_labels() -> Iterator[tuple[str, str, "pd.Series[float]"]]:
    """Yield what drawing weights until the neuron is active adds to the accuracy of a classifier."""
    for epsilon, rows in late_tasks(read_labels()).groupby("epsilon"):
        accuracies = rows.pivot(index="seed", columns="callback", values="return")
        where = f"[changing labels, epsilon {epsilon}](results/recycling.md#a-classifier-whose-labels-change)"
        for way in ("clear", "match"):
            what = f"accuracy [points]: `{way}` redrawn until active, less `{way}`"
            yield what, where, accuracies[f"{way}_active"] - accuracies[way]
