"""A report says what run folders hold, what is missing, and how sure one can be of it."""

import importlib.util
import json
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from matplotlib import pyplot

from sb3_redo.reports import (
    figures,
    read_curves,
    read_points,
    read_sweep_folder,
    write_points,
)
from sb3_redo.reports.build import write_report
from sb3_redo.reports.curves import layers_over_seeds, over_seeds, return_curves
from sb3_redo.reports.outcomes import by_replay_ratio, condition_outcomes, run_outcomes
from sb3_redo.reports.paper import PAPER_SWEEPS, beside_published, published_numbers, rivals_of
from sb3_redo.reports.points import read_run
from sb3_redo.reports.scores import atari_game, reference_of, zoo_references
from sb3_redo.reports.styles import styles_of
from tests.helpers.made_runs import KEYS, LAYERS, write_events, write_run, write_sweep

AXES = {"replay_ratio": [0.25, 1], "callback": ["none", "redo"]}
GAMES = (
    *("Asterix", "DemonAttack", "Seaquest", "WizardOfWor", "BeamRider", "RoadRunner", "Jamesbond", "Qbert", "Breakout"),
    *("Enduro", "SpaceInvaders", "Pong", "Zaxxon", "YarsRevenge", "MsPacman", "DoubleDunk", "IceHockey"),
)
ATARI = ("PongNoFrameskip-v4", "ALE/Breakout-v5")


def sweep_of(folder, axes=AXES, environments=("CartPole-v1",), seeds=(0, 1, 2), **settings):
    for planned in write_sweep(folder, axes, environments, seeds):
        write_run(*planned, **settings)
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    # With a file of points for each run, which is read in a tenth of the time.
    return sweep_of(tmp_path_factory.mktemp("runs") / "made", environments=ATARI, parquet=True)


@pytest.fixture
def axes():
    yield pyplot.subplots()[1]
    pyplot.close("all")


# Points


def values_of(points, key):
    mine = points[points["key"] == key]
    return list(zip(mine["step"], mine["value"], strict=True))


def test_what_a_resumed_run_logs_replaces_what_it_had_logged_from_there_on(tmp_path):
    write_events(tmp_path / "events.out.tfevents.1.a", [(100, "a", 1), (200, "a", 2), (300, "a", 3)], began=1)
    write_events(tmp_path / "events.out.tfevents.0.b", [(200, "a", 20), (400, "a", 40)], began=2)
    assert values_of(read_points(tmp_path), "a") == [(100, 1), (200, 20), (400, 40)]


def test_points_from_the_purge_step_of_a_later_file_on_are_dropped(tmp_path):
    """As TensorBoard does."""
    write_events(tmp_path / "events.out.tfevents.1.a", [(100, "a", 1), (200, "a", 2), (300, "a", 3)], began=1)
    write_events(tmp_path / "events.out.tfevents.2.b", [(400, "a", 40)], purge_step=201, began=2)
    assert values_of(read_points(tmp_path), "a") == [(100, 1), (200, 2), (400, 40)]


def test_a_run_that_was_killed_while_it_ended_keeps_its_last_measurements_and_one_outcome(tmp_path):
    write_events(tmp_path / "events.out.tfevents.1.a", [(200, "a", 1), (200, "a", 2), (200, "final", 3)], began=1)
    write_events(tmp_path / "events.out.tfevents.2.b", [(200, "final", 4)], purge_step=201, began=2)
    points = read_points(tmp_path)
    assert values_of(points, "a") == [(200, 1), (200, 2)]
    assert values_of(points, "final") == [(200, 4)]


@pytest.mark.parametrize("lost", range(1, 30))
def test_a_file_cut_off_in_its_last_record_is_read_up_to_there(tmp_path, lost):
    path = tmp_path / "events.out.tfevents.1.a"
    write_events(path, [(100, "a", 1), (200, "a", 2)])
    path.write_bytes(path.read_bytes()[:-lost])
    assert values_of(read_points(tmp_path), "a") == [(100, 1)]


