"""``sb3-redo inspect`` measures many agents at once, and two side by side."""

import io
import json
import os
import shutil
import subprocess
import sys

import gymnasium
import pandas
import pytest
import yaml
from stable_baselines3 import DQN, PPO

from sb3_redo.cli import main as cli


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    """Two runs, a broken one and an agent without settings."""
    folder = tmp_path_factory.mktemp("agents")
    for name, kind, sizes in (("dqn", DQN, [8, 8]), ("ppo", PPO, [8])):
        run = folder / name / "CartPole-v1_1"
        (run / "CartPole-v1").mkdir(parents=True)
        kind("MlpPolicy", "CartPole-v1", seed=0, policy_kwargs={"net_arch": sizes}, device="cpu").save(
            run / "CartPole-v1.zip"
        )
        (run / "CartPole-v1/args.yml").write_text(yaml.dump({"algo": name, "env": "CartPole-v1"}))
        (run / "CartPole-v1/config.yml").write_text(yaml.dump({"policy": "MlpPolicy"}))
    broken = shutil.copytree(folder / "dqn/CartPole-v1_1", folder / "broken/CartPole-v1_1")
    (broken / "CartPole-v1/args.yml").write_text(yaml.dump({"algo": "dqn", "env": "Vanished-v0"}))
    return folder


def inspect(capfd, *options):
    code = cli.main(["inspect", "--n-samples", "40", "--quiet", *map(str, options)])
    return code, *capfd.readouterr()


def test_a_failure_does_not_stop_the_rest(capfd, agents, tmp_path):
    code, out, _ = inspect(capfd, "--recursive", agents, "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json")
    assert code == 1
    lines = out.splitlines()
    assert lines[-1].startswith("2 of 3 agents inspected")
    assert f"{agents / 'broken/CartPole-v1_1'}: environment 'Vanished-v0' is not registered" in out
    frame = pandas.read_csv(tmp_path / "a.csv")
    assert frame["status"].tolist() == ["failed", "ok", "ok", "ok", "ok"]
    assert "is not registered" in frame["reason"][0]
    assert {"path", "algorithm", "environment", "observations", "seed", "episode_return", "layer"} <= set(frame.columns)
    assert {f"{kind}_fraction_{t}" for kind in ("dormant", "fresh") for t in ("0", "0.025", "0.1")} <= set(
        frame.columns
    )
    found = json.loads((tmp_path / "a.json").read_text())
    assert [each["status"] for each in found] == ["failed", "ok", "ok"]
    assert len(found[1]["layers"]) == 2
    assert set(found[1]["fresh_fraction"]) == {"0", "0.025", "0.1"}


def test_several_paths_that_all_open_end_well(capfd, agents):
    code, out, _ = inspect(capfd, agents / "dqn/CartPole-v1_1", agents / "ppo/CartPole-v1_1")
    assert (code, out.splitlines()[-1].split()[:3]) == (0, ["2", "of", "2"])


@pytest.mark.slow
def test_workers_find_the_same(capfd, agents, tmp_path):
    for workers in (1, 2):
        inspect(capfd, "--recursive", agents, "--workers", workers, "--csv", tmp_path / f"{workers}.csv")
    assert (tmp_path / "1.csv").read_text() == (tmp_path / "2.csv").read_text()


def test_two_agents_side_by_side(capfd, agents):
    code, out, _ = inspect(capfd, "--compare", agents / "dqn/CartPole-v1_1", agents / "ppo/CartPole-v1_1")
    assert code == 0
    assert out.startswith(f"A: {agents / 'dqn/CartPole-v1_1'}, DQN in CartPole-v1")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[3:]}
    assert rows["mlp_extractor.policy_net.0"][0] == "-"
    assert rows["q_net.q_net.2"][1:3] == ["-", "-"]
    assert rows["all"][2].startswith(("+", "-"))
    assert inspect(capfd, "--compare", agents / "dqn/CartPole-v1_1")[0] == 2


def test_the_folder_of_a_sweep_means_its_runs(capfd, agents, tmp_path):
    sweep = shutil.copytree(agents, tmp_path / "sweep", ignore=shutil.ignore_patterns("broken"))
    (sweep / "sweep.json").write_text("{}")
    assert inspect(capfd, sweep)[1].splitlines()[-1].startswith("2 of 2 agents")


def test_the_threshold_of_the_run_comes_first(capfd, agents, tmp_path):
    run = shutil.copytree(agents / "dqn/CartPole-v1_1", tmp_path / "CartPole-v1_1")
    callback = [{"sb3_redo.ReDoCallback": {"dormancy_threshold": 0.025}}]
    (run / "CartPole-v1/config.yml").write_text(yaml.dump({"callback": callback}))
    code, out, _ = inspect(capfd, run)
    assert (code, "at threshold 0.025, on 40" in out.splitlines()[0]) == (0, True)
    for nonsense in (-1, float("nan"), "0.5"):
        callback = {"sb3_redo.ReDoCallback": {"dormancy_threshold": nonsense}}
        (run / "CartPole-v1/config.yml").write_text(yaml.dump({"callback": callback}))
        assert "at threshold 0.1, on 40" in inspect(capfd, run)[1].splitlines()[0]
    assert inspect(capfd, run, "--dormancy-threshold", 0.5)[1].splitlines()[2].split()[3:5] == ["at", "0.5"]


