"""Sweeps run through Ray: skipped when finished, gone on with when killed, the same as their printed commands."""

import gc
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from sb3_redo.cli.progress import Progress
from sb3_redo.sweeps.execution import Resources, Standing, _Executor, _import_ray
from sb3_redo.sweeps.files import BusyError, is_busy, is_finished, locked, read_json, write_json
from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.run_process import train_run
from sb3_redo.sweeps.warm_process import Starter
from sb3_redo.validation import UsageError
from tests.helpers.browser import browser, tensorboard
from tests.helpers.sweeps import CONFIG, SWEEP, names, start, sweep, wait_for, weights, write_sweep

NAMES = names(0)


@pytest.fixture
def folder(tmp_path):
    return write_sweep(tmp_path)


def is_number(text):
    try:
        return float(text) == float(text)
    except ValueError:
        return False


@pytest.mark.slow
def test_a_sweep_trains_everything_once_and_as_its_printed_commands_do(folder):
    code, said, complained = sweep(folder, "--workers", "2")
    assert code == 0, complained
    assert "2 runs finished, 0 failed" in said
    for name in NAMES:
        run = folder / "out" / name
        assert json.loads((run / "result.json").read_text())["num_timesteps"] == 400
        assert (run / "points.parquet").is_file()
        assert read_json(run / "run.json")["settings"]["gradient_steps"] == 1
    plan = read_json(folder / "out" / "sweep.json")
    assert plan["runs"] == NAMES

    before = {name: (folder / "out" / name / "result.json").stat().st_mtime_ns for name in NAMES}
    assert sweep(folder)[0] == 0
    assert before == {name: (folder / "out" / name / "result.json").stat().st_mtime_ns for name in NAMES}

    _, lines, _ = sweep(folder, "--dry-run", out="typed")
    line = lines.splitlines()[1].replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(["bash", "-c", line], cwd=folder, check=True, capture_output=True, timeout=200)
    mine, typed = weights(folder / "out" / NAMES[1]), weights(folder / "typed" / NAMES[1])
    assert mine.keys() == typed.keys()
    assert all(torch.equal(mine[key], typed[key]) for key in mine)


@pytest.mark.slow
def test_a_killed_sweep_goes_on(folder):
    (folder / "config.yml").write_text(CONFIG.replace("400", "20000"))
    process = start(folder, "--workers", "2")
    runs = [folder / "out" / name for name in NAMES]
    wait_for(lambda: all((run / "checkpoint.json").exists() for run in runs))
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.stderr.close()
    process.wait()
    # The trainings die with their workers, and let go of their folders.
    wait_for(lambda: not any(is_busy(run) for run in runs))
    assert not any(is_finished(run) for run in runs)
    code, _, complained = sweep(folder, "--workers", "2")
    assert code == 0, complained
    for run in runs:
        # A file for each training, of which the second began where the first was saved.
        assert len(list(run.glob("events.out.tfevents.*"))) == 2
        assert json.loads((run / "result.json").read_text())["num_timesteps"] == 20000


@pytest.mark.slow
def test_two_sweeps_into_one_folder_share_the_work(folder):
    first, second = start(folder, "--workers", "1"), start(folder, "--workers", "1")
    ends = [process.communicate(timeout=400) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], ends
    assert all("2 runs finished, 0 failed" in said for said, _ in ends)
    for name in NAMES:
        assert len(list((folder / "out" / name).glob("events.out.tfevents.*"))) == 1


@pytest.mark.slow
def test_a_failed_run_is_told_and_stops_no_other(folder):
    text = SWEEP.replace("replay_ratio: [0.25, 1]", "env_kwargs: {good: {}, bad: {nothing: 1}}")
    (folder / "sweep.yml").write_text(text)
    code, said, complained = sweep(folder, "--workers", "2")
    assert code == 1, complained
    assert "1 runs finished, 1 failed" in said
    assert re.search("failed ./2: CartPole-v1/env_kwargs=bad,callback=redo/seed=0: exit code 1", complained)
    assert "unexpected keyword argument 'nothing'" in complained
    assert is_finished(folder / "out" / "CartPole-v1/env_kwargs=good,callback=redo/seed=0")


