"""Compares ways to treat the optimizer state of recycled neurons, each at its own best settings.

    python -m studies.optimizer_state
    python -m studies.optimizer_state --page

docs/studies/optimizer_state.md has the plan and the results. Needs scikit-learn and Pillow for the inputs. Rows are
added to the files as batches of trainings end, and a second start goes on with what is missing. ``--page`` writes the
page's tables and figure from the files alone.
"""

import argparse
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from studies.batched_networks import CLASSES, DATA, SETTINGS, Networks, Training
from studies.optimizer_state_page import CONTROLS, STATES, write

TASKS, STEPS, BATCH = 20, 400, 32
LATE = 10
"""Tasks at the end of a training, whose mean accuracy is the outcome."""

RATES, EPSILONS, THRESHOLDS, PERIODS = (3e-4, 1e-3, 3e-3), (1e-8, 1.5e-4), (0.025, 0.1), (100, 400)
CHOOSING_SEEDS, SEEDS = range(50, 52), range(100, 120)
RESULTS, CHOOSING, CONFIRMING = Path("docs/results"), "optimizer_state_choosing.csv", "optimizer_state.csv"


def train_batch(trainings: Sequence[Training], tasks: int = TASKS, steps: int = STEPS) -> pd.DataFrame:
    """Train networks of one data set and one method, all at once.

    :return: a row for each: its settings, ``accuracy`` and ``dormant`` at the ends of the last ``LATE`` tasks, and
        ``accuracy_all`` of all tasks
    """
    torch.set_num_threads(1)
    networks = Networks(trainings)
    draws = [np.random.default_rng(seed) for seed in networks.seeds]
    n_inputs, of = len(networks.inputs), networks.seed_of
    accuracies, dormant = [], []
    for task in range(tasks):
        labels = torch.from_numpy(np.stack([each.integers(CLASSES, size=n_inputs) for each in draws])[of])
        batches = torch.from_numpy(np.stack([each.integers(n_inputs, size=(steps, BATCH)) for each in draws]))
        for step in range(steps):
            networks.step(batches[of, step], labels)
            # Measured before anything is recycled.
            if step == steps - 1:
                accuracies.append(networks.accuracy(labels))
                dormant.append(networks.dormant_fraction())
            networks.recycle(task * steps + step + 1)
    table = pd.DataFrame([vars(each) for each in trainings])
    values = {
        "accuracy": torch.stack(accuracies)[-LATE:].mean(0),
        "accuracy_all": torch.stack(accuracies).mean(0),
        "dormant": torch.stack(dormant)[-LATE:].mean(0),
    }
    return table.assign(**{name: value.numpy().round(4) for name, value in values.items()})


def grid(data: str, method: str, seeds: Iterable[int]) -> list[Training]:
    """List the trainings among which a method's best settings are chosen."""
    recycling = [(0.0, 0)] if method == "none" else list(product(THRESHOLDS, PERIODS))
    return [
        Training(data, method, epsilon, rate, threshold, period, seed)
        for epsilon, rate, (threshold, period), seed in product(EPSILONS, RATES, recycling, seeds)
    ]


def best(choosing: pd.DataFrame) -> pd.DataFrame:
    """Return the settings of the highest mean accuracy, a row for each data set, method and epsilon."""
    means = choosing.groupby(SETTINGS[:-1], sort=False)["accuracy"].mean().reset_index()
    rows = means.groupby(SETTINGS[:3], sort=False)["accuracy"].idxmax()
    return means.loc[rows].reset_index(drop=True)


def confirming(choosing: pd.DataFrame, data: str, method: str, seeds: Iterable[int]) -> list[Training]:
    """List the trainings that are reported, each at the chosen settings."""
    table = best(choosing)
    chosen = table[(table["data"] == data) & (table["method"] == method)][SETTINGS[:-1]]
    return [Training(**row, seed=seed) for row in chosen.to_dict("records") for seed in seeds]


def run(file: Path, batches: Iterable[Sequence[Training]]) -> pd.DataFrame:
    """Train the batches of which a file has nothing, and add them to it.

    :return: all that the file holds then
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    for trainings in batches:
        first = trainings[0]
        known = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=SETTINGS)
        if ((known["data"] == first.data) & (known["method"] == first.method)).any():
            continue
        rows = train_batch(trainings)
        # In one write, so that a kill leaves no half of a batch.
        with open(file, "a") as out:
            out.write(rows.to_csv(index=False, header=out.tell() == 0))
        print(f"{file.name}: {first.data}, {first.method}, {len(rows)} trainings", flush=True)
    return pd.read_csv(file)


def main() -> None:
    """Choose settings, train at them, and write the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files (default: %(default)s)")
    parser.add_argument("--page", action="store_true", help="train nothing, and write the page")
    options = parser.parse_args()
    for data, method in [*product(DATA, ("none", *STATES)), *product(DATA, CONTROLS)] if not options.page else []:
        choosing = run(options.results / CHOOSING, [grid(data, method, CHOOSING_SEEDS)])
        run(options.results / CONFIRMING, [confirming(choosing, data, method, SEEDS)])
    write(pd.read_csv(options.results / CONFIRMING), pd.read_csv(options.results / CHOOSING))


if __name__ == "__main__":
    main()
