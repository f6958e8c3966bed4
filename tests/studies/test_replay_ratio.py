"""The study of replay ratios: its contrasts, its p-values, and that the page shows what its files hold."""

import pandas as pd
import pytest

from studies import replay_ratio
from studies.recyclers import RandomReDo
from studies.replay_ratio import PAGE, Study, keep, primary, secondary, section, sections, written
from tests.helpers.algorithms import build


def runs(seeds=3):
    """Returns of `clear` at 4 that exceed those of `none` by 1, 2 and 3; all others differ by nothing."""
    rows = [
        ("CartPole-v1", ratio, callback, seed, 10.0 * seed + (1 + seed) * (callback == "clear" and ratio == 4))
        for ratio in (1, 4)
        for callback in replay_ratio.CONDITIONS
        for seed in range(seeds)
    ]
    table = pd.DataFrame(rows, columns=["environment", "replay_ratio", "callback", "seed", "return"])
    return table.assign(return_by_step=table["return"], return_late=table["return"], dormant=50.0)


def test_differences_are_paired_by_seed():
    written, p = Study.of(runs()).difference((("clear", 4), ("none", 4)))
    # Mean 2, standard deviation 1, n = 3: 2 +- 4.303 / sqrt(3), t = 3.464.
    assert written == "+2 [-0.484, +4.48]"
    assert p == pytest.approx(0.0742, abs=1e-4)
    assert Study.of(runs()).difference((("match", 4), ("none", 4))) == ("+0 [+0, +0]", 1.0)


def test_a_seed_counts_where_all_its_conditions_have_finished():
    table = runs()
    incomplete = table[(table["seed"] != 1) | (table["callback"] != "random")]
    assert list(Study.of(incomplete).cells.index) == [0, 2]


def test_the_families_are_those_of_the_plan():
    assert primary([0.25, 1, 4]) == [
        (("none", 4), ("none", 1)),
        (("clear", 1), ("none", 1)),
        (("match", 1), ("none", 1)),
        (("clear", 4), ("none", 4)),
        (("match", 4), ("none", 4)),
    ]
    assert len(secondary([0.25, 1, 4])) == 4 + 3 + 2
    assert len(secondary([1, 4])) == 4 + 2


def test_the_page_shows_what_its_files_hold():
    page = PAGE.read_text()
    assert written(page, sections()) == page


def test_a_section_is_written_between_its_markers():
    page = "a\n<!-- narrow -->\nold\n<!-- end of narrow -->\nb\n"
    assert written(page, {"narrow": "new"}) == "a\n<!-- narrow -->\n\nnew\n\n<!-- end of narrow -->\nb\n"
    assert "| 4 | `clear` |" in section(runs())


def test_runs_are_added_to_a_file_in_place_of_older_ones(tmp_path):
    keep(runs(2), tmp_path / "runs.csv")
    keep(runs(3).assign(dormant=40.0), tmp_path / "runs.csv")
    kept = pd.read_csv(tmp_path / "runs.csv")
    assert len(kept) == len(runs(3))
    assert set(kept["dormant"]) == {40.0}


class Recording(RandomReDo):
    """Keeps what was dormant and what was selected."""

    def recycle(self, neurons, report):
        self.seen = {"dormant": report.dormant_neurons(), "selected": dict(neurons)}
        return super().recycle(neurons, report)


def test_as_many_neurons_are_recycled_at_random_as_are_dormant():
    selections = []
    for seed in (1, 2):
        callback = Recording(dormancy_threshold=0.8, recycling_period=20, start=20, stop=21, batch_size=8, seed=seed)
        build("DQN").learn(100, callback=callback)
        dormant, selected = callback.seen["dormant"], callback.seen["selected"]
        assert dormant
        assert {name: len(neurons) for name, neurons in selected.items()} == {n: len(d) for n, d in dormant.items()}
        assert all(len(set(neurons.tolist())) == len(neurons) for neurons in selected.values())
        assert any(set(selected[name].tolist()) - set(dormant[name].tolist()) for name in dormant)
        selections.append({name: neurons.tolist() for name, neurons in selected.items()})
    assert selections[0] != selections[1]