@pytest.mark.slow
def test_tensorboard_shows_the_sweep_beside_its_curves(folder):
    assert sweep(folder, "--workers", "2")[0] == 0
    with tensorboard(folder / "out") as address, browser() as page:
        page.open(f"{address}/#timeseries")
        text = page.wait_for("dormancy", "/fraction", *NAMES)
        assert "redo" in text
        page.open(f"{address}/#custom_scalars")
        page.wait_for("episode return", "dormant fraction", "dormant fraction: layers of q_net", "neurons recycled")
        page.open(f"{address}/#hparams")
        text = page.wait_for("Number of matching session groups: 2", "PARALLEL COORDINATES VIEW", *NAMES)
        for name in ("replay_ratio", "width", "callback", "environment", "seed"):
            assert f"\n{name}\n" in text
        for metric in ("final_return", "final_dormant_fraction"):
            assert f"\nsweep/{metric}\n" in text
        for name in NAMES:
            # TensorBoard shows five digits.
            final = read_json(folder / "out" / name / "result.json")["final_return"]
            assert any(abs(float(line) - final) < 1e-4 * final for line in text.splitlines() if is_number(line)), name


# Parts


def script(text):
    return [sys.executable, "-c", text]


def finishing(folder):
    """A training that logs and ends well; its points are written here, where torch has been loaded."""
    with SummaryWriter(str(folder / "elsewhere")) as writer:
        writer.add_scalar("dormancy/fraction", 0.5, 1)
    return script(
        f"import pathlib; folder = pathlib.Path({str(folder)!r})\n"
        "for path in (folder / 'elsewhere').iterdir(): path.rename(folder / path.name)\n"
        "(folder / 'elsewhere').rmdir(); (folder / 'outcome.json').write_text('{}')"
    )


def test_a_result_is_written_last_and_only_of_what_ended_well(tmp_path):
    assert train_run(tmp_path, finishing(tmp_path), 1) > 0
    assert is_finished(tmp_path)
    assert not (tmp_path / "outcome.json").exists()
    assert train_run(tmp_path, script("raise SystemExit(1)"), 1) == 0


@pytest.mark.parametrize("text", ["raise SystemExit('went wrong')", "print('went wrong')"])
def test_a_failure_is_kept_with_the_end_of_its_log(tmp_path, text):
    with pytest.raises(RuntimeError, match="went wrong"):
        train_run(tmp_path, script(text), 1)
    assert (tmp_path / "failed.json").exists()
    assert not is_finished(tmp_path)
    assert "went wrong" in read_json(tmp_path / "failed.json")["log_tail"]
    train_run(tmp_path, finishing(tmp_path), 1)
    assert is_finished(tmp_path)


def test_what_fails_after_its_training_is_not_finished(tmp_path):
    (tmp_path / "outcome.json").write_text("{}")
    with pytest.raises(RuntimeError, match="exit code 1"):
        train_run(tmp_path, script("raise SystemExit('disk full')"), 1)
    assert (tmp_path / "failed.json").exists()
    assert not is_finished(tmp_path)
    with pytest.raises(RuntimeError, match="exit code 0"):  # it said nothing of an outcome
        train_run(tmp_path, script(""), 1)


@pytest.mark.parametrize("text", [b"", b"\0" * 90, b'{"final_return": 9', b"[1]", b"\xff"])
def test_a_damaged_result_is_named_and_its_run_trained_again(tmp_path, caplog, text):
    (tmp_path / "result.json").write_bytes(text)
    assert not is_finished(tmp_path)
    (record,) = caplog.records
    assert record.message == (
        f"{tmp_path}/result.json cannot be read: it holds no JSON object: it was renamed, and the run is not finished"
    )
    assert (tmp_path / "damaged_result.json").read_bytes() == text
    train_run(tmp_path, finishing(tmp_path), 1)
    assert is_finished(tmp_path)


@pytest.mark.parametrize("make", [Path.mkdir, lambda file: file.symlink_to(file)])
def test_what_is_no_file_in_the_place_of_a_result_is_set_aside(tmp_path, make):
    (tmp_path / "damaged_result.json").write_text("of before")
    make(tmp_path / "result.json")
    assert not is_finished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"damaged_result.json"}


def test_a_folder_that_another_sweep_completes_is_left_alone(tmp_path):
    with locked(tmp_path, "sweep.lock"), pytest.raises(BusyError):
        train_run(tmp_path, finishing(tmp_path), 1)


def test_a_run_that_was_begun_with_other_settings_is_refused(tmp_path):
    run = Run("dqn", "CartPole-v1", {}, 0, "c", {}, [], {"gamma": 0.9, "n_timesteps": 10})
    run.describe(tmp_path)
    run.check_same(tmp_path)
    other = Run("dqn", "CartPole-v1", {}, 0, "c", {}, [], {"gamma": 0.5, "n_timesteps": 10})
    with pytest.raises(UsageError, match="default/seed=0 was begun with another gamma: choose another --out"):
        other.check_same(tmp_path)


