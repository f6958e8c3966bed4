"""Experiments: what there is, what is trained for one, and what is written of it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pandas as pd
import pytest
import yaml
from matplotlib.ticker import PercentFormatter

from sb3_redo.cli.main import main
from sb3_redo.experiments import catalogue as rooms
from sb3_redo.experiments import page as experiment_pages
from sb3_redo.experiments.catalogue import PRESETS, SWEEPS, Preset, catalogue, experiment_named
from sb3_redo.experiments.numbers import PaperNumber, beside_paper, conditions_of, paper_numbers, quantities
from sb3_redo.experiments.page import sweeps_of, write_page
from sb3_redo.reports.curves import side_by_side
from sb3_redo.reports.sweep_folder import read_sweep_folder
from sb3_redo.reports.tables import read_curves
from sb3_redo.sweeps.sweep_file import read_sweep_file
from sb3_redo.validation import UsageError
from tests.helpers.made_runs import write_events, write_run, write_sweep

DOCS = Path(__file__).parents[2] / "docs" / "experiments.md"
EXPERIMENTS = list(catalogue().values())
QUESTIONS = ("exploration", "returns", "regression", "fixed_targets", "width_rate", "distillation_inputs")
"""Those that no paper has."""
OF_EACH_PRESET = [(experiment, preset) for experiment in EXPERIMENTS for preset in experiment.presets]
of_each = pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)


KEYS = (
    *("rollout/ep_rew_mean", "dormancy/fraction", "dormancy/gradient_step"),
    *("dormancy_thresholds/0.0", "dormancy_thresholds/0.025"),
)
SHARPNESS = "plasticity/sharpness"


def made(folder, name, axes, keys=KEYS, **settings):
    """Folders of finished runs in place of a sweep's, which log little, since drawing takes most of the time."""
    for run in write_sweep(folder / name, axes, **settings):
        write_run(*run, keys=keys)
    return folder / name


# The list


def test_the_list_says_what_each_shows_and_costs(capsys):
    assert main(["experiment", "--list"]) == 0
    said = capsys.readouterr().out
    for experiment in EXPERIMENTS:
        assert f"{experiment.name}: {experiment.title}" in said
        assert f"about {experiment.presets['small'].cpu_minutes} CPU minutes" in said
    assert "paper  680 runs: DQN on 17 Atari games" in said
    assert len(EXPERIMENTS) == 19 + len(QUESTIONS)


def test_questions_that_no_paper_asks_have_no_preset_of_a_papers(capsys):
    assert {experiment.name for experiment in EXPERIMENTS if "paper" not in experiment.presets} == set(QUESTIONS)
    assert main(["experiment", "exploration", "--preset", "paper", "--dry-run"]) == 2
    assert "exploration has no preset 'paper'" in capsys.readouterr().err


def test_the_list_is_there_without_torch():
    script = (
        "import sys; from sb3_redo.cli.experiment import listing; listing(); "
        "assert not {'torch', 'ray', 'stable_baselines3', 'pandas'} & set(sys.modules), 'loaded'"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_an_unknown_name_is_refused_with_the_nearest_and_nothing_is_begun(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "replay_ration"]) == 2
    assert "did you mean 'replay_ratio'?" in capsys.readouterr().err
    assert main(["experiment"]) == 2
    assert "sb3-redo experiment --list" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [["--seeds", "0"], ["--workers", "0"]])
def test_wrong_options_are_refused(option, capsys):
    assert main(["experiment", "redo", *option]) == 2
    assert f"{option[0]} must be at least 1" in capsys.readouterr().err


def test_the_docs_have_a_section_for_each():
    text = DOCS.read_text()
    assert [f"## {experiment.name}\n" in text for experiment in EXPERIMENTS] == [True] * len(EXPERIMENTS)


# The sweeps


@pytest.mark.parametrize(("experiment", "preset"), OF_EACH_PRESET)
def test_every_sweep_of_every_preset_can_be_started(experiment, preset):
    mine = experiment.presets[preset]
    sweeps = sweeps_of(mine)
    assert sum(len(sweep.runs) for sweep in sweeps) == mine.count() > 0
    assert all(len(sweep.seeds) >= 3 for sweep in sweeps)
    assert all(sweep.name.startswith(preset) for sweep in sweeps)