@pytest.mark.parametrize("damage", ["all of it", "a few bytes", "the middle", "the end"])
def test_a_file_with_garbage_in_it_is_named_and_skipped(tmp_path, damage):
    write_events(tmp_path / "events.out.tfevents.1.a", [(100, "a", 1)], began=1)
    path = tmp_path / "events.out.tfevents.2.b"
    write_events(path, [(200, "a", 2), (300, "a", 3)], began=2)
    whole = path.read_bytes()
    half = len(whole) // 2
    damaged = {
        "all of it": b"no TensorBoard file at all",
        "a few bytes": b"garbage",
        "the middle": whole[:half] + b"\0garbage" + whole[half + 8 :],
        "the end": whole + b"garbage that is no record",
    }
    path.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match=r"skipped events\.out\.tfevents\.2\.b: "):
        points = read_points(tmp_path)
    assert values_of(points, "a") == [(100, 1)]


def test_a_point_has_the_gradient_step_logged_beside_it_or_one_between(tmp_path):
    clock, fraction, returns = "dormancy/gradient_step", "dormancy/fraction", "rollout/ep_rew_mean"
    points = [(5, returns, 0.0), (10, fraction, 0.1), (10, clock, 40), (15, returns, 1.0)]
    # Two measurements within one train() call, with the same environment step.
    points += [(20, fraction, 0.2), (20, clock, 60), (20, fraction, 0.3), (20, clock, 80), (30, returns, 2.0)]
    write_events(tmp_path / "events.out.tfevents.1.a", points)
    found = read_points(tmp_path)
    assert found.loc[found["key"] == fraction, "gradient_step"].tolist() == [40, 60, 80]
    assert found.loc[found["key"] == returns, "gradient_step"].isna().tolist() == [True, False, False]
    assert found.loc[found["key"] == returns, "gradient_step"].tolist()[1:] == [60, 80]


def test_without_a_gradient_step_it_is_missing(tmp_path):
    write_events(tmp_path / "events.out.tfevents.1.a", [(5, "rollout/ep_rew_mean", 0.0)])
    assert read_points(tmp_path)["gradient_step"].isna().all()


