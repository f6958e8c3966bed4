"""A sweep whose command is killed again and again, or whose disk is full, ends as if nothing had been."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_redo.sweeps.files import is_busy, is_finished
from tests.helpers.sweeps import CONFIG, SWEEP, names, start, sweep, wait_for, write_sweep

KILLS = 20
STEPS = 8000
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


def train_between_kills(folder, out, most, moments):
    """Give the command until its sweep is finished; how often it was killed, at most so many times."""
    runs = [folder / out / name for name in NAMES]
    finished = {}
    for kills in range(most + 1):
        begun = time.time()
        process = start(folder, "--workers", "2", out=out)
        if kills < most:
            # The first time after a checkpoint; then at any moment after a training has begun.
            name = "progress.json" if kills else "checkpoint.json"
            wait_for(
                lambda begun=begun, name=name, process=process: (
                    written_since(begun, runs, name) or process.poll() is not None
                )
            )
            time.sleep(moments.uniform(0, 1.5))
        if kills == most or process.poll() is not None:
            said, complained = process.communicate(timeout=900)
            break
        kill(process, runs)
        for run, result in finished.items():
            assert (run / "result.json").read_bytes() == result  # it was not trained again
        finished = {run: (run / "result.json").read_bytes() for run in runs if is_finished(run)}
    assert process.returncode == 0, complained
    assert "4 runs finished, 0 failed" in said
    return kills


@pytest.mark.slow
def test_sweeps_that_are_killed_twenty_times_finish_and_count_nothing_twice(folder):
    moments = random.Random(0)
    kills = trainings = 0
    while kills < KILLS:  # on a fast machine a sweep is finished before
        out = f"out{kills}"
        kills += train_between_kills(folder, out, KILLS - kills, moments)
        assert not list((folder / out).rglob("damaged_*"))
        for run in (folder / out / name for name in NAMES):
            check_whole(run)
            trainings += len(list(run.glob("events.out.tfevents.*")))
    assert trainings > KILLS, "most trainings began anew"


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
    """The sweep's folder on a small disk of its own."""
    out = folder / "out"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(out)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs to be allowed to mount a disk")
    yield out
    subprocess.run(["umount", "--lazy", str(out)], check=True)


def fill(file):
    """Take all the space that is left on a disk."""
    with contextlib.suppress(OSError), open(file, "wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


@pytest.mark.slow
def test_what_a_full_disk_has_stopped_goes_on_when_there_is_space(folder, disk):
    runs = [disk / name for name in NAMES]
    longest = runs[2:]  # which are started first
    process = start(folder, "--workers", "2")
    wait_for(lambda: all((run / "checkpoint.json").exists() for run in longest), seconds=300)
    fill(disk / "filler")
    said, complained = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "0 runs finished, 4 failed" in said
    _, *lines = complained.splitlines()
    assert len(lines) == 4
    assert all(re.search(r"^failed ./4: .*: .*[Nn]o space (is )?left on", line) for line in lines), lines
    saved = [json.loads((run / "checkpoint.json").read_text())["folder"] for run in longest]

    (disk / "filler").unlink()
    code, said, complained = sweep(folder, "--workers", "2")
    assert code == 0, complained
    assert "4 runs finished, 0 failed" in said
    for run, checkpoint in zip(longest, saved, strict=True):
        first, *others = (EventAccumulator(str(file)).Reload() for file in sorted(run.glob("events.out.tfevents.*")))
        assert first.Scalars("dormancy/fraction")[0].step < 100
        assert all(each.Scalars("dormancy/fraction")[0].step > int(checkpoint.split("_")[1]) for each in others)
        assert others
    for run in runs:
        check_whole(run)