@of_each
def test_what_an_experiment_is_put_beside_is_of_its_own_conditions(experiment):
    numbers = paper_numbers(experiment)
    assert {number.quantity for number in numbers} <= set(experiment.quantities) <= set(quantities())
    if "paper" not in experiment.presets:
        assert not numbers
        return
    conditions = [run.condition for sweep in sweeps_of(experiment.presets["paper"]) for run in sweep.runs]
    for number in numbers:
        assert set(number.where) <= set().union(*conditions)
        assert any(number.fits(number.quantity, each, number.algorithm or "dqn") for each in conditions)
    unknown = ("threshold_period", "score_batch_size", "activations", "outgoing", "layer_norm", "brownian_motion")
    assert bool(numbers) == (experiment.name not in unknown)


def test_both_presets_of_an_experiment_have_the_same_labels_of_callbacks():
    for experiment in EXPERIMENTS:
        labels = [
            {run.condition.get("callback") for sweep in sweeps_of(preset) for run in sweep.runs}
            for preset in experiment.presets.values()
        ]
        assert labels[0] == labels[-1]


def test_networks_are_examined_before_they_are_changed():
    """Callbacks act in the order of the file."""
    checked = 0
    for experiment, preset in OF_EACH_PRESET:
        for run in (run for sweep in sweeps_of(experiment.presets[preset]) for run in sweep.runs if run.callbacks):
            paths = [next(iter(callback)) for callback in run.callbacks]
            examining = [place for place, path in enumerate(paths) if path.startswith("sb3_redo.plasticity.")]
            changing = [
                place for place, path in enumerate(paths) if ".interventions." in path or path.endswith(".ReDoCallback")
            ]
            checked += bool(examining and changing)
            assert max(examining, default=-1) < min(changing, default=len(paths))
    assert checked > 0


def test_an_experiment_trains_its_own_conditions_and_so_many_seeds():
    (sweep,) = sweeps_of(experiment_named("redo").presets["small"], seeds=2)
    assert {run.condition["callback"] for run in sweep.runs} == {"none", "redo"}
    assert sweep.seeds == [0, 1]
    assert len(sweep.runs) == 2 * 2 * 2
    assert sweep.plan()["runs"] == [run.name for run in sweep.runs]


def test_runs_that_two_experiments_share_are_the_same_runs():
    redo, interventions = (sweeps_of(experiment_named(name).presets["small"])[0] for name in ("redo", "interventions"))
    on_cartpole = {run.name for run in redo.runs if run.environment == "CartPole-v1"}
    assert on_cartpole < {run.name for run in interventions.runs}


