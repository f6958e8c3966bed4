"""The tables of the study of recycling: paired differences, ages, what a file keeps, and that the docs have them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from sb3_redo.experiments.numbers import beside_table
from studies import tables
from studies.intervals import cell, family
from studies.null_results import three_seeds
from studies.recycled import gather, main, with_epsilon
from studies.recycled_ages import by_age
from studies.recycled_figures import QUANTITIES, draw_survival
from studies.recycled_tables import growth, late_tasks, pairs, ways
from tests.helpers.made_runs import write_events, write_run, write_sweep

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "<!-- table: " in page.read_text())


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


def row_of(table, *labels):
    """The cells behind the labels of a row."""
    (row,) = (line for line in table.splitlines() if line.startswith(f"| {' | '.join(labels)} |"))
    return [cell.strip() for cell in row.split("|")[1 + len(labels) : -1]]


# ---- intervals


def test_intervals_are_those_of_a_t_distribution():
    # The mean is 2, the standard error 1 / sqrt(3), and the quantile of two degrees of freedom 4.303.
    assert cell(pd.Series([1.0, 2.0, 3.0]), ".3f") == "2.000 [-0.484, 4.484]"
    assert cell(pd.Series([2.0, np.nan]), ".1f") == "2.0"
    assert cell(pd.Series([np.nan]), ".1f") == "-"


def test_a_family_is_corrected_for_its_size():
    """A difference that holds by itself need not hold among others; losses are marked as gains are."""
    gain = pd.Series([1.0, 2.0, 3.0, 4.0, 5.0])  # p is 0.013
    nothing = pd.Series([1.0, -1.0, 2.0, -2.0])
    assert family([gain, nothing], "+.0f")[0] == r"+3 [+1, +5] \*"
    assert family([-gain, nothing], "+.0f")[0] == r"-3 [-5, -1] \*"
    assert family([gain, nothing, nothing, nothing], "+.0f")[0] == "+3 [+1, +5]"
    assert "*" not in family([gain, nothing], "+.0f")[1]


def test_three_seeds_follow_from_mean_and_extremes():
    seeds = np.array([4.0, 1.0, 2.5])
    row = pd.Series({"runs": 3, "ours": seeds.mean(), "low": seeds.min(), "high": seeds.max()})
    assert three_seeds(row) == pytest.approx(sorted(seeds))


# ---- tables of seeds


def test_the_epsilon_is_split_off_a_label():
    assert set(runs()["callback"]) == {"none", "match"}
    assert set(runs()["epsilon"]) == {"1.5e-4"}
    assert list(with_epsilon(pd.DataFrame({"callback": ["clear_active"]}))["epsilon"]) == ["1e-8"]


def test_differences_are_those_of_the_same_seed():
    table = ways(runs(), "return")
    n, fraction, fewer, returns, gain = row_of(table, "1.5e-4", "match: layer's mean")
    assert n == "3"
    assert fraction.startswith("16 [")
    assert returns.startswith("30 [")
    # Of seeds 0 and 1 alone, -40 and -36, +3 and +7. All seeds would give -39 and +15.
    assert fewer == "-38 [-63, -13] \\*"
    assert gain == "+5 [-20, +30]"
    assert row_of(table, "1.5e-4", "no recycling")[2::2] == ["", ""]


def test_runs_are_paired_within_their_epsilon():
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
    table = pd.DataFrame(of_runs, columns=["callback", "seed", "fraction", "return"])
    table = ways(with_epsilon(table), "return")
    usual, larger = (row_of(table, epsilon, "clear, redrawn until active") for epsilon in ("1e-8", "1.5e-4"))
    assert usual[2] == "-30 [-30, -30] \\*"
    assert usual[4] == "+0.50 [+0.50, +0.50] \\*"
    assert larger[2:] == ["-20 [-20, -20] \\*", "3.00 [3.00, 3.00]", "-1.00 [-1.00, -1.00] \\*"]
    assert "family of 2" in table


def test_accuracies_are_those_of_the_last_five_tasks():
    rows = [("1e-8", "none", 0, task, 10.0 * task, float(task)) for task in range(20)]
    table = late_tasks(pd.DataFrame(rows, columns=["epsilon", "callback", "seed", "task", "fraction", "return"]))
    assert table[["fraction", "return"]].to_numpy().tolist() == [[170.0, 17.0]]


# ---- tables of ages


def of_acrobot():
    table = followed()
    return table[table["environment"] == "Acrobot-v1"]


def test_values_stand_under_their_epsilon():
    """Also those of a way to recycle that only one of them has."""
    table = growth(of_acrobot())
    assert "| 1e-8: dormant [%] after 0 | 10 | 300 | 1e-8: norm [%] after 300 |" in table
    one = ["55", "25", "95", "25", "3.0", "1.0"]
    assert row_of(table, "clear (the paper)") == ["2", *one, *one[:4], "6.0", "2.0"]
    assert row_of(table, "second moment kept") == ["2", *6 * "-", *one[:4], "9.0", "3.0"]


def test_contributions_are_medians_over_seeds():
    table = followed()[:3]
    extremes = [
        table.assign(seed=seed, **{"survival/contribution": share}) for seed, share in enumerate((0.01, 0.02, 0.3))
    ]
    assert row_of(growth(pd.concat(extremes)), "clear (the paper)")[-2:] == ["2.0", "2.0"]


def test_match_is_compared_seed_by_seed():
    better = of_acrobot()[of_acrobot()["epsilon"] == "1e-8"].assign(callback="match")
    better["survival/contribution"] += 0.02 + 0.02 * better["seed"]
    table = pairs(pd.concat([of_acrobot(), better.iloc[::-1], better.assign(epsilon="1.5e-4", seed=7)]))
    assert "`match` against, after 300 steps [points]" in table
    assert row_of(table, "clear (the paper)") == ["+3.0 [-9.7, +15.7]", "-"]


def test_a_seed_without_a_value_is_not_left_out_in_silence():
    table = of_acrobot()
    table.loc[(table["seed"] == 1) & (table["age"] == 300), "survival/contribution"] = float("nan")
    assert row_of(growth(table), "clear (the paper)")[5:7] == ["3.0", "-"]


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


def test_the_figure_has_a_row_for_each_environment_and_epsilon(monkeypatch):
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: seen.append(self))
    table = followed()
    # Of one of those that grow late.
    table.loc[(table["environment"] == "CartPole-v1") & (table["age"] == 300), "age"] = 3000
    table.loc[(table["environment"] == "CartPole-v1") & (table["age"] == 3000), "survival/contribution"] = 50.0
    draw_survival(table, Path("figure.png"))
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
    assert "CartPole-v1" in chosen
    assert "Acrobot-v1" not in chosen
    assert len(gather([file, file], by_age)) == 2 * len(followed())
    with pytest.raises(SystemExit):
        show(monkeypatch, "survival", file, "--environment", "Pendulum-v1")
    assert "nothing is of Pendulum-v1, but of Acrobot-v1, CartPole-v1" in capsys.readouterr().err


# ---- the docs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_the_docs_have_the_tables_of_the_files(page):
    assert page.read_text() == tables.filled(page.read_text()), "run python -m studies.tables"


def test_every_table_is_in_the_docs():
    shown = {name for page in PAGES for name in re.findall("<!-- table: (.+?) -->", page.read_text())}
    assert shown == set(tables.TABLES)


@pytest.fixture(scope="module")
def written():
    return "".join(write() for write in tables.TABLES.values())


@pytest.mark.parametrize("page", ["recycling.md", "results.md", "null_results.md", "results/recycling.md"])
def test_intervals_in_the_prose_are_those_of_a_table(page, written):
    prose = re.sub("<!-- table: .+?<!-- end of table -->", "", (DOCS / page).read_text(), flags=re.DOTALL)
    claimed = re.findall(r"[-+]?[\d.]+ \[[-+]?[\d.]+, [-+]?[\d.]+\]", prose)
    assert [claim for claim in claimed if claim not in written] == []


@pytest.mark.parametrize("name", sorted(file.parent.name for file in DOCS.glob("experiments/*/numbers.csv")))
def test_pages_of_experiments_have_the_tables_of_their_numbers(name):
    page, numbers = DOCS / "experiments" / f"{name}.md", DOCS / "experiments" / name / "numbers.csv"
    for _, mine in pd.read_csv(numbers).groupby("sweep"):
        assert beside_table(mine).strip() in page.read_text()


def test_a_table_that_was_changed_by_hand_is_written_anew():
    page = "before\n<!-- table: interventions -->\n| 99 |\n<!-- end of table -->\nafter\n"
    assert tables.filled(page) == page.replace("| 99 |", tables.interventions())


GROWING = ["small_replay_ratio", "small_replay_ratio_fixed_steps", "small_replay_ratio_n3", "small_width"]


@pytest.mark.parametrize("name", GROWING)
def test_dormancy_without_recycling_grows_in_every_seed(name):
    """As docs/results.md and docs/null_results.md have it, with the replay ratio and with the width."""
    runs = pd.read_csv(DOCS / "results" / f"{name}_runs.csv")
    runs = runs[runs["callback"] == "none"]
    axis = "width" if "width" in runs else "replay_ratio"
    shares = runs.pivot(index="seed", columns=axis, values="dormant_fraction")
    assert shares.shape == (5, 3)
    assert (np.diff(shares) > 0).all()


@pytest.mark.parametrize("file", sorted(DOCS.parent.glob("zoo_configs/sweeps/small_*.yml")), ids=lambda file: file.stem)
def test_all_conditions_of_a_small_sweep_are_measured_at_one_threshold(file):
    """But where the threshold is what is varied."""
    sweep = yaml.safe_load(file.read_text())
    callbacks = sweep["grid"].get("callback", {})
    lists = callbacks.values() if isinstance(callbacks, dict) else []
    settings = [mine for callbacks in lists for callback in callbacks for mine in callback.values()]
    thresholds = {mine["dormancy_threshold"] for mine in settings if "dormancy_threshold" in mine}
    assert len(thresholds) <= 1
    assert "callback" not in str(sweep.get("per", {}).get("replay_ratio", ""))