def test_a_folder_in_use_is_left_alone(tmp_path):
    with locked(tmp_path):
        assert is_busy(tmp_path)
        with pytest.raises(BusyError):
            train_run(tmp_path, script(""), 1)
    assert not is_busy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "sweep.lock"}


def test_a_lock_is_released_when_its_process_is_killed(tmp_path):
    text = f"""
import pathlib, time
from sb3_redo.sweeps.files import locked
with locked(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen(script(text), stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    assert is_busy(tmp_path)
    holder.kill()
    holder.communicate()
    assert not is_busy(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_lock_outlives_the_children_of_its_process(tmp_path):
    with locked(tmp_path):
        child = multiprocessing.get_context("fork").Process(target=gc.collect)
        child.start()
        child.join()
        assert child.exitcode == 0
        assert is_busy(tmp_path)
    assert not is_busy(tmp_path)


def test_a_training_has_as_many_threads_as_it_was_given(tmp_path):
    with pytest.raises(RuntimeError, match="3 3"):
        train_run(tmp_path, script("import os; print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])"), 3)


# Starting trainings from a warm process


@pytest.fixture(scope="module")
def starters():
    """The warm processes of these tests, of which one serves all until it is killed."""
    started = []
    yield started
    for _, starter in started:
        starter.kill()


@pytest.fixture(params=["bare", pytest.param("loaded", marks=pytest.mark.slow)])
def starter(request, starters, tmp_path_factory):
    """A warm process, which was given something to print when it loads environments.

    The bare one loads little else: stand-ins take the place of what takes seconds.
    """
    if starters and starters[-1][0] != request.param:
        starters[-1][1].kill()
    if not starters or starters[-1][0] != request.param or not starters[-1][1].alive:
        folder = tmp_path_factory.mktemp("warm")
        (folder / "custom_envs.py").write_text("import os; print('hello', flush=True); os.write(1, b'hello')")
        if request.param == "bare":
            (folder / "torch.py").write_text(
                "import os; THREADS = os.environ['OMP_NUM_THREADS']; get_num_threads = lambda: THREADS"
            )
            (folder / "rl_zoo3").mkdir()
            (folder / "rl_zoo3/__init__.py").touch()
            (folder / "rl_zoo3/import_envs.py").write_text("import custom_envs")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            starters.append((request.param, Starter({**os.environ, "OMP_NUM_THREADS": "1"})))
    return starters[-1][1]


def module(folder, monkeypatch, text):
    """Where a module of that text is found, and a log."""
    (folder / "trained.py").write_text(text)
    monkeypatch.chdir(folder)
    return folder / "log.txt"


@pytest.mark.skipif(not Starter.AVAILABLE, reason="needs fork")
@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("import sys; print(__name__, sys.argv[1:], sys.path[0])", 0, "__main__ ['--seed', '3'] {folder}\n"),
        ("import os; print(os.environ, os.getcwd())", 0, "environ({{'HERE': 'yes'}}) {folder}\n"),
        ("import sys; print(sys.stdin.read(), end='')", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('went wrong')", 1, "went wrong\n"),
        ("import os; print('so far', flush=True); os.kill(os.getpid(), 9)", -9, "so far\n"),
        ("import torch; print(torch.get_num_threads())", 0, "1\n"),
    ],
)
def test_a_warm_process_runs_a_module_as_python_would(starter, tmp_path, monkeypatch, text, code, said):
    log = module(tmp_path, monkeypatch, text)
    log.write_text("before\n")
    assert starter.run(["trained", "--seed", "3"], log, {"HERE": "yes"}) == code
    assert log.read_text() == "before\n" + said.format(folder=tmp_path)
    assert starter.alive


@pytest.mark.skipif(not Starter.AVAILABLE, reason="needs fork")
def test_what_is_printed_when_environments_are_loaded_is_no_answer(starter, tmp_path, monkeypatch):
    log = module(tmp_path, monkeypatch, "import os, sys; os.write(1, 'custom_envs' in sys.modules and b'done')")
    assert starter.run(["trained"], log, os.environ) == 0
    assert log.read_text() == "done"


@pytest.mark.skipif(not Starter.AVAILABLE, reason="needs fork")
def test_trainings_do_not_share_a_random_state(starter, tmp_path, monkeypatch):
    log = module(tmp_path, monkeypatch, "import numpy; print(numpy.random.randint(2**31))")
    for _ in range(2):
        assert starter.run(["trained"], log, {}) == 0
    first, second = log.read_text().split()
    assert first != second


@pytest.mark.skipif(not Starter.AVAILABLE, reason="needs fork")
def test_a_training_dies_with_its_warm_process(starter, tmp_path, monkeypatch):
    log = module(tmp_path, monkeypatch, "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    with ThreadPoolExecutor() as pool:
        code = pool.submit(starter.run, ["trained"], log, {})
        wait_for(lambda: log.exists() and log.read_text().endswith("\n"))
        starter._process.kill()
        assert code.result() == -signal.SIGKILL
    wait_for(lambda: not Path(f"/proc/{int(log.read_text())}").exists())
    starter.kill()
    assert not starter.alive


def test_a_json_file_is_there_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a" / "b.json", {"x": object()})
    assert read_json(tmp_path / "a" / "b.json") == {"x": 1}
    assert read_json(tmp_path / "none.json") is None


def test_without_ray_there_is_a_clear_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "sb3-redo\[sweep\]"'):
        _import_ray()


class Cluster:
    """As much of Ray as tells how large a cluster is."""

    def __init__(self, **resources):
        self.resources = resources

    def cluster_resources(self):
        return self.resources

    def remote(self, **settings):
        return lambda function: function


@pytest.mark.parametrize(
    ("resources", "share", "room"),
    [
        ({"CPU": 4.0}, Resources(), 4),
        ({"CPU": 4.0}, Resources(cpus_per_run=2), 2),
        ({"CPU": 1.0}, Resources(workers=1, cpus_per_run=0.25), 1),
        ({"CPU": 4.0, "GPU": 0.5}, Resources(gpus_per_run=0.25), 2),
    ],
)
def test_as_many_runs_are_started_as_there_is_room_for(resources, share, room):
    assert _Executor(Cluster(**resources), Path(), share, None, print)._room() == room


def test_no_room_at_all_is_an_error():
    with pytest.raises(RuntimeError, match="no room for a single run: it takes 1 CPUs and 1 GPUs"):
        _Executor(Cluster(CPU=4.0), Path(), Resources(gpus_per_run=1), None, print)._room()


def test_the_table_says_how_a_sweep_stands(tmp_path):
    runs = [Run("dqn", "CartPole-v1", {}, seed, "c", {}, [], {}, 100) for seed in range(4)]
    for run, steps in zip(runs, (100, 40, 0, 0), strict=True):
        if steps:
            write_json(tmp_path / run.name / "progress.json", {"num_timesteps": steps, "of": 100, "seconds": 1.0})
    names = [run.name for run in runs]
    standing = Standing([runs[2]], {names[1]: 0.0}, [names[0]], {names[3]: "why"})
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with Progress(tmp_path, runs, console).shown() as progress:
        progress.update(standing)
    text = console.file.getvalue()
    assert "4 runs in" in text
    assert f"{names[1]}: 40 %" in text
    plain = Console(file=StringIO(), width=200)
    Progress(tmp_path, runs, plain).update(standing)
    assert plain.file.getvalue().splitlines() == [f"finished 1/4: {names[0]}", f"failed 2/4: {names[3]}: why"]


def test_the_first_line_says_how_long_a_sweep_may_take_and_later_ones_what_is_left(tmp_path):
    runs = [Run("ppo", "CartPole-v1", {}, seed, "c", {}, [], {}, 20_000) for seed in range(5)]
    progress = Progress(tmp_path, runs, Console(file=StringIO(), width=200))
    # 25,000 gradient steps each by a rule of thumb, of which a core of ours makes 250 a second.
    expected = "5 runs, 2 at a time, about 4 minutes (a guess until one has ended), in "
    assert progress.opening(2) == f"{expected}{tmp_path}"
    assert progress.opening(None) == f"5 runs, as many at a time as the cluster holds, in {tmp_path}"

    write_json(tmp_path / runs[0].name / "result.json", {"seconds": 1000.0})
    progress = Progress(tmp_path, runs, Console(file=StringIO(), width=200))
    expected = "5 runs, 1 of them finished, 2 at a time, about 33 minutes (at the pace of those), in "
    assert progress.opening(2) == f"{expected}{tmp_path}"
    assert "about 17 minutes" in progress.opening(8)  # no run is faster with more workers
    names = [run.name for run in runs]
    progress.update(Standing(runs[2:], {names[1]: 0.0}, [names[0]]))
    progress.begun -= 600.0  # in which a run and a half were trained
    write_json(tmp_path / names[2] / "progress.json", {"num_timesteps": 10_000, "of": 20_000})
    progress.update(Standing(runs[3:], {names[2]: 0.0}, names[:2]))
    assert progress.console.file.getvalue() == f"finished 2/5: {names[1]}; about 17 minutes left\n"
    for run in runs:
        write_json(tmp_path / run.name / "result.json", {"seconds": 1000.0})
    assert progress.opening(2) == f"5 runs, 5 of them finished, in {tmp_path}"