def test_a_dry_run_prints_the_commands_of_all_sweeps(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "phenomenon", "--seeds", "1", "--dry-run", "--out", "here"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("--algo ")[1].split()[0] for line in lines] == ["dqn", "dqn", "sac"]
    assert all("here/small_phenomenon_" in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_the_count_of_the_files_follows_the_seeds_and_what_is_left_out():
    preset = Preset(("small_interventions",), "", {"callback": ("none", "redo")})
    assert preset.count() == 2 * 2 * 5
    assert preset.count(1) == 2 * 2
    assert replace(preset, only={}).count(1) == 2 * 7
    preset = replace(preset, only={"environment": ("CartPole-v1",), "callback": ("none",)})
    assert preset.count(3) == 3 == sum(len(sweep.runs) for sweep in sweeps_of(preset, 3))


def test_experiments_on_what_was_stored_train_first_what_they_need_and_share_it():
    offline, distillation = (experiment_named(name).presets for name in ("offline", "distillation"))
    for preset in PRESETS:
        needed = []
        for experiment in (offline, distillation):
            stored, learning = sweeps_of(experiment[preset], 2)
            assert stored.name == f"{preset}_stored_agents"
            assert all("--save-replay-buffer" in run.command(Path("runs")) for run in stored.runs)
            folders = {f"{stored.name}/{run.name}" for run in stored.runs}
            settings = [run.settings for run in learning.runs]
            used = {each[name] for each in settings for name in ("agent", "replay_buffer", "teacher") if name in each}
            assert used == folders
            needed.append(folders)
        # The dormant agents are of distillation alone.
        assert needed[0] & needed[1]
        assert needed[1] - needed[0]


# Dotted axes of sweep files


SWEEP = """\
algorithm: dqn
environments: [CartPole-v1]
config: config.yml
seeds: [0]
grid:
  AXIS: VALUES
  callback:
    redo:
      - sb3_redo.ReDoCallback: {measuring_period: 50}
      - stable_baselines3.common.callbacks.CheckpointCallback: {save_freq: 1000, save_path: here}
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"n_timesteps": 400, "policy": "sb3_redo.networks.DQNMlpPolicy", "policy_kwargs": {"net_arch": [8]}}

    def read(axis, values):
        (tmp_path / "config.yml").write_text(yaml.safe_dump({"CartPole-v1": config}))
        (tmp_path / "sweep.yml").write_text(SWEEP.replace("AXIS", axis).replace("VALUES", values))
        return read_sweep_file(tmp_path / "sweep.yml")

    return read


def test_an_axis_can_be_a_setting_of_our_callbacks(read):
    sweep = read("callback.recycling_period", "[50, 100]")
    first, second = sweep.runs
    assert [run.callbacks[0]["sb3_redo.ReDoCallback"] for run in sweep.runs] == [
        {"measuring_period": 50, "recycling_period": 50},
        {"measuring_period": 50, "recycling_period": 100},
    ]
    assert first.callbacks[1] == second.callbacks[1]
    assert first.name == "CartPole-v1/callback.recycling_period=50,callback=redo/seed=0"


def test_an_axis_can_be_an_entry_of_the_policys_settings(read):
    sweep = read("policy_kwargs.activation", "[relu, tanh]")
    assert [run.overrides["policy_kwargs"] for run in sweep.runs] == [
        {"net_arch": [8], "activation": "relu"},
        {"net_arch": [8], "activation": "tanh"},
    ]


def test_a_wrong_setting_of_a_callback_is_told_with_its_line(read):
    with pytest.raises(UsageError, match=r"sweep.yml:6: grid.callback.recycling_period: .* must be at least 1"):
        read("callback.recycling_period", "[0]")
    with pytest.raises(UsageError, match=r"sweep.yml:6: grid.callback.recycling_perid: .* mean recycling_period"):
        read("callback.recycling_perid", "[10]")


# What is written


def test_a_page_has_its_figures_and_numbers_beside_the_papers(tmp_path):
    experiment = experiment_named("replay_ratio")
    sweeps = sweeps_of(experiment.presets["small"], seeds=2)
    folder = made(tmp_path, "small_replay_ratio_short", {"replay_ratio": [0.25, 1, 4], "callback": ["none", "redo"]})
    page = write_page(experiment, "small", sweeps, [folder], tmp_path / "page")
    text = page.read_text()
    assert experiment.differs.strip() in " ".join(text.split())
    figures = ["dormant_fraction", "return_by_replay_ratio"]
    for name in figures:
        assert f"![{name}](small_replay_ratio_short/figures/{name}.png)" in text
        assert (tmp_path / "page" / "small_replay_ratio_short" / "figures" / f"{name}.png").is_file()
    numbers = pd.read_csv(tmp_path / "page" / "numbers.csv", keep_default_na=False, na_values=[""])
    mine = numbers[(numbers["condition"] == "replay ratio=1, callback=redo") & (numbers["figure"] == "10a")]
    assert mine[["paper", "paper_low", "runs", "source"]].values.tolist() == [[0.625, 0.585, 2, "digitised"]]
    # No number was published at a replay ratio of 4.
    assert numbers[numbers["condition"].str.contains("ratio=4")]["paper"].isna().all()
    assert (tmp_path / "page" / "small_replay_ratio_short" / "index.html").is_file()


def test_a_page_leaves_out_the_runs_of_other_experiments(tmp_path, undrawn):
    experiment = experiment_named("redo")
    sweeps = sweeps_of(experiment.presets["small"], seeds=2)
    folder = made(tmp_path, "small_interventions", {"callback": ["none", "redo", "reset"]})
    write_page(experiment, "small", sweeps, [folder], tmp_path / "page")
    assert set(pd.read_csv(tmp_path / "page/numbers.csv", keep_default_na=False)["condition"]) == {
        "callback=none",
        "callback=redo",
    }
    runs = pd.read_csv(tmp_path / "page/small_interventions/runs.csv", keep_default_na=False)
    assert set(runs["callback"]) == {"none", "redo"}


def test_two_axes_make_a_heat_map(tmp_path, undrawn):
    experiment = experiment_named("threshold_period")
    sweeps = sweeps_of(experiment.presets["small"], seeds=2)
    axes = {
        "callback.dormancy_threshold": [0.0, 0.025, 0.1],
        "callback.recycling_period": [100, 500, 2500],
        "callback": ["redo"],
    }
    folder = made(tmp_path, "small_threshold_period", axes, seeds=(0,))
    page = write_page(experiment, "small", sweeps, [folder], tmp_path / "page")
    for name in ("heat_map_dormant_at_0.025", "heat_map_return"):
        assert name in page.read_text()
        assert (tmp_path / "page/small_threshold_period/figures" / f"{name}.png").is_file()


def test_a_loss_is_drawn_and_stands_beside_the_papers_in_the_sweep_that_has_it(tmp_path, undrawn):
    experiment = experiment_named("distillation")
    sweeps = sweeps_of(experiment.presets["small"], seeds=2)
    stored = made(tmp_path, "small_stored_agents", {"learning_rate": [0.0005, 0.003]})
    keys = ("dormancy/fraction", "dormancy/gradient_step", "offline/loss")
    axes = {"student": ["fresh", "pretrained"]}
    learning = made(tmp_path, "small_distillation", axes, keys, algorithm="offline")
    page = write_page(experiment, "small", sweeps, [stored, learning], tmp_path / "page").read_text()
    assert "small_distillation/figures/curve_loss.png" in page
    assert "small_stored_agents/figures/curve_loss.png" not in page
    numbers = pd.read_csv(tmp_path / "page/numbers.csv").set_index(["sweep", "condition", "quantity"])
    found = numbers["paper"].dropna().to_dict()
    words = ("Huber loss at the end", "dormant neurons at the end")
    assert found == {
        ("small_distillation", f"student={student}", measure): value
        for student, values in (("fresh", (0.1, 0.48)), ("pretrained", (0.7, 0.98)))
        for measure, value in zip(words, values, strict=True)
    }


def test_what_is_no_share_is_drawn_in_its_own_unit(tmp_path):
    keys = (*KEYS, "plasticity/feature_srank/q_net")
    for run in write_sweep(tmp_path, {"callback": ["none", "redo"]}, seeds=(0,)):
        write_run(*run, keys=keys)
    curves = read_curves(read_sweep_folder(tmp_path))
    drawn = {}
    for name in ("srank", "dormant"):
        (drawn[name],) = experiment_pages._drawn({"curve": name}, curves, pd.DataFrame()).axes
    assert drawn["srank"].get_ylabel() == "srank of the features"
    assert drawn["dormant"].get_ylabel() == "dormant neurons [%]"
    percent = [isinstance(ax.yaxis.get_major_formatter(), PercentFormatter) for ax in drawn.values()]
    assert percent == [False, True]
    assert experiment_pages._drawn({"curve": "plasticity_loss"}, curves, pd.DataFrame()) is None


def test_two_networks_of_the_same_runs_are_drawn_side_by_side(tmp_path, undrawn):
    experiment = experiment_named("brownian_motion")
    sweeps = sweeps_of(experiment.presets["small"], seeds=2)
    environment = "sb3_redo-BlockMDP-true-label-v0"  # as folders are named
    folder = tmp_path / "small_brownian_motion"
    for (_, _, seed, run), end in zip(
        write_sweep(folder, {"callback": ["brownian_motion"]}, seeds=(0, 1), environments=(environment,)),
        (8.0, 32.0),
        strict=True,
    ):
        write_run(environment, {"callback": "brownian_motion"}, seed, run, keys=KEYS[:3])
        points = [(1, "dormancy/gradient_step", 0.0), (100, "dormancy/gradient_step", 99.0)]
        for step, of_network, of_twin in ((1, 2.0, 2.0), (100, end, 4.0)):
            points += [(step, f"{SHARPNESS}/q_net", of_network), (step, f"{SHARPNESS}/q_net_twin", of_twin)]
        write_events(run / "events.out.tfevents.1.host.1.0", points)
    write_page(experiment, "small", sweeps, [folder], tmp_path / "page")
    numbers = pd.read_csv(tmp_path / "page/numbers.csv").set_index("quantity")["ours"]
    trained, twin = ("sharpness of the trained network at the end", "sharpness of its twin at the end")
    assert numbers[[trained, twin]].tolist() == [20.0, 4.0]
    # Of each run by itself: 4 and 16 times.
    assert numbers[[f"{trained} over that at the start", f"{twin} over that at the start"]].tolist() == [10.0, 2.0]
    assert "![curve_sharpness]" in (tmp_path / "page/experiment.md").read_text()
    curves = read_curves(read_sweep_folder(folder))
    beside = {"curve": "sharpness", "beside": {"sharpness": "one", "sharpness_twin": "twin"}}
    figure = experiment_pages._drawn(beside, curves, pd.DataFrame())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "twin"]
    (ax,) = figure.axes
    assert ax.get_yscale() == "log"
    one, other = ax.get_lines()
    assert one.get_color() != other.get_color()
    assert [float(one.get_ydata()[-1]), float(other.get_ydata()[-1])] == [20.0, 4.0]
    assert not len(side_by_side(curves, {"none": "no/such/key"}))


def test_a_page_of_nothing_finished_says_so(tmp_path):
    experiment = experiment_named("redo")
    sweeps = sweeps_of(experiment.presets["small"], seeds=1)
    write_sweep(tmp_path / "small_interventions", {"callback": ["none", "redo"]})
    page = write_page(experiment, "small", sweeps, [tmp_path / "small_interventions"], tmp_path / "page")
    assert "No run has finished." in page.read_text()
    assert "4 not begun" in page.read_text()


def test_worked_numbers(tmp_path):
    ends = [0.1, 0.2, 0.4, 0.9]
    for (_, _, seed, folder), end in zip(
        write_sweep(tmp_path, {"callback": ["none"]}, seeds=range(4)), ends, strict=True
    ):
        write_run("CartPole-v1", {"callback": "none"}, seed, folder, keys=KEYS[:2])
        overlaps = [(step, "dormancy/overlap", 0.1 * step) for step in range(1, 8)]
        write_events(
            folder / "events.out.tfevents.1.host.1.0",
            [(1, "dormancy/fraction", 0.5), *overlaps, (9, "dormancy/fraction", end)],
        )
    sweep = read_sweep_folder(tmp_path)
    conditions = conditions_of(sweep, read_curves(sweep), ["dormant", "accuracy", "overlap"]).set_index("quantity")
    # The mean of each run's last point, with the t interval of four runs; no run logged an accuracy.
    assert conditions.index.tolist() == ["dormant", "overlap"]
    assert conditions.at["dormant", "value"] == pytest.approx(0.4)
    half = 3.1824463 * stdev(ends) / 2
    assert conditions.loc["dormant", ["low", "high"]].tolist() == pytest.approx([0.4 - half, 0.4 + half])
    # The mean of the last five of 0.1 to 0.7, the same in every run.
    assert conditions.loc["overlap", ["value", "low", "high"]].tolist() == pytest.approx([0.5] * 3)


def test_a_number_of_the_papers_belongs_to_its_game_and_condition():
    about = {"figure": "15", "scale": "9M frames", "source": "second hand", "where": {"callback": "lowest"}}
    published = [
        PaperNumber("return", 3500, game="DemonAttack", **about),
        PaperNumber("return", 2200, game="Asterix", **about),
    ]
    row = {"condition": "callback=lowest", "callback": "lowest", "runs": 1, "quantity": "return", "measure": "return"}
    row |= {"value": 1.0, "low": 0.0, "high": 2.0}
    environments = ["AsterixNoFrameskip-v4", "CartPole-v1"]
    conditions = pd.DataFrame([row | {"environment": name} for name in environments])
    found = beside_paper(conditions, published, "dqn")
    # In Asterix its own number, in a task that the paper has not every one.
    assert found["paper"].tolist() == [2200, 3500, 2200]
    assert beside_paper(conditions.assign(callback="random"), published, "dqn").get("paper") is None


# From the command to the page


@pytest.mark.slow
def test_an_experiment_runs_end_to_end(tmp_path, monkeypatch, capsys):
    tiny = (SWEEPS / "small_label_shuffling.yml").read_text().replace("tasks: 20", "tasks: 2")
    (tmp_path / "small_label_shuffling.yml").write_text(tiny.replace("steps: 700", "steps: 100"))
    monkeypatch.setattr(rooms, "SWEEPS", tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["experiment", "label_shuffling", "--seeds", "1", "--workers", "2"]
    assert main(command) == 0
    assert "4 runs finished, 0 failed" in capsys.readouterr().out
    results = sorted((tmp_path / "runs").rglob("result.json"))
    times = [result.stat().st_mtime_ns for result in results]
    assert len(times) == 4
    out = tmp_path / "runs/experiments/label_shuffling_small"
    assert "accuracy.png" in (out / "experiment.md").read_text()
    assert len(pd.read_csv(out / "numbers.csv")) == 4 * 3
    # Given again it trains nothing.
    assert main(command) == 0
    assert times == [result.stat().st_mtime_ns for result in results]
