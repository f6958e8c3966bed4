"""The tables of the study of recycling: paired differences, ages, and what a file of them keeps."""

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from studies.recycled import _runs, gather, main, rows, with_epsilon
from studies.recycled_ages import by_age, survival
from studies.recycled_figures import QUANTITIES
from tests.helpers.made_runs import write_events, write_run, write_sweep


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
    """Recycled neurons at three ages, of two seeds; only with clear at both epsilons and in both environments."""
    values = {0: (0.5, 0.0), 10: (0.2, 0.03), 300: (0.9, 0.01)}
    conditions = [("Acrobot-v1", "1e-8", "clear"), ("Acrobot-v1", "1.5e-4", "clear"), ("Acrobot-v1", "1.5e-4", "own")]
    return pd.DataFrame(
        [
            (*condition, seed, age, dormant + 0.1 * seed, 0.25, contribution * scale)
            for scale, condition in enumerate([*conditions, ("CartPole-v1", "1e-8", "clear")], start=1)
            for seed in (0, 1)
            for age, (dormant, contribution) in values.items()
        ],
        columns=["environment", "epsilon", "callback", "seed", "age", *QUANTITIES],
    )


def show(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["recycled", *map(str, arguments)])
    main()


@pytest.fixture
def file(tmp_path):
    followed().to_csv(tmp_path / "followed.csv", index=False)
    return tmp_path / "followed.csv"


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


def test_values_stand_under_their_epsilon(capsys):
    """Also those of a way to recycle that only one of them has."""
    survival(followed(), None)
    table = capsys.readouterr().out.split("\nAcrobot-v1\n")[1]
    assert (
        "| | 1e-8: dormant [%] after 10 | 300 | 1e-8: norm [%] after 300 | 1e-8: contribution [%] after 10 |" in table
    )
    assert "| clear (the paper) | 25 | 95 | 25 | 3.0 | 1.0 | 25 | 95 | 25 | 6.0 | 2.0 |" in table
    assert "| second moment kept | - | - | - | - | - | 25 | 95 | 25 | 9.0 | 3.0 |" in table


def test_contributions_are_medians_over_seeds(capsys):
    table = followed()[:3]
    extremes = [
        table.assign(seed=seed, **{"survival/contribution": share}) for seed, share in enumerate((0.01, 0.02, 0.3))
    ]
    survival(pd.concat(extremes), None)
    assert "| clear (the paper) | 20 | 90 | 25 | 2.0 | 2.0 |" in capsys.readouterr().out


def test_match_is_compared_seed_by_seed(capsys):
    table = followed()
    better = table[(table["epsilon"] == "1e-8") & (table["environment"] == "Acrobot-v1")].assign(callback="match")
    better["survival/contribution"] += 0.02 + 0.02 * better["seed"]
    survival(pd.concat([table, better.iloc[::-1], better.assign(epsilon="1.5e-4", seed=7)]), None)
    printed = capsys.readouterr().out
    assert "Acrobot-v1: contribution with match, against that with others, after 300 [points]" in printed
    assert "| clear (the paper) | +3.0 [+2.0, +4.0] | - |" in printed


def test_a_sweep_is_read_by_age(tmp_path):
    axes = {"policy_kwargs": ["1e-8", "1.5e-4"], "callback": ["clear"]}
    for environment, condition, seed, folder in write_sweep(tmp_path / "sweep", axes):
        write_run(environment, condition, seed, folder)
        ages = {100: 0, 101: 1, 110: 10}
        values = {"age": lambda age: age, "dormant": lambda age: age / 20, "norm": float, "contribution": float}
        values["neurons"] = lambda age: 7 + age * 0
        points = [(step, f"survival/{name}", of(age)) for step, age in ages.items() for name, of in values.items()]
        write_events(folder / "events.out.tfevents.9.followed", points)
    table = by_age(tmp_path / "sweep")
    assert table["age"].tolist() == [0, 1, 10] * 4
    assert set(table["environment"]) == {"CartPole-v1"}
    assert set(zip(table["epsilon"], table["seed"], strict=True)) == {
        (e, s) for e in axes["policy_kwargs"] for s in (0, 1)
    }
    assert table["survival/dormant"].tolist() == pytest.approx([0.0, 0.05, 0.5] * 4)
    assert "step" not in table


