"""A sweep whose command is killed again and again, or whose disk is full, ends as if nothing had been."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time

import pandas as pd
import pytest

from sb3_redo.sweeps.files import is_busy, is_finished
from tests.helpers.sweeps import CONFIG, SWEEP, names, start, sweep, wait_for, write_sweep

KILLS = 20
STEPS = 40_000
PERIOD = 50
"""Gradient steps between measurements, and between recyclings."""
NAMES = names(0, 1)
ALWAYS = ["dormancy/fraction", "dormancy/gradient_step", "redo/recycled", "redo/recycled_total"]


@pytest.fixture
def folder(tmp_path):
    write_sweep(tmp_path)
    (tmp_path / "config.yml").write_text(CONFIG.replace("400", str(STEPS)))
    (tmp_path / "sweep.yml").write_text(SWEEP.replace("seeds: [0]", "seeds: [0, 1]"))
    return tmp_path


def kill(process, runs):
    """What ``kill -9`` of the whole command leaves behind, once the system has cleared up."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not any(run.exists() and is_busy(run) for run in runs))


def written_since(moment, runs, name):
    files = [run / name for run in runs]
    return any(file.exists() and file.stat().st_mtime > moment for file in files)


@pytest.mark.slow
def test_a_sweep_that_is_killed_twenty_times_finishes_and_counts_nothing_twice(folder):
    runs = [folder / "out" / name for name in NAMES]
    moments = random.Random(0)
    finished = {}
    for number in range(KILLS):
        begun = time.time()
        process = start(folder, "--workers", "2")
        # The first time after a checkpoint; then at any moment after a training has begun.
        name = "progress.json" if number else "checkpoint.json"
        wait_for(lambda begun=begun, name=name: written_since(begun, runs, name))
        time.sleep(moments.uniform(0, 1.5))
        kill(process, runs)
        for run, result in finished.items():
            assert (run / "result.json").read_bytes() == result  # it was not trained again
        finished = {run: (run / "result.json").read_bytes() for run in runs if is_finished(run)}
    assert len(finished) < len(runs), "too short to be killed so often"
    code, said, complained = sweep(folder, "--workers", "2")
    assert code == 0, complained
    assert "4 runs finished, 0 failed" in said
    assert not list((folder / "out").rglob("damaged_*"))
    assert sum(len(list(run.glob("events.out.tfevents.*"))) for run in runs) > KILLS
    for run in runs:
        check_whole(run)


def check_whole(run):
    """Every gradient step was counted, measured and recycled at once, as in a run that nobody stopped."""
    every = json.loads((run / "run.json").read_text())["settings"]["train_freq"]
    result = json.loads((run / "result.json").read_text())
    assert result["num_timesteps"] == STEPS
    # SB3 trains after each rollout that ends beyond the 50 steps before learning starts.
    gradient_steps = sum(end > 50 for end in range(every, STEPS + 1, every))
    assert result["gradient_steps"] == gradient_steps
    points = pd.read_parquet(run / "points.parquet")
    of = {key: points[points["key"] == key] for key in ALWAYS}
    measured = list(range(0, gradient_steps + 1, PERIOD))
    assert of["dormancy/gradient_step"]["value"].tolist() == measured
    first = STEPS - (gradient_steps - 1) * every
    steps = [first + (step - 1) * every for step in measured[1:]]
    for key in ("dormancy/fraction", "dormancy/gradient_step"):
        assert of[key]["step"].tolist()[1:] == steps, key
    for key in ("redo/recycled", "redo/recycled_total"):
        assert of[key]["step"].tolist() == steps, key
    totals = of["redo/recycled_total"]["value"].tolist()
    assert of["redo/recycled"]["value"].cumsum().tolist() == totals
    assert totals[-1] == result["recycled_total"]


@pytest.fixture
def disk(folder):
    """The sweep's folder on a disk of its own, whose size the test sets."""

    def resize(megabytes):
        subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(folder / "out")], check=True)

    (folder / "out").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(folder / "out")]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs to be allowed to mount a disk")
    yield resize
    subprocess.run(["umount", "--lazy", str(folder / "out")], check=True)


def fill(file, leave=0):
    """Take all space but so many bytes, down to the last byte."""
    with contextlib.suppress(OSError), open(file, "wb", buffering=0) as stream:
        stream.write(b"0" * max(shutil.disk_usage(file.parent).free - leave, 0))
        while not leave:
            stream.write(b"0")


@pytest.mark.slow
def test_what_a_full_disk_has_stopped_goes_on_when_there_is_space(folder, disk):
    runs = [folder / "out" / name for name in NAMES]
    process = start(folder, "--workers", "2")
    wait_for(lambda: all((run / "checkpoint.json").exists() for run in runs[2:]))
    fill(folder / "out" / "filler")
    said, complained = process.communicate(timeout=300)
    print(said, complained)
    assert process.returncode == 1
