"""Compares ways to renew neurons while a classifier learns one random labelling of the digits after another.

    python -m studies.shuffled_labels --out runs/shuffled_labels.csv --workers 2
    python -m studies.recycled labels runs/shuffled_labels.csv --figure docs/images/recycling_labels.png
    python -m studies.shuffled_labels --follow --out runs/followed_labels.csv --workers 2
    python -m studies.recycled survival runs/followed_labels.csv

The images stay, their labels are drawn anew for every task, and network and optimizer go on (Sokar et al. 2023,
figure 3; Lyle et al. 2023, 4.1). Three ReLU layers of 128, Adam at 1e-3, 20 tasks of 700 steps of 64 images, dormancy
threshold 0.025, recycling every 100 steps. With ``--follow`` neurons are recycled once, after ten tasks, and followed.
Needs scikit-learn for the images. Rows are added to the file as trainings end, and a second start goes on with what is
missing.
"""

import argparse
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from itertools import product
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.experiments.classifier import Classifier
from sb3_redo.experiments.classifier_settings import ClassifierSettings
from sb3_redo.recycling.optimizer_state import SecondMoment
from sb3_redo.recycling.step import Surgery, recycle
from sb3_redo.sb3.seeds import torch_generator
from studies.recyclers import (
    Masks,
    median_of_live,
    own_second_moment,
    recycled_neurons,
    redraw_until_active,
)
from studies.renewed_weights import CountedSteps, FirstGradient
from studies.survival import AGES, fates

EPSILONS = {"1e-8": 1e-8, "1.5e-4": 1.5e-4}
SURGERIES = {
    "clear": Surgery(optimizer_state="clear"),
    "restart": Surgery(optimizer_state="restart"),
    "match": Surgery(optimizer_state="match"),
    "median": Surgery(optimizer_state=SecondMoment(median_of_live)),
    "own": Surgery(optimizer_state=SecondMoment(own_second_moment, shared=False)),
    "gradient": Surgery(optimizer_state="clear"),
    "counted": Surgery(optimizer_state="clear"),
    "clear_active": Surgery(optimizer_state="clear"),
    "match_active": Surgery(optimizer_state="match"),
}
HOOKS = {"gradient": FirstGradient, "counted": CountedSteps}
MODES = ("none", *SURGERIES)


@cache
def digits() -> Tensor:
    """Return the images of scikit-learn's digits, [1797, 64], in [0, 1]."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data.astype(np.float32) / 16)


class Renewing(Classifier):
    """Trains a classifier whose dormant neurons are renewed in one of the ways."""

    def __init__(self, mode: str, epsilon: float, seed: int):
        super().__init__(ClassifierSettings(), digits(), 10, seed)
        self.mode = mode
        self.optimizer.param_groups[0]["eps"] = epsilon
        self.hooks = HOOKS[mode]([self.optimizer]) if mode in HOOKS else None
        self.recycled: Masks = {}

    def recycle(self, step: int) -> int:
        """Recycle as :class:`Classifier` does, or nothing with the mode ``none``."""
        if self.mode == "none":
            return 0
        report = self.measure(self.some_inputs(step))
        self.recycled = recycled_neurons(report)
        before = self.hooks.values() if self.hooks else {}
        recycled = self._renew(report, 0, step)
        if self.hooks:
            self.hooks.note(before)
        if self.mode.endswith("_active"):
            redraw_until_active(
                self.network,
                self.recycled,
                lambda: self.measure(report.batch),
                lambda again, attempt: self._renew(again, attempt, step),
                redraws=20,
            )
        return recycled

    def _renew(self, report: DormancyReport, attempt: int, step: int) -> int:
        generator = torch_generator((self.seed + attempt * 2**32, step))
        surgery = SURGERIES[self.mode]
        neurons, optimizers = report.dormant_neurons(), [self.optimizer]
        return recycle(
            self.network, report.wiring, neurons, optimizers, self.initial_weights, generator, surgery
        ).recycled


def train_mode(mode: str, epsilon: str, seed: int, tasks: int = 20, steps: int = 700) -> pd.DataFrame:
    """Train, and measure at the end of each task, before anything is recycled there.

    :return: columns ``mode``, ``epsilon``, ``seed``, ``task``, ``accuracy`` and ``dormant``, of all images
    """
    torch.set_num_threads(1)
    classifier, draws, rows = Renewing(mode, EPSILONS[epsilon], seed), np.random.default_rng(seed), []
    settings = classifier.settings
    for task in range(tasks):
        labels = torch.from_numpy(draws.integers(10, size=len(digits())))
        for step in range(1, steps + 1):
            classifier.step(draws.integers(len(digits()), size=settings.batch_size), labels)
            if step == steps:
                dormant = classifier.measure(digits()).dormant_fraction
                rows.append((mode, epsilon, seed, task, classifier.accuracy(labels), dormant))
            if step % settings.period == 0:
                classifier.recycle(task * steps + step)
    return pd.DataFrame(rows, columns=["mode", "epsilon", "seed", "task", "accuracy", "dormant"])


def follow(
    mode: str, epsilon: str, seed: int, ages: tuple[int, ...] = AGES, tasks: int = 10, steps: int = 700
) -> pd.DataFrame:
    """Recycle once after some tasks, and go on with the next ones.

    :return: as :func:`studies.recycled_ages.by_age`, of all images
    """
    torch.set_num_threads(1)
    classifier, draws, rows = Renewing(mode, EPSILONS[epsilon], seed), np.random.default_rng(seed), []
    settings, born = classifier.settings, tasks * steps
    for step in range(born + max(ages) + 1):
        if step % steps == 0:
            labels = torch.from_numpy(draws.integers(10, size=len(digits())))
        if step == born:
            classifier.recycle(step)
        if step - born in ages:
            about = {"environment": "shuffled labels", "epsilon": epsilon, "callback": mode, "seed": seed}
            values = fates(classifier.measure(digits()), classifier.recycled, classifier.network)
            rows.append({**about, "age": step - born, **values})
        classifier.step(draws.integers(len(digits()), size=settings.batch_size), labels)
    return pd.DataFrame(rows)


def missing(out: Path, seeds: Iterable[int], modes: Iterable[str]) -> list[tuple[str, str, int]]:
    """List the trainings of which the file has nothing: mode, epsilon and seed."""
    wanted = [(mode, epsilon, seed) for epsilon, seed, mode in product(EPSILONS, seeds, modes)]
    if not out.exists():
        return wanted
    known = pd.read_csv(out, dtype={"epsilon": str}).rename(columns={"callback": "mode"})
    done = set(known[["mode", "epsilon", "seed"]].itertuples(index=False, name=None))
    return [training for training in wanted if training not in done]


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV file of the results")
    parser.add_argument("--follow", action="store_true", help="recycle once, and follow the neurons")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="trainings at once (default: %(default)s)")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    make: Callable[[str, str, int], pd.DataFrame] = follow if options.follow else train_mode
    trainings = missing(options.out, range(options.seeds), SURGERIES if options.follow else MODES)
    with ProcessPoolExecutor(options.workers) as pool:
        started = {pool.submit(make, mode, epsilon, seed): (mode, epsilon, seed) for mode, epsilon, seed in trainings}
        for number, done in enumerate(as_completed(started), start=1):
            rows = done.result()
            # In one write, so that a kill leaves no half of a training.
            with open(options.out, "a") as file:
                file.write(rows.to_csv(index=False, header=file.tell() == 0))
            mode, epsilon, seed = started[done]
            print(f"finished {number}/{len(trainings)}: {mode}, epsilon {epsilon}, seed {seed}", flush=True)


if __name__ == "__main__":
    main()
