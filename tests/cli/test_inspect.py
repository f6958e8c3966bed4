"""``sb3-redo inspect`` measures saved agents, and says in one line what is wrong with what it was given."""

import os
import shutil
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pandas
import pytest
from gymnasium.wrappers import TimeAwareObservation
from sb3_contrib import ARS, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

import sb3_redo.sb3.gathering
import sb3_redo.sb3.measuring
from sb3_redo import networks
from sb3_redo.algorithms import CategoricalDQN
from sb3_redo.cli import main as cli
from sb3_redo.validation import UsageError
from sb3_redo.zoo import inspection
from sb3_redo.zoo.loading import open_agent
from sb3_redo.zoo.saved_agents import algorithm_of
from sb3_redo.zoo.sources import find_model

TINY = "policy_kwargs:dict(net_arch=[8,8])"


def zoo(folder, algorithm, *settings):
    """A tiny run of the zoo's unmodified train command, in this process; its folder."""
    from rl_zoo3.train import train

    command = ["train", "--algo", algorithm, "--env", "CartPole-v1", "--seed", "1"]
    command += ["-f", "logs", "--num-threads", "1", "--eval-freq", "-1", "-n", "300", "--log-interval", "-2"]
    command += ["--save-freq", "150", "-params", TINY, *settings]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default")
        patch.chdir(folder)
        patch.setattr(sys, "argv", command)
        train()
    return folder / f"logs/{algorithm}/CartPole-v1_1"


@pytest.fixture(scope="module")
def dqn_run(tmp_path_factory):
    return zoo(
        tmp_path_factory.mktemp("dqn"), "dqn", "learning_starts:100", "env_kwargs:dict(sutton_barto_reward=True)"
    )


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory):
    """With statistics, stacked frames, a wrapper and two environments."""
    settings = ("n_envs:2", "n_steps:32", "batch_size:32", "n_epochs:1", "normalize:True", "frame_stack:2")
    wrapper = "env_wrapper:[{'gymnasium.wrappers.TimeAwareObservation':{'flatten':True}}]"
    return zoo(tmp_path_factory.mktemp("ppo"), "ppo", *settings, wrapper)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Agents on their own, by algorithm."""
    folder = tmp_path_factory.mktemp("saved")
    for kind, policy, env in (
        (DQN, "MlpPolicy", "CartPole-v1"),
        (SAC, "MlpPolicy", "Pendulum-v1"),
        (PPO, "MlpPolicy", "CartPole-v1"),
        (A2C, "MlpPolicy", "CartPole-v1"),
        (MaskablePPO, "MlpPolicy", "CartPole-v1"),
        (RecurrentPPO, "MlpLstmPolicy", "CartPole-v1"),
    ):
        kind(policy, env, policy_kwargs={"net_arch": [8]}, device="cpu").save(folder / kind.__name__)
    ARS("MlpPolicy", "CartPole-v1", device="cpu").save(folder / "ARS")
    return folder


def inspect(capsys, path, *options):
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = cli.main(["inspect", str(path), "--n-samples", "60", *map(str, options)])
    return code, *capsys.readouterr()


def loaded(path):
    return open_agent(path).model


def layers_of(out):
    """The first words of the table's rows."""
    rows = out.splitlines()[3:]
    return [row.split()[0] for row in rows[: [row.startswith("all ") for row in rows].index(True)]]


# What is measured


def test_a_zoo_run_is_read_from_its_folder(capsys, dqn_run):
    code, out, err = inspect(capsys, dqn_run)
    assert code == 0, err
    assert " of 16 neurons dormant " in out.splitlines()[0]
    assert layers_of(out) == ["q_net.q_net.0", "q_net.q_net.2"]
    assert "at threshold 0.1, on 60 observations" in out
    assert f"DQN from {dqn_run}" in err


def test_wrappers_frame_stack_statistics_and_keywords_are_those_of_the_run(dqn_run, ppo_run):
    env = loaded(ppo_run).get_env()
    assert isinstance(env, VecFrameStack)
    assert env.observation_space.shape == (2 * (4 + 1),)
    assert env.env_is_wrapped(TimeAwareObservation) == [True]
    statistics = VecNormalize.load(str(ppo_run / "CartPole-v1/vecnormalize.pkl"), env.unwrapped)
    np.testing.assert_array_equal(env.venv.obs_rms.mean, statistics.obs_rms.mean)
    assert env.venv.obs_rms.count > 100
    assert loaded(dqn_run).get_env().get_attr("_sutton_barto_reward") == [True]


def test_the_report_is_that_of_the_agent_in_its_environment(capsys, ppo_run):
    _, out, _ = inspect(capsys, ppo_run, "--seed", 4, "--dormancy-threshold", 0.5)
    model = loaded(ppo_run)
    report = sb3_redo.sb3.measuring.measure_on(model, sb3_redo.sb3.gathering.gather_batch(model, 60, 4), 0.5)
    assert out.splitlines()[0] == str(report).splitlines()[0]
    for layer in report.layers:
        assert f"{layer.dormant_fraction:.1%}" == next(row for row in out.splitlines() if layer.name in row).split()[3]
    assert inspect(capsys, ppo_run, "--seed", 4, "--dormancy-threshold", 0.5)[1] == out


