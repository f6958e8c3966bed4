"""The table of match against clear at several thresholds and periods, from sweeps of agents and of classifiers."""

import pandas as pd
import pytest

from studies.recycled import gather, main
from studies.recycled_settings import by_settings
from studies.recycled_tables import thresholds
from tests.helpers.made_runs import write_events, write_run, write_sweep

AGENTS = {
    "callback.dormancy_threshold": [0.1, 0.0],
    "callback.recycling_period": [2000, 100],
    "callback": ["clear", "match"],
}
CLASSIFIERS = {
    "dormancy_threshold": [0.0, 0.1],
    "period": [100],
    "optimizer_state": ["clear", "match"],
    "callback": ["redo"],
}


def write(folder, axes, returns, times, **settings):
    """A sweep whose dormancy at 0.025 ends at 0.6 with clear, at 0.2 with match, 0.1 more with the second seed; its
    returns are ``times`` times the threshold, one after another, 10 more for match with the second seed."""
    for environment, condition, seed, run in write_sweep(folder, axes, **settings):
        write_run(environment, condition, seed, run, keys=("dormancy/fraction",))
        match = "match" in condition.values()
        threshold = condition.get("callback.dormancy_threshold", condition.get("dormancy_threshold"))
        dormant = (0.2 if match else 0.6) + 0.1 * seed
        gain = 10 * match * seed
        points = [(100, "dormancy_thresholds/0.025", 0.0), (200, "dormancy_thresholds/0.025", dormant)]
        points += [(100 * number, returns, some * threshold + gain) for number, some in enumerate(times, start=1)]
        write_events(run / "events.out.tfevents.9.more", points)
    # Others may have begun.
    write_run(environment, condition, 9, folder / "begun", keys=("dormancy/fraction",), finished=False)
    write_events(folder / "begun" / "events.out.tfevents.9.more", points)
    return folder


@pytest.fixture
def agents(tmp_path):
    environments = ("CartPole-v1", "Acrobot-v1")
    return write(tmp_path / "agents", AGENTS, "rollout/ep_rew_mean", (1, 3), environments=environments)


@pytest.fixture
def classifiers(tmp_path):
    about = {"environments": ("digits",), "algorithm": "classifier"}
    accuracies = (9, 1, 3, 1, 3, 7)
    return write(tmp_path / "classifiers", CLASSIFIERS, "classifier/task_accuracy", accuracies, **about)


def of(table, **values):
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def test_agents_are_read_with_dormancy_at_the_end_and_the_mean_return(agents):
    table = by_settings(agents)
    assert len(table) == 2 * 2 * 2 * 2 * 2
    mine = of(table, environment="Acrobot-v1", threshold=0.1, period=2000, callback="match").sort_values("seed")
    assert mine["fraction"].tolist() == pytest.approx([20, 30])
    assert mine["return"].tolist() == pytest.approx([0.2, 10.2])


def test_classifiers_are_read_by_optimizer_state_with_their_last_five_tasks_in_percent(classifiers):
    table = by_settings(classifiers)
    assert list(table.columns) == ["environment", "threshold", "period", "callback", "seed", "fraction", "return"]
    assert set(table["callback"]) == {"clear", "match"}
    mine = of(table, threshold=0.1, callback="match").sort_values("seed")
    assert mine["fraction"].tolist() == pytest.approx([20, 30])
    assert mine["return"].tolist() == pytest.approx([30, 1030])


def test_differences_are_those_of_the_same_seed(agents):
    lines = thresholds(by_settings(agents)).splitlines()
    # Of two seeds a t interval is 12.7 standard errors wide to either side.
    line = "| CartPole-v1 | 0.1 | 100 | 2 | 65 [1, 129] | 25 [-39, 89] | -40 [-40, -40] \\* "
    line += "| 0 [0, 0] | 5 [-58, 69] | +5 [-59, +69] |"
    assert line in lines
    settings_of_one = [line.split(" | ")[1:3] for line in lines[2:6]]
    assert settings_of_one == [["0", "100"], ["0", "2,000"], ["0.1", "100"], ["0.1", "2,000"]]
    assert "family of 8" in lines[-1]


def one_setting(*rows):
    names = ["environment", "threshold", "period", "callback", "seed", "fraction", "return"]
    return pd.DataFrame([("A", 0.0, 100, *row) for row in rows], columns=names)


def test_small_returns_have_decimals():
    rows = [(mode, seed, 50.0, 1.5 + seed) for mode in ("clear", "match") for seed in (0, 1)]
    line = "| A | 0 | 100 | 2 | 50 [50, 50] | 50 [50, 50] | +0 [+0, +0] | 2.00 [-4.35, 8.35] |"
    assert line in thresholds(one_setting(*rows))


def test_runs_without_enough_episodes_for_a_mean_count_those_that_ended(agents):
    silent = agents / "CartPole-v1/callback.dormancy_threshold=0.1,callback.recycling_period=100,callback=match/seed=1"
    write_events(silent / "events.out.tfevents.9.more", [(200, "dormancy_thresholds/0.025", 0.4)])
    for run in agents.rglob("seed=*"):
        (run / "0.monitor.csv").write_text(f"#{{}}\nr,l,t\n{run.name[-1]}.0,9,1.0\n4.0,9,2.0\n")
    table = by_settings(agents)
    assert of(table, seed=0)["return"].tolist() == [2.0] * 16
    assert of(table, seed=1)["return"].tolist() == [2.5] * 16


def test_a_seed_that_has_no_partner_is_in_no_difference():
    table = thresholds(one_setting(("clear", 1, 50.0, 20.0), ("match", 0, 40.0, 30.0), ("match", 1, 20.0, 50.0)))
    assert "| 50 | 30 [-97, 157] | -30 | 20 | 40 [-87, 167] | +30 |" in table


def test_what_is_not_there_yet_is_a_hyphen():
    assert "| 50 | - | - | 20 | - | - |" in thresholds(one_setting(("clear", 0, 50.0, 20.0)))


def test_folders_and_files_make_one_table(agents, classifiers, tmp_path, monkeypatch, capsys):
    file = tmp_path / "settings.csv"
    monkeypatch.setattr("sys.argv", ["recycled", "settings", str(agents), str(classifiers), "--table", str(file)])
    main()
    first = capsys.readouterr().out
    assert "| digits | 0.1 | 100 |" in first
    assert "| Acrobot-v1 | 0.1 | 100 |" in first
    monkeypatch.setattr("sys.argv", ["recycled", "settings", str(file)])
    main()
    assert capsys.readouterr().out == first
    assert len(gather([file], by_settings)) == 32 + 8


def test_there_is_no_figure(agents, tmp_path, monkeypatch, capsys):
    arguments = ["recycled", "settings", str(agents), "--figure", str(tmp_path / "figure.png")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit):
        main()
    assert "settings have no figure" in capsys.readouterr().err