def test_what_is_asked_wrongly_is_refused(capfd, agents, tmp_path):
    for options, message in (
        ((), "give the path of an agent"),
        (("--recursive", tmp_path), "there is no agent below"),
        (("--recursive", tmp_path / "none"), "--recursive needs a folder"),
        (("--recursive", agents, "--plot", tmp_path / "a.png"), "--plot draws one agent"),
        ((agents / "dqn/CartPole-v1_1", "--workers", 0), "--workers must be at least 1"),
        ((agents / "dqn/CartPole-v1_1", "--vec-normalize", tmp_path / "none.pkl"), "there is no file"),
    ):
        code, out, err = inspect(capfd, *options)
        assert (code, out) == (2, "")
        assert message in err


PRINTING = """
import os
import gymnasium

class Printing(gymnasium.Wrapper):
    def reset(self, **kwargs):
        print("python says")
        os.system("echo a process says")
        os.write(1, b"C says")
        return super().reset(**kwargs)

class Breaking(gymnasium.Wrapper):
    def step(self, action):
        raise ZeroDivisionError("of the environment")

class Dying(gymnasium.Wrapper):
    def step(self, action):
        os._exit(7)
"""


@pytest.mark.slow
def test_a_process_that_dies_takes_no_other_agent_with_it(agents, tmp_path):
    (tmp_path / "printing.py").write_text(PRINTING)
    folder = shutil.copytree(agents, tmp_path / "agents")
    (folder / "broken/CartPole-v1_1/CartPole-v1/args.yml").write_text("{algo: dqn, env: CartPole-v1}")
    (folder / "broken/CartPole-v1_1/CartPole-v1/config.yml").write_text("env_wrapper: printing.Dying")
    command = [sys.executable, "-m", "sb3_redo", "inspect", "--recursive", str(folder), "--n-samples", "30"]
    done = subprocess.run([*command, "--workers", "2"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "broken/CartPole-v1_1: its process crashed" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("2 of 3 agents inspected")


class Dying(gymnasium.Wrapper):
    def step(self, action):
        if self.env.spec.id == "CartPole-v0":
            os._exit(7)
        return self.env.step(action)


def test_a_crash_of_the_only_process_stops_no_other_agent(capfd, agents, tmp_path):
    folder = shutil.copytree(agents, tmp_path / "agents")
    (folder / "broken/CartPole-v1_1/CartPole-v1/args.yml").write_text("{algo: dqn, env: CartPole-v0}")
    code, out, _ = inspect(capfd, "--recursive", folder, "--wrapper", f"{__name__}.Dying")
    assert code == 1
    assert "broken/CartPole-v1_1: its process crashed" in out
    assert out.splitlines()[-1].startswith("2 of 3 agents inspected")


class Leaving(gymnasium.Wrapper):
    def step(self, action):
        sys.exit(3)


def test_an_environment_that_ends_the_program_is_a_failure(capfd, agents):
    code, out, _ = inspect(capfd, "--recursive", agents, "--wrapper", f"{__name__}.Leaving")
    assert code == 1
    assert out.count("cannot be inspected: SystemExit: 3") == 2


@pytest.mark.slow
def test_stdout_is_for_the_report_alone(agents, tmp_path):
    (tmp_path / "printing.py").write_text(PRINTING)
    command = [sys.executable, "-m", "sb3_redo", "inspect", str(agents / "dqn/CartPole-v1_1"), "--n-samples", "30"]
    done = subprocess.run([*command, "--wrapper", "printing.Printing"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " says" not in done.stdout
    assert done.stderr.count(" says") >= 3
    assert " neurons dormant " in done.stdout.splitlines()[0]
    done = subprocess.run([*command, "--wrapper", "printing.Breaking"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("cannot be inspected: ZeroDivisionError: of the environment")


def test_names_that_no_terminal_can_show_are_shown_in_part(capfd, agents, tmp_path):
    folder = tmp_path / "red\x1b[31m\n\udcff"
    shutil.copytree(agents / "dqn/CartPole-v1_1", folder / "dqn/CartPole-v1_1")
    shutil.copytree(agents / "broken/CartPole-v1_1", folder / "broken/CartPole-v1_1")
    code, out, _ = inspect(capfd, "--recursive", folder, "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json")
    assert (code, len(out.splitlines())) == (1, 4)
    assert out.replace("\n", "").isprintable()
    assert out.count("red?[31m??/") == 2
    assert pandas.read_csv(tmp_path / "a.csv")["path"].str.contains("red\x1b[31m\n\\udcff/", regex=False).all()


def test_any_stdout_takes_the_report(agents, monkeypatch):
    arguments = ["inspect", str(agents / "dqn/CartPole-v1_1"), "--n-samples", "40", "--seeds", "2", "--quiet"]
    ascii_only = io.TextIOWrapper(io.BytesIO(), "ascii")
    for stdout in (ascii_only, None):
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main(arguments) == 0
    ascii_only.flush()
    assert b"\\xb1" in ascii_only.buffer.getvalue()


def test_the_folder_of_settings_is_also_the_working_directory(capfd, agents, monkeypatch):
    monkeypatch.chdir(agents / "dqn/CartPole-v1_1/CartPole-v1")
    assert [inspect(capfd, path)[0] for path in (".", "..")] == [0, 0]
    assert inspect(capfd, "--recursive", ".")[0] == 2