def test_the_final_model_is_preferred_then_the_best_then_the_latest_checkpoint(dqn_run, tmp_path):
    run = shutil.copytree(dqn_run, tmp_path / "run")
    shutil.copy(run / "CartPole-v1.zip", run / "best_model.zip")
    shutil.copy(run / "rl_model_150_steps.zip", run / "rl_model_1050_steps.zip")
    for name in ("CartPole-v1.zip", "best_model.zip", "rl_model_1050_steps.zip"):
        assert find_model(run).model.name == name
        (run / name).unlink()


def test_a_zip_inside_a_run_and_the_folder_of_its_settings_mean_that_run(dqn_run):
    checkpoint = find_model(dqn_run / "rl_model_150_steps.zip")
    assert checkpoint.model.name == "rl_model_150_steps.zip"
    assert checkpoint.arguments["env"] == "CartPole-v1"
    assert find_model(dqn_run / "CartPole-v1").model == dqn_run / "CartPole-v1.zip"


@pytest.mark.parametrize("name", ["DQN", "SAC", "MaskablePPO", "RecurrentPPO"])
def test_a_zip_needs_its_environment_alone_where_the_policy_tells_the_algorithm(capsys, saved, name):
    env = "Pendulum-v1" if name == "SAC" else "CartPole-v1"
    code, out, err = inspect(capsys, saved / f"{name}.zip", "--env", env)
    assert code == 0, err
    assert "neurons dormant" in out
    assert f"{name} from" in err


def test_an_algorithm_is_given_where_the_policy_does_not_tell(capsys, saved):
    code, _, err = inspect(capsys, saved / "A2C", "--env", "CartPole-v1")
    assert (code, "give --algo: the file does not tell" in err) == (2, True)
    assert "it may be ppo or a2c or trpo" in err
    assert inspect(capsys, saved / "A2C", "--env", "CartPole-v1", "--algo", "a2c")[0] == 0


@pytest.mark.parametrize(
    ("kind", "policy", "possible"),
    [
        (DQN, "DQNMlpPolicy", "dqn"),
        (CategoricalDQN, "CategoricalDQNMlpPolicy", "categorical_dqn"),
        (SAC, "SACMlpPolicy", "sac"),
        (PPO, "ActorCriticMlpPolicy", ""),
    ],
)
def test_a_zip_with_a_scalable_policy_tells_as_much(tmp_path, kind, policy, possible):
    env = "Pendulum-v1" if kind is SAC else "CartPole-v1"
    kind(getattr(networks, policy), env, policy_kwargs={"net_arch": [8], "width": 2}).save(tmp_path / "model.zip")
    source = find_model(tmp_path / "model.zip")
    if possible:
        assert algorithm_of(source, None) == possible
    else:
        with pytest.raises(UsageError, match="it may be ppo or a2c or trpo"):
            algorithm_of(source, None)


def test_environment_keywords_are_given_as_to_the_zoo(capsys, saved, monkeypatch):
    seen, measure_on = [], inspection.measure_on

    def watched(model, *rest):
        seen.append(model.get_env().get_attr("g"))
        return measure_on(model, *rest)

    monkeypatch.setattr(inspection, "measure_on", watched)
    code, _, err = inspect(
        capsys, saved / "SAC.zip", "--env", "Pendulum-v1", "--env-kwargs", "g:2.5", "render_mode:None"
    )
    assert code == 0, err
    assert seen == [[2.5]]


# What is written


def test_table_and_picture_are_written(capsys, saved, tmp_path):
    csv, plot = tmp_path / "layers.csv", tmp_path / "layers.svg"
    code, out, err = inspect(capsys, saved / "DQN.zip", "--env", "CartPole-v1", "--csv", csv, "--plot", plot)
    assert code == 0, err
    frame = pandas.read_csv(csv)
    assert {"path", "layer", "network", "neurons", "dormant", "dormant_fraction", "recyclable"} <= set(frame.columns)
    assert frame["layer"].tolist() == layers_of(out)
    assert "<svg" in plot.read_text()


def test_progress_is_shown_to_who_is_watching_alone(capsys, saved, monkeypatch):
    arguments = (saved / "DQN.zip", "--env", "CartPole-v1")
    assert "gathering" not in inspect(capsys, *arguments)[2]
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    assert "60/60" in inspect(capsys, *arguments)[2]
    assert inspect(capsys, *arguments, "--quiet")[2] == ""


# What is refused


def refused(capsys, *arguments):
    """The one line of an error that the user can set right."""
    code, out, err = inspect(capsys, *arguments)
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert line.startswith("sb3-redo: error: ")
    assert "Traceback" not in err
    return line


