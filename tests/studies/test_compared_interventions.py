"""The study of interventions: its differences, and that the page shows what its file holds."""

import pandas as pd

from studies.compared_interventions import FILE, METHODS, PAGE, compared, section
from studies.replay_ratio import written


def runs():
    """Returns that `fire` raises by 1, 2 and 3 and the other methods leave as they are."""
    rows = [
        ("CartPole-v1", 4, way, seed, 10.0 * seed + (1 + seed) * (way == "fire"), 50.0)
        for way in ("none", *METHODS)
        for seed in range(3)
    ]
    return pd.DataFrame(rows, columns=["environment", "replay_ratio", "callback", "seed", "return", "dormant"])


def test_differences_are_paired_by_seed_and_adjusted_over_six():
    table = section(runs())
    # Mean 2, standard deviation 1, n = 3: 2 +- 4.303 / sqrt(3), t = 3.464; six times 0.0742 by Holm.
    assert "| `fire` | 12 [-15.3, 39.3] | 50 [50, 50] | +2 [-0.484, +4.48] | 0.074 | 0.445 |" in table
    assert "| `none` | 10 [-14.8, 34.8] | 50 [50, 50] | | | |" in table


def test_no_table_is_written_before_all_conditions_have_finished():
    table = runs()
    assert section(table[table["callback"] != "reset"]).startswith("No table yet")
    assert section(table[(table["callback"] != "reset") | (table["seed"] == 0)]).startswith("No table yet")


def test_the_page_shows_what_its_file_holds():
    page = PAGE.read_text()
    expected = {"interventions": section(compared())} if FILE.exists() else {}
    assert written(page, expected) == page