def test_points_of_torch_are_read_and_histograms_left_out(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("old", 1.5, 3)
        writer.add_scalar("new", 2.5, 4, new_style=True)
        writer.add_histogram("dormancy_scores/layer", np.arange(5.0), 4)
        writer.add_text("words", "of no matter", 4)
        writer.add_custom_scalars({"dormancy": {"chart": ["Multiline", ["old"]]}})
    assert read_points(tmp_path)[["step", "key", "value"]].values.tolist() == [[3, "old", 1.5], [4, "new", 2.5]]


def test_the_points_file_holds_what_the_event_files_do_and_is_preferred(tmp_path):
    folder = sweep_of(tmp_path / "made", seeds=(0,)) / "CartPole-v1/replay_ratio=1,callback=redo/seed=0"
    before = read_points(folder)
    write_points(folder)
    assert sorted(path.name for path in folder.iterdir() if "points" in path.name) == ["points.parquet"]
    next(folder.glob("events*")).unlink()
    pd.testing.assert_frame_equal(read_points(folder), before)
    assert list(before) == ["step", "gradient_step", "key", "value"]
    assert {str(before[name].dtype) for name in ("step", "gradient_step", "key")} == {"int64", "Int64", "category"}


def test_the_points_file_remembers_which_event_file_was_broken(tmp_path):
    write_events(tmp_path / "events.out.tfevents.1.a", [(100, "a", 1)])
    (tmp_path / "events.out.tfevents.2.b").write_bytes(b"garbage")
    write_points(tmp_path)
    with pytest.warns(UserWarning, match=r"events\.out\.tfevents\.2\.b"):
        assert len(read_points(tmp_path)) == 1


def test_a_broken_points_file_is_named_and_the_event_files_are_read(tmp_path):
    write_events(tmp_path / "events.out.tfevents.1.a", [(100, "a", 1)])
    (tmp_path / "points.parquet").write_bytes(b"garbage")
    with pytest.warns(UserWarning, match=r"points\.parquet"):
        assert values_of(read_points(tmp_path), "a") == [(100, 1)]


def test_no_changed_byte_of_a_points_file_changes_points_in_silence(tmp_path):
    write_events(tmp_path / "events.out.tfevents.1.a", [(step, f"key{step % 7}", step / 3) for step in range(300)])
    write_points(tmp_path)
    whole, points = (tmp_path / "points.parquet").read_bytes(), read_run(tmp_path).table
    next(tmp_path.glob("events*")).unlink()
    named = 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x15
        (tmp_path / "points.parquet").write_bytes(damaged)
        found = read_run(tmp_path)
        assert found.broken or found.table.equals(points), place
        named += bool(found.broken)
    assert named > 100


# Scores


def test_returns_are_normalised_with_the_scores_of_the_game():
    assert reference_of("DemonAttackNoFrameskip-v4") == reference_of("ALE/DemonAttack-v5")
    assert reference_of("PongNoFrameskip-v4").normalise(np.array([-20.7, 14.6, -3.05])).tolist() == [0, 1, 0.5]
    assert reference_of("CartPole-v1") is None
    assert atari_game("CartPole-v1") is None


def test_the_zoos_own_table_is_read():
    assert zoo_references()["BipedalWalker-v3"].normalise(np.array([-100, 300])).tolist() == [0, 1]


def test_where_the_zoos_comment_names_a_game_the_scores_are_the_same():
    spec = importlib.util.find_spec("rl_zoo3")
    comment = (Path(spec.origin).parent / "plots" / "score_normalization.py").read_text()
    found = re.findall(r"#\s+'(\w+)': (-?[\d.]+)", comment)
    half = len(found) // 2
    assert half == 26
    for (game, low), (_, high) in zip(found[:half], found[half:], strict=True):
        ours = reference_of(f"{game}NoFrameskip-v4")
        assert (ours.low, ours.high) == (float(low), float(high)), game


# Tables


def test_returns_of_games_are_aggregated_in_frames_and_others_are_not(sweep, tmp_path):
    table = return_curves(read_curves(read_sweep_folder(sweep)))
    assert set(table["environment"]) == {"all environments"}
    assert table["at"].max() == 4 * 2000
    assert set(table["runs"]) <= set(range(1, 7))
    assert table["measure"].iloc[0].startswith("human-normalised")
    mixed = sweep_of(tmp_path / "mixed", {}, ("CartPole-v1", ATARI[0]))
    table = return_curves(read_curves(read_sweep_folder(mixed)))
    assert set(table["environment"]) == {"CartPole-v1", ATARI[0]}
    assert table["measure"].iloc[0].startswith("episode return")


def test_a_curve_ends_where_its_runs_end(sweep):
    curves = read_curves(read_sweep_folder(sweep))
    table = over_seeds(curves, "dormancy/fraction")
    ends = table.groupby("replay_ratio", observed=True)["at"].max()
    assert ends.to_dict() == {0.25: 500, 1: 2000}
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert set(over_seeds(curves, "redo/recycled_total")["condition"].str.split("=").str[-1]) == {"redo"}


def test_whether_a_condition_recycles_is_seen_in_what_it_logs(tmp_path):
    folder = sweep_of(tmp_path / "made", {"callback": ["none", "redo"]}, seeds=(0,))
    for path in folder.rglob("run.json"):
        path.write_text(path.read_text().replace('"redo"', '"mine"'))
    assert set(read_curves(read_sweep_folder(folder)).groupby("condition", observed=True)["redo"].first()) == {
        False,
        True,
    }
    assert {style.line for style in styles_of(read_curves(read_sweep_folder(folder))).values()} == {"-", "--"}


# Figures


def test_every_figure_takes_an_ax_gives_it_back_and_says_what_it_shows(sweep):
    made = read_sweep_folder(sweep)
    curves = read_curves(made)
    outcomes = run_outcomes(made, curves)
    of_one = {key: over_seeds(curves, key).query("environment == @ATARI[0]") for key in KEYS[2:5:2]}
    recycled = over_seeds(curves, "redo/recycled_total").query("environment == @ATARI[0]")
    drawn = {
        figures.plot_return: (return_curves(curves), "frames (4 in an environment step)", "mean of human-normalised"),
        figures.plot_replay_ratio: (by_replay_ratio(condition_outcomes(outcomes)), "replay ratio", "mean of final"),
        figures.plot_dormancy: (of_one["dormancy/fraction"], "gradient steps", "dormant neurons [%]"),
        partial(figures.plot_curves, label="overlap [%]", scale="share"): (
            of_one["dormancy/overlap"],
            "gradient steps",
            "overlap [%]",
        ),
        partial(figures.plot_curves, label="so far", scale="count"): (recycled, "gradient steps", "so far"),
        partial(figures.plot_curves, label="loss", scale="log"): (
            of_one["dormancy/fraction"],
            "gradient steps",
            "loss",
        ),
    }
    for plot, (table, x, y) in drawn.items():
        ax = pyplot.subplots()[1]
        assert plot(table, ax) is ax
        assert ax.get_xlabel().startswith(x)
        assert ax.get_ylabel().startswith(y)
        entries = [text.get_text() for text in ax.get_legend().get_texts()]
        assert len(entries) == table["series" if "series" in table else "condition"].nunique()
        assert all("=" in entry for entry in entries)
        assert plot(table) is not ax
        assert (ax.get_yscale() == "log") == (ax.get_ylabel() == "loss")
    pyplot.close("all")


def test_a_scale_that_there_is_not_is_refused(sweep):
    table = over_seeds(read_curves(read_sweep_folder(sweep)), "dormancy/fraction")
    with pytest.raises(ValueError, match="scale must be one of 'share', 'count', 'log', 'linear', got 'logs'; did you"):
        figures.plot_curves(table, scale="logs")
    pyplot.close("all")


def test_the_heat_map_has_a_row_for_every_layer_and_the_speed_a_mark_for_every_run(sweep, axes):
    made = read_sweep_folder(sweep)
    curves = read_curves(made)
    layers = layers_over_seeds(curves)
    one = layers[(layers["environment"] == ATARI[0]) & (layers["condition"] == layers["condition"].iloc[0])]
    assert figures.plot_layers_over_time(one, axes) is axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(LAYERS)
    assert axes.yaxis_inverted()
    assert axes.figure.axes[1].get_ylabel() == "dormant neurons"
    ax = figures.plot_speed(run_outcomes(made, curves))
    assert sum(len(line.get_xdata()) for line in ax.lines) == 2 * 4 * 3
    assert "steps per second" in ax.get_xlabel()


def test_conditions_are_told_apart_by_colour_and_line(sweep):
    styles = styles_of(read_curves(read_sweep_folder(sweep)))
    assert len({(style.colour, style.line) for style in styles.values()}) == len(styles) == 4
    assert styles["replay_ratio=1,callback=none"].line == "--"
    assert styles["replay_ratio=1,callback=redo"].line == "-"
    assert styles["replay_ratio=1,callback=redo"].colour == styles["replay_ratio=1,callback=none"].colour


def test_callbacks_of_either_kind_have_lines_of_their_own_beside_another_axis():
    callbacks = {"none": False, "redo": True, "reset": False, "scheduled": True}
    rows = [
        {"condition": f"replay_ratio={ratio},callback={name}", "setting": ratio, "callback": name, "redo": redo}
        for ratio in (1, 4)
        for name, redo in callbacks.items()
    ]
    styles = styles_of(pd.DataFrame(rows))
    assert len({(style.colour, style.line) for style in styles.values()}) == 8
    of_one = [styles[f"replay_ratio=1,callback={name}"].line for name in callbacks]
    assert of_one == ["--", "-", "-.", ":"]


# Published numbers


def test_ours_stand_beside_the_papers_of_the_same_setting_with_both_scales(sweep):
    made = read_sweep_folder(sweep)
    curves = read_curves(made)
    conditions = condition_outcomes(run_outcomes(made, curves))
    nothing = pd.DataFrame(columns=["environment", "condition", "threshold", "value"])
    table = beside_published(conditions, "dqn", nothing).set_index(["replay_ratio", "redo"])
    assert table["paper"].to_dict() == {
        (0.25, False): 0.410, (1.0, False): 0.302, (0.25, True): 0.397, (1.0, True): 0.625
    }  # fmt: skip
    assert table.loc[(1.0, True), "our_scale"] == "2 environments, 6 runs, 8,000 frames, human-normalised return"
    assert "17 Atari games, 5 seeds, 10M frames" in table.loc[(1.0, True), "paper_scale"]
    assert beside_published(conditions, "dqn", nothing, n_steps=3)["paper"].tolist() == [0.656, 0.554, 0.689, 0.727]
    assert beside_published(conditions, "dqn", nothing, extractor="impala")["paper"].tolist() == [
        0.79,
        0.509,
        0.833,
        0.842,
    ]
    assert beside_published(conditions, "drq", nothing)["paper"].tolist() == [
        0.609,
        0.634,
    ]  # our sweep has a ratio of 1
    assert beside_published(conditions, "ppo", nothing).empty


def test_rivals_are_not_set_beside_the_papers_redo(tmp_path):
    labels = {
        "none": ["sb3_redo.DormancyCallback"],
        "redo": [{"sb3_redo.sweeps.RunFolder": {}}, {"sb3_redo.ReDoCallback": {"start": 1}}],
        "reset": ["sb3_redo.DormancyCallback", {"sb3_redo.interventions.ResetCallback": {}}],
        "decayed": "sb3_redo.DormancyCallback",
        "both": ["sb3_redo.ReDoCallback", {"sb3_redo.interventions.ShrinkAndPerturbCallback": {}}],
    }
    for label, callbacks in labels.items():
        about = {"environment": "PongNoFrameskip-v4", "algorithm": "dqn", "condition": {"callback": label}, "seed": 0}
        kwargs = {"optimizer_kwargs": {"weight_decay": 1e-5}} if label == "decayed" else {}
        folder = tmp_path / label
        folder.mkdir()
        settings = {"callback": callbacks, "policy_kwargs": kwargs}
        (folder / "run.json").write_text(json.dumps({**about, "settings": settings}))
    rivals = rivals_of(read_sweep_folder(tmp_path))
    assert rivals == {
        "callback=none": "",
        "callback=redo": "",
        "callback=reset": "reset",
        "callback=decayed": "weight_decay",
    }
    conditions = pd.DataFrame(
        {
            "environment": "PongNoFrameskip-v4",
            "condition": list(rivals),
            "rival": list(rivals.values()),
            "replay_ratio": 1.0,
            "redo": [label == "callback=redo" for label in rivals],
            "return": 0.5,
            "return_low": 0.4,
            "return_high": 0.6,
            "environments": 1,
            "frames": 4.0,
            "num_timesteps": 1.0,
            "runs": 1,
            "measure": "human-normalised return (0: random play)",
        }
    )
    nothing = pd.DataFrame(columns=["environment", "condition", "threshold", "value"])
    beside = beside_published(conditions, "dqn", nothing).set_index("condition")["paper"].to_dict()
    assert beside == {
        "callback=none": 0.302,
        "callback=redo": 0.625,
        "callback=reset": 0.326,
        "callback=decayed": 0.416,
    }
    assert len({(number.figure, number.quantity, number.game, number.replay_ratio, number.width, number.redo,
                 number.rival)
                for number in published_numbers()}) == len(published_numbers()) == 52  # fmt: skip


def test_the_papers_sweeps_are_those_that_are_shipped():
    shipped = Path(__file__).parents[2] / "zoo_configs" / "sweeps"
    assert [name for name in PAPER_SWEEPS if not (shipped / f"{name}.yml").exists()] == []


# Reports


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    return write_report(sweep, tmp_path_factory.mktemp("report"))


def test_a_report_holds_tables_figures_and_a_page(written):
    out = written.folder
    whole, text = pd.read_parquet(out / "points.parquet"), pd.read_csv(out / "points.csv")
    assert list(whole) == list(text) == ["run", "condition", "step", "gradient_step", "key", "value"]
    assert len(whole) == len(text) == 24 * 20 * 10 + 12 * 20 * 2
    pictures = {path.name for path in (out / "figures").iterdir()}
    for name in ("return", "return_by_replay_ratio", "dormant_fraction", "overlap", "recycled", "steps_per_second"):
        assert {f"{name}.png", f"{name}.svg"} <= pictures
    assert {"layers_PongNoFrameskip-v4.png", "layers_ALE-Breakout-v5.png"} <= pictures
    summary = pd.read_csv(out / "summary.csv")
    assert summary.loc[summary["environment"] == "all environments", "runs"].tolist() == [6] * 4
    assert "24 runs planned: 24 finished" in str(written)
    assert not list(out.glob(".*"))
    assert "| 1 | redo | 6 |" in (out / "summary.md").read_text()


def test_the_page_fetches_nothing(written):
    html = (written.folder / "index.html").read_text()
    assert "default-src 'none'" in html
    outside = re.sub(r"<script\b[^>]*>.*?</script>", "<script></script>", html, flags=re.S)
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:|#|&quot;#)[^"'>\s]""", outside)
    assert not re.findall(r"<script[^>]*\bsrc", html)
    for word in ("Return", "Overlap", "Recycled neurons", "Dormant neurons by layer", "Speed"):
        assert word in outside


def test_the_same_seed_gives_the_same_report_and_no_trace_of_the_first(tmp_path):
    folder = sweep_of(tmp_path / "made", {}, ATARI, keys=("rollout/ep_rew_mean",))
    reports = [write_report(folder, out) for out in (tmp_path / "one", folder / "report", None)]
    names = ("summary.csv", "points.csv", "figures/return.svg", "figures/return.png")
    for name in names:
        assert len({(report.folder / name).read_bytes() for report in reports}) == 1, name
    assert str(reports[1]) == str(reports[2])


def test_an_unfinished_sweep_gives_a_report_of_what_there_is_and_says_what_is_missing(tmp_path, undrawn):
    folder = tmp_path / "made"
    planned = write_sweep(folder, AXES, seeds=(0, 1, 2))
    for run in planned[:9]:
        write_run(*run)
    (planned[0][3] / "result.json").unlink()
    (planned[1][3] / "result.json").unlink()
    (planned[1][3] / "failed.json").write_text(json.dumps({"exit_code": 3, "log_tail": "first\nout of memory\n"}))
    (planned[4][3] / "result.json").write_text("{half a res")
    (next(planned[5][3].glob("events*"))).write_bytes(b"garbage")
    report = write_report(folder)
    assert dict(report.states) == {"finished": 6, "unfinished": 2, "failed": 1, "not begun": 3}
    words = str(report)
    assert "CartPole-v1/replay_ratio=0.25,callback=none/seed=0: unfinished" in words
    assert "seed=1: failed with exit code 3: out of memory" in words
    assert "CartPole-v1/replay_ratio=1,callback=redo/seed=2: not begun" in words
    assert "seed=1/result.json: " in words
    assert "seed=2/events.out.tfevents.1.host.1.0: not a TensorBoard record" in words
    assert "seed=2: not begun" in (folder / "report" / "index.html").read_text()
    assert pd.read_csv(folder / "report" / "summary.csv")["runs"].sum() == 6


def test_an_aggregate_over_fewer_environments_than_the_others_is_said_to_be_one(tmp_path, undrawn):
    for run in write_sweep(tmp_path / "made", AXES, ATARI)[:-2]:
        write_run(*run, keys=("rollout/ep_rew_mean",))
    words = str(write_report(tmp_path / "made"))
    assert "replay_ratio=1,callback=redo was finished in 1 of 2 environments" in words
    assert words.count("was finished in") == 1


@pytest.mark.parametrize("begun", [0, 1])
def test_a_sweep_that_has_hardly_begun_gives_a_report(tmp_path, begun):
    planned = write_sweep(tmp_path / "made", {}, seeds=(0,))
    for run in planned[:begun]:
        write_run(*run, measurements=1, finished=False)
    report = write_report(tmp_path / "made")
    assert report.states["not begun"] == 1 - begun
    assert (tmp_path / "made" / "report" / "index.html").exists()


def test_a_run_that_logs_no_dormancy_gives_a_report(tmp_path, undrawn):
    folder = sweep_of(tmp_path / "made", {}, seeds=(0,), keys=("rollout/ep_rew_mean",))
    write_report(folder)
    assert {path.stem for path in (folder / "report" / "figures").iterdir()} == {"return", "steps_per_second"}


def test_replay_ratios_and_widths_have_figures_of_their_own(tmp_path, undrawn):
    folder = sweep_of(tmp_path / "made", {**AXES, "width": [1, 2]}, seeds=(0,), keys=("dormancy/fraction",))
    write_report(folder)
    pictures = {path.stem for path in (folder / "report" / "figures").glob("dormant*.svg")}
    assert pictures == {
        *("dormant_fraction_by_replay_ratio_width=1", "dormant_fraction_by_replay_ratio_width=2"),
        *("dormant_fraction_by_width_replay_ratio=0.25", "dormant_fraction_by_width_replay_ratio=1"),
    }


BAD_NUMBERS = (b'{"final_loss": {}}', b'{"num_timesteps": 1e300}', b'{"num_timesteps": NaN}')


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"[" * 5000, b'{"final_return": "much"}', b'{"a": "\\ud800"}', *BAD_NUMBERS]
)
def test_damaged_files_are_named_and_skipped(tmp_path, undrawn, content):
    files = ("result.json", "run.json", "failed.json", "points.parquet")
    sweep_of(tmp_path, {"callback": ["none"]}, seeds=(0, 1, 2, 3, 4))
    runs = [path.parent for path in sorted(tmp_path.rglob("run.json"))]
    for run, file in zip(runs, files, strict=False):
        (run / file).write_bytes(content)
    report = write_report(tmp_path)
    named = [line.partition(": ")[0] for line in report.broken]
    assert sorted(named) == sorted(
        f"{run.relative_to(tmp_path)}/{file}" for run, file in zip(runs, files, strict=False)
    )
    assert report.states["finished"] == 3