def test_what_is_no_agent_is_refused(capsys, tmp_path, dqn_run):
    (tmp_path / "text.zip").write_text("no")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("file", "")
    assert f"there is no file or folder {tmp_path / 'none'}" in refused(capsys, tmp_path / "none")
    assert "is not a readable zip file" in refused(capsys, tmp_path / "text.zip")
    assert "not an agent that Stable-Baselines3 saved" in refused(capsys, tmp_path / "other.zip")
    assert "is not the folder of a zoo run" in refused(capsys, tmp_path)
    runs = tmp_path / "runs"
    for name in ("CartPole-v1_1", "CartPole-v1_2"):
        shutil.copytree(dqn_run, runs / name)
    assert f"did you mean one of the runs in it, such as {runs / name}? --recursive" in refused(capsys, runs)


def test_a_run_without_a_model_is_refused(capsys, dqn_run, tmp_path):
    run = shutil.copytree(dqn_run, tmp_path / "run", ignore=shutil.ignore_patterns("*.zip"))
    assert "neither CartPole-v1.zip nor best_model.zip nor rl_model" in refused(capsys, run)


def test_lost_statistics_are_said(capsys, ppo_run, tmp_path):
    run = shutil.copytree(ppo_run, tmp_path / "run", ignore=shutil.ignore_patterns("vecnormalize.pkl"))
    assert "VecNormalize stats" in refused(capsys, run)


def test_a_wrong_algorithm_is_refused(capsys, saved):
    path, env = saved / "DQN.zip", ("--env", "CartPole-v1")
    assert "did you mean 'qrdqn'?" in refused(capsys, path, *env, "--algo", "qrdqnn")
    assert "--algo is ppo, but the policy in" in refused(capsys, path, *env, "--algo", "ppo")
    assert "ARS is not supported: it changes its weights without" in refused(capsys, saved / "ARS", *env)


def test_a_wrong_environment_is_refused(capsys, saved):
    path = saved / "DQN.zip"
    assert "give --env" in refused(capsys, path)
    assert "environment 'CartPoll-v1' is not registered" in refused(capsys, path, "--env", "CartPoll-v1")
    assert "is not the one that" in refused(capsys, path, "--env", "Acrobot-v1")
    assert "cannot be made: No module named 'nowhere'" in refused(
        capsys, path, "--env", "CartPole-v1", "--gym-packages", "nowhere"
    )
    assert "unexpected keyword argument 'gravitas'" in refused(
        capsys, path, "--env", "CartPole-v1", "--env-kwargs", "gravitas:1"
    )
    assert "takes key:value, got 'a:b'" in refused(capsys, path, "--env", "CartPole-v1", "--env-kwargs", "a:b")


def test_targets_are_checked_before_anything_is_gathered(capsys, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "gather_batch", None)
    arguments = (saved / "DQN.zip", "--env", "CartPole-v1")
    assert "there is no folder" in refused(capsys, *arguments, "--csv", tmp_path / "none/layers.csv")
    assert "is a folder" in refused(capsys, *arguments, "--csv", tmp_path)
    assert "must end in .png, .svg or .pdf" in refused(capsys, *arguments, "--plot", tmp_path / "layers.txt")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "no permission" in refused(capsys, *arguments, "--csv", tmp_path / "layers.csv")
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "sb3_redo.dormancy.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert 'pip install "sb3-redo[plots]"' in refused(capsys, *arguments, "--plot", tmp_path / "layers.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--n-samples", "0"), "--n-samples must be at least 1, got 0"),
        (("--n-samples", "many"), "invalid int value: 'many' (see sb3-redo inspect --help)"),
        (("--dormancy-threshold", "-1"), "--dormancy-threshold must be a finite number of at least 0, got -1.0"),
        (("--seed", "-1"), "--seed must be at least 0"),
        (("--nonsense",), "unrecognized arguments: --nonsense (see sb3-redo inspect --help)"),
    ],
)
def test_wrong_options_are_refused(capsys, saved, options, message):
    assert message in refused(capsys, saved / "DQN.zip", "--env", "CartPole-v1", *options)


def test_what_fails_later_is_1_and_an_interruption_130(capsys, saved, monkeypatch):
    def fail(error):
        monkeypatch.setattr(VecEnv, "step", lambda *_: (_ for _ in ()).throw(error))
        return inspect(capsys, saved / "DQN.zip", "--env", "CartPole-v1")

    code, out, err = fail(RuntimeError("the simulator broke"))
    assert (code, out) == (1, "")
    assert err.endswith("sb3-redo: error: the simulator broke\n")
    assert fail(KeyboardInterrupt())[0] == 130


def test_help_has_an_example_and_does_not_wait_for_torch():
    script = """
import sys
from sb3_redo.cli.main import main
try:
    main(["inspect", "--help"])
finally:
    assert not {"torch", "stable_baselines3", "pandas", "matplotlib"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sb3-redo inspect logs/dqn/CartPole-v1_1" in done.stdout


@pytest.mark.slow
def test_it_is_a_command(dqn_run, tmp_path):
    command = [sys.executable, "-m", "sb3_redo", "inspect", str(dqn_run), "--n-samples", "50"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "on 50 observations" in done.stdout
    assert "gathering" not in done.stderr
