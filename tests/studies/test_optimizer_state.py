"""Batched trainings of the study of optimizer states end as the package's own, and its page is made of its files."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import studies.batched_networks as batched
import studies.optimizer_state as study
import studies.optimizer_state_page as page
from sb3_redo.dormancy.meter import Meter
from sb3_redo.recycling.initial_weights import InitialWeights
from sb3_redo.recycling.step import Surgery, recycle
from sb3_redo.sb3.seeds import torch_generator
from sb3_redo.wiring.tracing import trace_wiring
from studies.renewed_weights import CountedSteps
from tests.helpers.marks import alternating

PERIOD, SEED, THRESHOLD = 20, 3, 0.5


class Reference:
    """Trains one network with torch's Adam, and recycles it with the package."""

    def __init__(self, training):
        torch.manual_seed(training.seed)
        self.network, self.training = batched.network_of(training.data), training
        self.inputs = batched.inputs_of(training.data).double()
        self.optimizer = torch.optim.Adam(self.network.parameters(), training.learning_rate, eps=training.epsilon)
        self.counted = CountedSteps([self.optimizer])
        wiring = trace_wiring(self.network, self.inputs[:2])
        self.meter = Meter(self.network, wiring, {layer.name: "network" for layer in wiring})
        self.initial_weights = InitialWeights(lambda: batched.network_of(training.data), untrained=self.network)

    def step(self, rows, labels):
        self.optimizer.zero_grad()
        cross_entropy(self.network(self.inputs[rows]), labels[rows]).backward()
        self.optimizer.step()

    def recycle(self, step):
        report = self.meter.measure(self.network, self.inputs, self.training.threshold)
        neurons = report.dormant_neurons()
        before, method = self.counted.values(), self.training.method
        surgery = Surgery(optimizer_state="clear" if method == "count" else method)
        generator = torch_generator((SEED, step))
        recycle(self.network, report.wiring, neurons, [self.optimizer], self.initial_weights, generator, surgery)
        if method == "count":
            self.counted.note(before)
        return sum(map(len, neurons.values()))

    def values(self):
        return nn.utils.parameters_to_vector(self.network.parameters()).detach()


@pytest.fixture
def exact():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("data", "method"), alternating(list(batched.DATA), list(page.STATES)))
def test_one_of_a_batch_is_trained_and_recycled_as_the_package_does_it(data, method, exact, monkeypatch):
    trainings = [batched.Training(data, method, 1.5e-4, 3e-3, 0.1, PERIOD, SEED + 1)]
    trainings += [batched.Training(data, method, 1e-8, 3e-3, THRESHOLD, PERIOD, SEED)]
    networks, reference = batched.Networks(trainings), Reference(trainings[1])
    monkeypatch.setattr(networks, "fresh", lambda draws, seed, step: reference.values().numpy())
    draws, recycled = np.random.default_rng(0), []
    for step in range(1, 4 * PERIOD):
        labels = torch.from_numpy(draws.integers(10, size=batched.INPUTS))
        rows = torch.from_numpy(draws.integers(batched.INPUTS, size=32))
        networks.step(rows.expand(2, -1), labels.expand(2, -1))
        reference.step(rows, labels)
        if step % PERIOD == 0:
            recycled.append(reference.recycle(step))
        networks.recycle(step)
        torch.testing.assert_close(networks.values[1], reference.values(), rtol=0, atol=1e-6)
    assert len(recycled) == 3
    assert min(recycled) > 0


def test_controls_renew_as_many_neurons_of_each_layer(monkeypatch):
    renewed = {}
    for method in ("match", "random_match"):
        networks = batched.Networks([batched.Training("digits", method, 1e-8, 1e-3, THRESHOLD, PERIOD, SEED)])
        monkeypatch.setattr(networks, "renew", lambda chosen, fresh, of=method: renewed.update({of: chosen}))
        networks.recycle(PERIOD + 1)
        assert method not in renewed
        networks.recycle(PERIOD)
    counts = {method: [int(mask.sum()) for mask in masks] for method, masks in renewed.items()}
    assert counts["match"] == counts["random_match"]
    assert min(counts["match"]) > 0
    assert not all(map(torch.equal, renewed["match"], renewed["random_match"]))


# The choice of settings, and what is done after an interruption


def outcomes(*rows):
    return pd.DataFrame(rows, columns=[*batched.SETTINGS, "accuracy"])