def test_a_seed_without_a_value_is_not_left_out_in_silence(capsys):
    table = followed()
    table.loc[(table["seed"] == 1) & (table["age"] == 300), "survival/contribution"] = float("nan")
    survival(table, None)
    printed = capsys.readouterr().out
    assert "| clear (the paper) | 0.0 | 3.0 | - |" in printed
    assert "| clear (the paper) | 25 | 95 | 25 | 3.0 | - |" in printed


def test_the_figure_has_a_row_for_each_environment_and_epsilon(monkeypatch):
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: seen.append(self))
    table = followed()
    # Of one of those that grow late.
    table.loc[(table["environment"] == "CartPole-v1") & (table["age"] == 300), "age"] = 3000
    table.loc[(table["environment"] == "CartPole-v1") & (table["age"] == 3000), "survival/contribution"] = 50.0
    survival(table, Path("figure.png"))
    titles = [ax.get_title() for ax in seen[0].axes[2::3]]
    assert titles == [
        "Acrobot-v1, Adam's epsilon 1e-8",
        "Acrobot-v1, Adam's epsilon 1.5e-4",
        "CartPole-v1, Adam's epsilon 1e-8",
    ]
    tops = [ax.get_ylim()[1] for ax in seen[0].axes[2::3]]
    assert tops[0] == tops[1] > 9
    assert 12 < tops[2] < 13


def test_a_file_is_shown_as_it_was_written(monkeypatch, capsys, file, tmp_path):
    show(monkeypatch, "survival", file, "--table", tmp_path / "again.csv")
    first = capsys.readouterr().out
    show(monkeypatch, "survival", tmp_path / "again.csv")
    assert capsys.readouterr().out == first
    pd.testing.assert_frame_equal(gather([tmp_path / "again.csv"], by_age), followed())


def test_files_and_environments_are_put_together_and_chosen(monkeypatch, capsys, file):
    show(monkeypatch, "survival", file, "--environment", "CartPole-v1")
    chosen = capsys.readouterr().out
    assert "CartPole-v1, Adam's epsilon 1e-8, 2 seeds" in chosen
    assert "Acrobot-v1" not in chosen
    assert len(gather([file, file], by_age)) == 2 * len(followed())
    with pytest.raises(SystemExit):
        show(monkeypatch, "survival", file, "--environment", "Pendulum-v1")
    assert "nothing is of Pendulum-v1, but of Acrobot-v1, CartPole-v1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        show(monkeypatch, "labels", file, "--environment", "CartPole-v1")
    assert "shown as a whole" in capsys.readouterr().err


def test_runs_are_paired_within_their_epsilon(capsys):
    of_runs = [
        ("none", 0, 40.0, 1.0),
        ("none", 1, 50.0, 2.0),
        ("clear_active", 0, 10.0, 1.5),
        ("clear_active", 1, 20.0, 2.5),
        ("none_1.5e-4", 0, 30.0, 4.0),
        ("none_1.5e-4", 1, 32.0, 4.0),
        ("clear_active_1.5e-4", 1, 12.0, 3.0),
        ("clear_active_1.5e-4", 0, 10.0, 3.0),
    ]
    table = pd.DataFrame(of_runs, columns=["callback", "seed", "fraction", "return"]).assign(environment="CartPole-v1")
    _runs(with_epsilon(table), "return", None)
    usual, larger = capsys.readouterr().out.split("CartPole-v1, Adam's epsilon ")[1:]
    assert usual.startswith("1e-8, 2 seeds")
    assert larger.startswith("1.5e-4, 2 seeds")
    active = "| clear, redrawn until active | 15 [10, 20] | -30 [-30, -30] | 2.00 [1.50, 2.50] | +0.50 [+0.50, +0.50] |"
    assert active in usual
    assert "| clear, redrawn until active | 11 [10, 12] | -20 [-20, -20] | 3.00 [3.00, 3.00] |" in larger