@pytest.mark.parametrize("about", [{"environment": ""}, {"condition": {"environment": "=x"}}])
def test_a_run_that_no_table_can_hold_is_named_and_skipped(tmp_path, undrawn, about):
    sweep_of(tmp_path, {"callback": ["none"]}, seeds=(0, 1))
    path = next(tmp_path.rglob("seed=1/run.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | about))
    report = write_report(tmp_path)
    assert report.broken[0].startswith("CartPole-v1/callback=none/seed=1/run.json: ValueError: expected ")
    assert report.states["finished"] == 1


def test_a_loss_among_returns_is_no_error(tmp_path, undrawn):
    sweep_of(tmp_path, {"replay_ratio": [1], "callback": ["none", "redo"]}, seeds=(0,))
    path = next(tmp_path.rglob("result.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"final_loss": 1.0}))
    assert "loss" in write_report(tmp_path).table


@pytest.mark.parametrize("text", ['{"runs": [5]}', '{"algorithm": {}}', ""])
def test_a_damaged_plan_is_named_and_skipped(tmp_path, undrawn, text):
    sweep_of(tmp_path, {"callback": ["none"]}, seeds=(0, 1))
    (tmp_path / "sweep.json").write_text(text)
    report = write_report(tmp_path)
    assert report.broken[0].startswith("sweep.json: ")
    assert report.states["finished"] == 2


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither sweep\.json nor a run folder"):
        write_report(tmp_path)


def loaded_after(statement):
    script = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return finished.stdout.split()


def test_reports_import_neither_torch_nor_sb3_nor_the_zoo(tmp_path):
    folder = sweep_of(tmp_path / "made", {}, ("BipedalWalker-v3",), keys=("rollout/ep_rew_mean",))
    loaded = loaded_after(f"from sb3_redo.reports.build import write_report; write_report({str(folder)!r})")
    assert "matplotlib" in loaded
    assert not {"torch", "stable_baselines3", "rl_zoo3", "tensorflow"} & set(loaded)


def test_what_writes_the_points_of_a_run_draws_nothing():
    loaded = loaded_after("import sb3_redo.sweeps.run_process")
    assert "pyarrow" in loaded
    assert not {"torch", "matplotlib", "scipy"} & set(loaded)


@pytest.mark.slow
def test_the_checks_above_would_notice():
    loaded = loaded_after("import sb3_redo.reports.build, sb3_redo.dormancy.plots")
    assert {"torch", "matplotlib", "scipy"} <= set(loaded)


@pytest.mark.slow
def test_a_sweep_of_the_papers_size_is_reported_in_little_time_and_two_gigabytes(tmp_path):
    folder, keys = tmp_path / "paper", (*KEYS, *(f"dormancy_layers/q_net.q_net.{layer}" for layer in (4, 6)))
    axes = {"replay_ratio": [0.25, 0.5, 1, 2], "callback": ["none", "redo"]}
    environments = [f"{game}NoFrameskip-v4" for game in GAMES]
    for run in write_sweep(folder, axes, environments, seeds=range(5), n_timesteps=2_500_000):
        write_run(*run, parquet=True, measurements=2500, period=1000, keys=keys)
    script = f"""
import resource, time
from sb3_redo.reports.build import write_report
begun = time.process_time()
write_report({str(folder)!r})
print(time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, gigabytes = map(float, finished.stdout.split())
    # Processor time, against that of reading the points alone, which says how fast the machine is. A report took ten
    # times as long, 12 s, where this was written.
    begun = time.process_time()
    for points in folder.rglob("points.parquet"):
        pd.read_parquet(points)
    assert seconds < 40 * (time.process_time() - begun)
    assert gigabytes < 2