def test_each_method_gets_its_best_settings_by_the_mean_over_seeds():
    table = outcomes(
        ("digits", "match", 1e-8, 1e-3, 0.1, 100, 50, 0.5),
        ("digits", "match", 1e-8, 1e-3, 0.1, 100, 51, 0.7),
        ("digits", "match", 1e-8, 3e-3, 0.1, 400, 50, 0.9),
        ("digits", "match", 1e-8, 3e-3, 0.1, 400, 51, 0.2),
        ("digits", "match", 1.5e-4, 3e-4, 0.025, 400, 50, 0.1),
        ("digits", "count", 1e-8, 3e-3, 0.1, 100, 50, 0.8),
    )
    assert study.confirming(table, "digits", "match", [100, 101]) == [
        batched.Training("digits", "match", 1e-8, 1e-3, 0.1, 100, 100),
        batched.Training("digits", "match", 1e-8, 1e-3, 0.1, 100, 101),
        batched.Training("digits", "match", 1.5e-4, 3e-4, 0.025, 400, 100),
        batched.Training("digits", "match", 1.5e-4, 3e-4, 0.025, 400, 101),
    ]
    assert not set(study.SEEDS) & set(study.CHOOSING_SEEDS)


def test_a_second_start_trains_what_is_missing(tmp_path, monkeypatch):
    trained = []

    def train_batch(trainings):
        trained.append(trainings[0].method)
        return outcomes(*((*vars(each).values(), 0.5) for each in trainings))

    monkeypatch.setattr(study, "train_batch", train_batch)
    for methods in (["none", "match"], ["match", "count"]):
        table = study.run(tmp_path / "new" / "runs.csv", (study.grid("digits", each, [1]) for each in methods))
    assert trained == ["none", "match", "count"]
    assert table["method"].value_counts().to_dict() == {"none": 6, "match": 24, "count": 24}


def test_a_training_is_the_same_again_and_learns():
    trainings = [batched.Training("digits", "count", 1e-8, 3e-3, 0.1, 100, seed) for seed in (1, 2)]
    first, again = (study.train_batch(trainings, tasks=1, steps=200) for _ in range(2))
    assert first.equals(again)
    assert first["accuracy"].min() > 0.3  # 0.1 is chance


# The page


def test_p_values_are_corrected_by_holm():
    assert page.holm([0.01, 0.04, 0.03, 0.6]).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.6])


def made_runs():
    """Accuracies of three seeds: each state is 10 points above the one before it, ``count`` in one setting below."""
    levels = {method: 0.1 * number for number, method in enumerate(("none", *page.STATES))}
    rows = [
        (data, method, 1e-8, 1e-3, 0.1, 100, seed, level + noise * levels[method], level, 0.0)
        for data, of_count in (("digits", 0.4), ("cancer", 0.2))
        for method, level in {**levels, "count": of_count}.items()
        for seed, noise in ((100, 0.0), (101, 0.01), (102, 0.0))
    ]
    return pd.DataFrame(rows, columns=[*batched.SETTINGS, "accuracy", "accuracy_all", "dormant"])


def test_wins_are_counted_by_setting():
    results = page.Results(made_runs())
    family = results.family("States")
    assert len(family) == 12
    worked = family[(family["pair"] == ("count", "match")) & (family["setting"] == ("digits", 1e-8))].iloc[0]
    assert worked["difference"] == pytest.approx(10 + 0.1 / 3)
    assert worked["high"] - worked["difference"] == pytest.approx(4.3027 * 0.1 / 3, rel=1e-3)
    assert results.best_in(family, "count") == [("digits", 1e-8)]
    assert results.best_in(family, "match") == [("cancer", 1e-8)]
    assert [results.above(family, *pair) for pair in (("count", "match"), ("match", "count"))] == [1, 1]


def test_the_page_is_what_its_files_say():
    text = page.PAGE.read_text()
    runs, choosing = (pd.read_csv(study.RESULTS / name) for name in (study.CONFIRMING, study.CHOOSING))
    assert page.page_with(text, runs, choosing) == text, "run python -m studies.optimizer_state --page"
    assert set(runs["seed"]) == set(study.SEEDS)
    assert set(choosing["seed"]) == set(study.CHOOSING_SEEDS)
    names = batched.SETTINGS[:-1]
    ran, chosen = (
        table[names].sort_values(names, ignore_index=True)
        for table in (runs.drop_duplicates(names), study.best(choosing))
    )
    pd.testing.assert_frame_equal(ran, chosen)


def test_the_figure_has_a_panel_for_each_setting(tmp_path, monkeypatch):
    panels = []
    monkeypatch.setattr(page.plt, "close", lambda figure: panels.extend(ax.get_title() for ax in figure.axes))
    page.draw(made_runs(), tmp_path / "figure.png")
    assert panels[0] == "digits, Adam's epsilon 1e-8"
    assert (tmp_path / "figure.png").stat().st_size > 10_000
