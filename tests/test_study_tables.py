"""The tables of the study of recycling: paired differences, ages, and what a file of them keeps."""

import pandas as pd
import pytest

from benchmarks.recycled import _runs, gather, rows, survival, whole_runs, with_epsilon


def runs():
    """Two seeds with and without recycling, and a third of which the other half is missing."""
    return with_epsilon(
        pd.DataFrame(
            [
                ("CartPole-v1", "none_1.5e-4", 0, 60.0, 10.0),
                ("CartPole-v1", "none_1.5e-4", 1, 50.0, 20.0),
                ("CartPole-v1", "match_1.5e-4", 0, 20.0, 13.0),
                ("CartPole-v1", "match_1.5e-4", 1, 14.0, 27.0),
                ("CartPole-v1", "match_1.5e-4", 2, 14.0, 50.0),
            ],
            columns=["environment", "callback", "seed", "fraction", "return"],
        )
    )


def followed():
    """Recycled neurons at three ages, of two seeds."""
    values = {0: (0.5, 0.0), 10: (0.2, 0.03), 300: (0.9, 0.01)}
    return pd.DataFrame(
        [
            ("Acrobot-v1", "1e-8", "clear", seed, age, dormant + 0.1 * seed, 0.1, contribution)
            for seed in (0, 1)
            for age, (dormant, contribution) in values.items()
        ],
        columns=["environment", "epsilon", "callback", "seed", "age"]
        + [f"survival/{name}" for name in ("dormant", "norm", "contribution")],
    )


def test_the_epsilon_is_split_off_a_label():
    assert set(runs()["callback"]) == {"none", "match"}
    assert set(runs()["epsilon"]) == {"1.5e-4"}
    assert list(with_epsilon(pd.DataFrame({"callback": ["clear_active"]}))["epsilon"]) == ["1e-8"]


def test_differences_are_those_of_the_same_seed():
    lines = dict(rows(runs()))
    fraction, fewer, returns, gain = lines["match: layer's mean"]
    assert fraction.startswith("16 [")
    assert returns.startswith("30 [")
    # Of seeds 0 and 1 alone, -40 and -36, +3 and +7. All seeds would give -39 and +15.
    assert fewer == "-38 [-40, -36]"
    assert gain == "+5 [+3, +7]"
    assert lines["no recycling"][1] == lines["no recycling"][3] == ""


def test_neurons_are_followed_by_age(capsys):
    survival(followed(), None)
    printed = capsys.readouterr().out
    assert "| | 0 | 10 | 300 |" in printed
    assert "| clear (the paper) | 55 | 25 | 95 |" in printed
    assert "| | 1e-8: dormant [%] after 10 | 300 | 1e-8: contribution [%] after 10 | 300 |" in printed
    assert "| clear (the paper) | 25 | 95 | 3.0 | 1.0 |" in printed


@pytest.mark.parametrize("make", [runs, followed])
def test_a_file_is_read_as_it_was_written(tmp_path, make):
    make().to_csv(tmp_path / "table.csv", index=False)
    pd.testing.assert_frame_equal(gather([tmp_path / "table.csv"], whole_runs), make())


def test_runs_are_paired_within_their_epsilon(capsys):
    rows = [
        ("none", 0, 40.0, 1.0),
        ("none", 1, 50.0, 2.0),
        ("clear_active", 0, 10.0, 1.5),
        ("clear_active", 1, 20.0, 2.5),
        ("none_1.5e-4", 0, 30.0, 4.0),
        ("none_1.5e-4", 1, 32.0, 4.0),
        ("clear_active_1.5e-4", 1, 12.0, 3.0),
        ("clear_active_1.5e-4", 0, 10.0, 3.0),
    ]
    table = pd.DataFrame(rows, columns=["callback", "seed", "fraction", "return"]).assign(environment="CartPole-v1")
    _runs(with_epsilon(table), "return", None)
    usual, larger = capsys.readouterr().out.split("CartPole-v1, Adam's epsilon ")[1:]
    assert usual.startswith("1e-8, 2 seeds")
    assert larger.startswith("1.5e-4, 2 seeds")
    active = "| clear, redrawn until active | 15 [10, 20] | -30 [-30, -30] | 2.00 [1.50, 2.50] | +0.50 [+0.50, +0.50] |"
    assert active in usual
    assert "| clear, redrawn until active | 11 [10, 12] | -20 [-20, -20] | 3.00 [3.00, 3.00] |" in larger
