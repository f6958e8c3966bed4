"""Neurons that are followed over training: what is logged, gathered and written."""

import pandas as pd
import pytest
import torch

from studies import followed_neurons
from studies.followed_neurons import FILES, PAGE, FollowedDormancyCallback, gather, revival_table, revived
from studies.replay_ratio import written as written_page
from tests.helpers.algorithms import build
from tests.helpers.made_runs import write_events, write_run, write_sweep


def mask(*neurons):
    return torch.tensor(neurons, dtype=torch.bool)


def test_worked_numbers_of_revived_neurons():
    before = {"a": mask(1, 1, 0, 0), "b": mask(0, 0)}
    now = {"a": mask(1, 0, 1, 0), "b": mask(1, 0)}
    # One of the two that were dormant is active; none was in b.
    assert revived(before, now, 4) == {"revived_after/4": 0.5, "revived_after/4/a": 0.5}


def test_lags_and_quantiles_are_those_of_the_measurements(monkeypatch):
    seen, written = [], []
    monkeypatch.setattr(followed_neurons, "write_point", lambda logger, values, step: written.append(values))

    class Seen(FollowedDormancyCallback):
        def log(self, report, gradient_step):
            seen.append(report)
            super().log(report, gradient_step)

    build("DQN").learn(160, callback=Seen(dormancy_threshold=0.5, measuring_period=20, batch_size=8))
    assert len(written) == len(seen) > 2
    dormant = [torch.cat([layer.dormant for layer in report.layers]) for report in seen]
    assert written[2]["revived_after/2"] == pytest.approx(float((dormant[0] & ~dormant[2]).sum() / dormant[0].sum()))
    assert "revived_after/2" not in written[1]
    layer = seen[1].layers[0]
    assert written[1][f"score_quantile/0.5/{layer.name}"] == pytest.approx(float(layer.scores.quantile(0.5)))


def test_runs_are_gathered_by_layer_and_lag(tmp_path):
    for environment, condition, seed, folder in write_sweep(tmp_path / "sweep", {"callback": ["none"]}):
        write_run(environment, condition, seed, folder)
        points = [(step, "revived_after/2/q.0", 0.1 * seed + step / 1000) for step in (100, 300)]
        points += [(100, "revived_after/2", 0.5), (100, "score_quantile/0.05/q.0", 0.25 + seed)]
        write_events(folder / "events.out.tfevents.9.followed", points)
    revivals, scores = gather(tmp_path / "sweep")
    found = revivals.set_index(["layer", "seed"])["revived"]
    assert found["q.0", 1] == pytest.approx(0.3)
    assert found["all", 0] == pytest.approx(0.5)
    assert scores[["layer", "quantile", "step", "score"]].to_numpy().tolist() == [
        ["q.0", 0.05, 100, pytest.approx(0.75)]
    ]


def test_the_table_has_means_over_seeds_with_t_intervals():
    revivals = pd.DataFrame(
        [("CartPole-v1", seed, "all", 1, (seed + 1) / 100) for seed in range(3)],
        columns=["environment", "seed", "layer", "lag", "revived"],
    )
    assert revival_table(revivals).splitlines()[2] == "| CartPole-v1 | all | 2 [-0, 4] |"


def test_the_page_shows_what_its_file_holds():
    page = PAGE.read_text()
    assert written_page(page, {"revived": revival_table(pd.read_csv(FILES[0]))}) == page
