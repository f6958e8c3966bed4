"""The configurations load with the zoo's own command line, and what they ask for happens."""

import csv
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rl_zoo3.utils import ALGOS, get_callback_list
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sb3_redo.algorithms  # noqa: F401
from sb3_redo import DormancyCallback, ReDoCallback

CONFIGS = Path(__file__).parents[2] / "zoo_configs"
FILES = sorted(path.name for path in CONFIGS.glob("*.yml"))
BASELINES = [name for name in FILES if name.endswith("_baseline.yml")]


def algorithm_of(name):
    """The zoo's name of the algorithm that a file is for, the longest that it begins with."""
    if name.startswith("demo"):
        return "dqn"
    return max((algorithm for algorithm in ALGOS if name.startswith(algorithm)), key=len)


def load(name):
    return yaml.safe_load((CONFIGS / name).read_text())


# Files


def test_every_config_has_a_baseline_twin():
    twins = {name.replace("_baseline", "") for name in BASELINES}
    assert twins == set(FILES) - set(BASELINES)
    assert {"dqn.yml", "dqn_replay_ratio_1.yml", "sac.yml"} <= twins
    assert {f"{algorithm}.yml" for algorithm in set(ALGOS) - {"ars"}} <= twins


def texts_in(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (*texts_in(key), *texts_in(item))
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("name", FILES)
def test_numbers_are_numbers(name):
    def is_number(text):
        try:
            float(text)
        except ValueError:
            return False
        return True

    assert [text for text in texts_in(load(name)) if is_number(text)] == []


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_one_that_the_zoo_or_the_algorithm_knows(name):
    known = set(inspect.signature(ALGOS[algorithm_of(name)]).parameters)
    known |= {
        "n_timesteps",
        "n_envs",
        "env_wrapper",
        "env_kwargs",
        "frame_stack",
        "noise_type",
        "noise_std",
        "callback",
    }
    for environment, settings in load(name).items():
        assert settings.keys() <= known, environment


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_differs_from_its_twin_in_the_callback_alone(name):
    baseline, twin = load(name), load(name.replace("_baseline", ""))
    assert baseline.keys() == twin.keys()
    for environment in baseline:
        ours, theirs = (get_callback_list(config[environment]) for config in (baseline, twin))
        assert [type(callback) for callback in (*ours, *theirs)] == [DormancyCallback, ReDoCallback]
        settings = inspect.signature(DormancyCallback).parameters
        assert all(getattr(ours[0], name) == getattr(theirs[0], name) for name in settings), environment
        del baseline[environment]["callback"], twin[environment]["callback"]
        assert baseline[environment] == twin[environment]


@pytest.mark.parametrize("name", FILES)
def test_every_callback_constructs_as_the_zoo_does_it(name):
    for settings in load(name).values():
        (callback,) = get_callback_list(settings)
        assert isinstance(callback, DormancyCallback if name in BASELINES else ReDoCallback)


def test_the_papers_settings_are_what_is_written():
    atari, replay_ratio_1 = load("dqn.yml")["atari"], load("dqn_replay_ratio_1.yml")["atari"]
    (dqn,), (dqn_1,), (sac,) = map(get_callback_list, (atari, replay_ratio_1, load("sac.yml")["HalfCheetah-v5"]))
    assert [callback.dormancy_threshold for callback in (dqn, dqn_1, sac)] == [0.025, 0.1, 0.0]
    assert [callback.recycling_period for callback in (dqn, dqn_1, sac)] == [1000, 1000, 200_000]
    assert [callback.batch_size for callback in (dqn, dqn_1, sac)] == [64, 64, 256]
    assert {callback.surgery.optimizer_state for callback in (dqn, dqn_1, sac)} == {"clear"}
    assert [atari["gradient_steps"] / atari["train_freq"] for atari in (atari, replay_ratio_1)] == [0.25, 1]


# Runs


def zoo(folder, algorithm, environment, *arguments, callback=None, module="rl_zoo3.train", **overwritten):
    """Run the zoo's unmodified train command, or that of a module; what it printed."""
    command = [sys.executable, "-m", module, "--algo", algorithm, "--env", environment, "--seed", "1"]
    command += ["-f", folder / "logs", "-tb", folder / "tb", "--num-threads", "1", "--eval-freq", "-1", *arguments]
    if callback is not None:
        overwritten["callback"] = [{f"sb3_redo.{name}": settings} for name, settings in callback.items()]
    if overwritten:
        command += ["-params", *(f"{key}:{value!r}" for key, value in overwritten.items())]
    return run(folder, command)


def run(folder, command):
    """What a command printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def scalars(folder, environment, run):
    """Key to a list of (environment step, value)."""
    events = EventAccumulator(str(folder / "tb" / environment / run), size_guidance={"scalars": 0}).Reload()
    return {key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]}


@pytest.mark.slow
def test_cartpole_with_the_configuration_as_it_stands(tmp_path):
    zoo(tmp_path, "dqn", "CartPole-v1", "-conf", CONFIGS / "dqn.yml", "-n", "5000")
    curves = scalars(tmp_path, "CartPole-v1", "DQN_1")
    # train() runs after every 256th environment step from 1,024 on and makes 128 gradient steps.
    assert curves["dormancy/gradient_step"] == [(1024, 0), (2816, 1000), (4864, 2000)]
    assert [step for step, _ in curves["redo/recycled"]] == [2816, 4864]
    assert [step for step, _ in curves["dormancy_layers/q_net.q_net.2"]] == [1024, 2816, 4864]
    assert all(0 <= value <= 1 for _, value in curves["dormancy/fraction"])
    assert curves["rollout/ep_rew_mean"]
    saved = (tmp_path / "logs/dqn/CartPole-v1_1/CartPole-v1/config.yml").read_text()
    assert "sb3_redo.ReDoCallback" in saved


@pytest.mark.slow
def test_the_baseline_logs_the_same_curves_without_recycling(tmp_path):
    zoo(tmp_path, "dqn", "CartPole-v1", "-conf", CONFIGS / "dqn_baseline.yml", "-n", "3000")
    curves = scalars(tmp_path, "CartPole-v1", "DQN_1")
    assert curves["dormancy/gradient_step"] == [(1024, 0), (2816, 1000)]
    assert not any(key.startswith("redo") for key in curves)


@pytest.mark.slow
def test_a_short_atari_run_on_a_real_rom(tmp_path):
    zoo(
        tmp_path,
        "dqn",
        "DemonAttackNoFrameskip-v4",
        *("-conf", CONFIGS / "dqn_replay_ratio_1.yml", "-n", "400"),
        callback={"ReDoCallback": {"recycling_period": 100, "measuring_period": 50, "optimizer_state": "clear"}},
        learning_starts=100,
        buffer_size=1000,
    )
    curves = scalars(tmp_path, "DemonAttackNoFrameskip-v4", "DQN_1")
    due = [(101 + max(gradient_step - 1, 0), gradient_step) for gradient_step in range(0, 300, 50)]
    assert curves["dormancy/gradient_step"] == [*due, (400, 300)]
    assert [step for step, _ in curves["redo/recycled"]] == [200, 300, 400]
    layers = {"cnn.0", "cnn.2", "cnn.4", "linear.0"}
    prefix = "dormancy_layers/q_net.features_extractor."
    assert {key.removeprefix(prefix) for key in curves if key.startswith("dormancy_layers/")} == layers


@pytest.mark.slow
def test_a_short_mujoco_run(tmp_path):
    zoo(
        tmp_path,
        "sac",
        "HalfCheetah-v5",
        *("-conf", CONFIGS / "sac.yml", "-n", "500"),
        callback={"ReDoCallback": {"dormancy_threshold": 0.0, "recycling_period": 100, "measuring_period": 100}},
        learning_starts=200,
    )
    curves = scalars(tmp_path, "HalfCheetah-v5", "SAC_1")
    assert curves["dormancy/gradient_step"] == [(201, 0), (300, 100), (400, 200), (500, 300)]
    assert {"dormancy/actor", "dormancy/critic"} < curves.keys()
    assert [step for step, _ in curves["redo/recycled"]] == [300, 400, 500]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "environment", "settings", "networks"),
    [
        ("qrdqn", "CartPole-v1", {}, {"quantile_net"}),
        ("td3", "HalfCheetah-v5", {"learning_starts": 200}, {"actor", "critic"}),
        ("ddpg", "HalfCheetah-v5", {"learning_starts": 200}, {"actor", "critic"}),
        ("tqc", "HalfCheetah-v5", {"learning_starts": 200}, {"actor", "critic"}),
        ("crossq", "Pendulum-v1", {}, {"actor", "critic"}),
        ("ppo", "CartPole-v1", {}, {"policy", "value"}),
        ("a2c", "CartPole-v1", {}, {"policy", "value"}),
        ("trpo", "CartPole-v1", {}, {"policy", "value"}),
        ("ppo_lstm", "DemonAttackNoFrameskip-v4", {"n_steps": 16, "batch_size": 32}, {"shared"}),
    ],
)
def test_every_other_algorithm_runs_with_its_configuration(tmp_path, algorithm, environment, settings, networks):
    steps = {"qrdqn": "1500", "ppo_lstm": "640", "a2c": "2400", "trpo": "3000", "ppo": "1000"}.get(algorithm, "500")
    callback = {"dormancy_threshold": 0.3, "recycling_period": 20, "measuring_period": 20, "batch_size": 32}
    conf = ("-conf", CONFIGS / f"{algorithm}.yml", "-n", steps)
    zoo(tmp_path, algorithm, environment, *conf, callback={"ReDoCallback": callback}, **settings)
    (run,) = (path.name for path in (tmp_path / "tb" / environment).iterdir())
    curves = scalars(tmp_path, environment, run)
    assert len(curves["dormancy/gradient_step"]) > 2
    assert curves["redo/recycled"]
    assert {f"dormancy/{network}" for network in networks} < curves.keys()


@pytest.mark.slow
def test_a_saved_agent_is_continued(tmp_path):
    settings = {
        "callback": {"ReDoCallback": {"dormancy_threshold": 0.5, "recycling_period": 300, "measuring_period": 200}},
        "learning_starts": 200,
    }
    common = ("-conf", CONFIGS / "dqn.yml", "-n", "1000", "--save-replay-buffer")
    zoo(tmp_path, "dqn", "CartPole-v1", *common, **settings)
    saved = tmp_path / "logs/dqn/CartPole-v1_1/CartPole-v1.zip"
    printed = zoo(tmp_path, "dqn", "CartPole-v1", *common, "-i", saved, **settings)
    assert "Loading pretrained agent" in printed
    assert "Loading replay buffer" in printed
    first, second = (scalars(tmp_path, "CartPole-v1", run) for run in ("DQN_1", "DQN_2"))
    # Four train() calls of 128 gradient steps in each run, the second of which goes on counting at 512.
    assert [value for _, value in first["dormancy/gradient_step"]] == [0, 200, 400]
    assert [value for _, value in second["dormancy/gradient_step"]] == [600, 800, 1000]
    recycled = [value for curves in (first, second) for _, value in curves["redo/recycled"]]
    assert len(recycled) == 3
    assert second["redo/recycled_total"][-1][1] == sum(recycled) > recycled[0]


@pytest.mark.slow
def test_hyperparameters_are_optimised_without_tensorboard_and_no_trial_is_pruned(tmp_path):
    printed = zoo(
        tmp_path,
        "dqn",
        "CartPole-v1",
        *("-conf", CONFIGS / "dqn.yml", "-n", "1400", "-optimize", "--n-trials", "2", "--sampler", "random"),
        *("--pruner", "none", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots", "--verbose", "2"),
        callback={"ReDoCallback": {"dormancy_threshold": 0.5, "recycling_period": 20, "measuring_period": 20}},
    )
    (report,) = (tmp_path / "logs/dqn").glob("report_CartPole-v1_2-trials-*.csv")
    with open(report, newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["COMPLETE", "COMPLETE"]
    assert "recycled_total" in printed


@pytest.mark.slow
def test_the_one_liner_adds_redo_to_the_zoos_own_configuration(tmp_path):
    zoo(
        tmp_path,
        "dqn",
        "CartPole-v1",
        *("-n", "1280"),
        callback={"ReDoCallback": {"recycling_period": 100, "measuring_period": 100}},
    )
    curves = scalars(tmp_path, "CartPole-v1", "DQN_1")
    assert curves["dormancy/gradient_step"] == [(1024, 0), (1024, 100), (1280, 200)]
    assert [step for step, _ in curves["redo/recycled"]] == [1024, 1280]


@pytest.mark.slow
def test_our_networks_and_optimizers_and_an_injection_from_the_command_line(tmp_path):
    zoo(
        tmp_path,
        "dqn",
        "CartPole-v1",
        *("-conf", CONFIGS / "dqn.yml", "-n", "1400"),
        callback={
            "ReDoCallback": {"dormancy_threshold": 0.5, "recycling_period": 60, "measuring_period": 60},
            "interventions.PlasticityInjectionCallback": {"at": 100},
        },
        policy="sb3_redo.networks.InjectableDQNMlpPolicy",
        policy_kwargs={
            "net_arch": [32, 32],
            "activation": "crelu",
            "optimizer_class": "sb3_redo.networks.Adam",
            "optimizer_kwargs": {"eps_root": 0.001},
        },
    )
    curves = scalars(tmp_path, "CartPole-v1", "DQN_1")
    # 128 gradient steps after 1,024 environment steps and after each 256 more.
    assert curves["injection/total"] == [(1024, 1)]
    assert [value for _, value in curves["dormancy/gradient_step"]] == list(range(0, 3 * 128, 60))
    assert "dormancy_layers/q_net.added.0.2" in curves
    assert curves["redo/recycled"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["double_dqn", "categorical_dqn"])
def test_our_algorithms_are_trained_played_and_optimised(tmp_path, algorithm):
    common = {"callback": {"DormancyCallback": {}}, "module": "sb3_redo.zoo"}
    zoo(tmp_path, algorithm, "CartPole-v1", *("-conf", CONFIGS / "dqn.yml", "-n", "1200"), **common)
    play = [
        sys.executable,
        "-m",
        "sb3_redo.zoo",
        "enjoy",
        "--algo",
        algorithm,
        "--env",
        "CartPole-v1",
        "--no-render",
    ]
    assert "Mean reward" in run(tmp_path, [*play, "-f", tmp_path / "logs", "-n", "1000"])
    search = ("-optimize", "--n-trials", "1", "--sampler", "random", "--pruner", "none", "--n-evaluations", "1")
    more = ("--eval-episodes", "1", "--no-optim-plots", "-conf", CONFIGS / "dqn.yml", "-n", "1200")
    zoo(tmp_path, algorithm, "CartPole-v1", *search, *more, **common)
    (report,) = (tmp_path / f"logs/{algorithm}").glob("report_CartPole-v1_1-trials-*.csv")
    with open(report, newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["COMPLETE"]
