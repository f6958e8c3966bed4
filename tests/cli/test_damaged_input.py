"""Whatever a sweep file or a run folder holds, the command ends with a line and starts nothing."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from unittest.mock import Mock

import matplotlib
import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

matplotlib.use("Agg")

from sb3_redo.cli.main import main
from sb3_redo.sweeps import execution
from sb3_redo.sweeps.files import write_json
from sb3_redo.sweeps.sweep_file import read_sweep_file
from tests.helpers.made_runs import write_run, write_sweep

pytestmark = pytest.mark.slow

CONFIG = "CartPole-v1: {n_timesteps: 500, policy: MlpPolicy, policy_kwargs: {net_arch: [8]}}\n"
SWEEP = {
    "algorithm": "dqn",
    "environments": ["CartPole-v1"],
    "config": "config.yml",
    "seeds": [0, 1],
    "target_period": 8,
    "settings": {"learning_rate": 0.001},
    "grid": {
        "replay_ratio": [0.25, "1/2"],
        "width": [1, 2],
        "policy_kwargs.activation": ["relu"],
        "callback": {
            "none": [{"sb3_redo.DormancyCallback": {"dormancy_threshold": 0.1}}],
            "redo": [{"sb3_redo.ReDoCallback": {"dormancy_threshold": 0.1}}],
        },
    },
    "per": {"replay_ratio": {0.25: {"batch_size": 7, "callback": {"dormancy_threshold": 0.5}}}},
}
CASES = settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
NAMES = st.sampled_from(
    [
        *("os.system", "subprocess.Popen", "sb3_redo.ReDoCallback", "sb3_redo.__main__", "torch.nn.Linear", "gamma"),
        *("replay_ratio", "width", "callback", "policy_kwargs", "policy", "n_envs", "batch_size", "train_freq", ""),
        *(
            "target_period",
            "env_kwargs",
            "normalize",
            "lin_1",
            "1e999",
            "CartPole-v1",
            "config.yml",
            "../..",
            "/dev/zero",
        ),
    ]
)
SCALARS = st.one_of(NAMES, st.text(max_size=20), st.integers(), st.floats(), st.booleans(), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(SCALARS, inner, max_size=3)),
    max_leaves=6,
)
# Of the form that a sweep file has somewhere, so that more than the form is tried.
LIKELY = st.one_of(
    SCALARS,
    st.lists(SCALARS, min_size=1, max_size=2),
    st.dictionaries(NAMES, SCALARS, min_size=1, max_size=2),
    st.lists(st.dictionaries(NAMES, st.dictionaries(NAMES, SCALARS, max_size=1), min_size=1, max_size=1), min_size=1),
    VALUES,
)


def places(content, above=()):
    """Paths to all values of a nested structure."""
    yield above
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield from places(value, (*above, key))


@st.composite
def sweep_files(draw):
    """A sweep file with up to three values replaced, added or left out."""
    content = json.loads(json.dumps(SWEEP))
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([place for place in places(content) if place]))
        owner = content
        for key in above:
            owner = owner[key]
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if how == "remove":
            del owner[last]
        elif how == "add" and isinstance(owner, dict):
            owner[draw(SCALARS)] = draw(LIKELY)
        else:
            owner[last] = draw(LIKELY)
    try:
        return yaml.safe_dump(content)
    except yaml.YAMLError:
        assume(False)


@st.composite
def damages(draw):
    """How bytes are changed: cut off, replaced, or one of them flipped."""
    how = draw(st.sampled_from(["cut", "flip", "replace", "insert"]))
    return how, draw(st.floats(0, 1, exclude_max=True)), draw(st.binary(min_size=1, max_size=12))


def damaged(content, damage):
    how, where, more = damage
    at = int(where * len(content))
    if how == "cut":
        return content[:at]
    if how == "flip" and content:
        return content[:at] + bytes([content[at] ^ (more[0] or 1)]) + content[at + 1 :]
    return content[:at] + more + content[at + (len(more) if how == "replace" else 0) :]


def run(*arguments, before=0):
    """Run the command here, within five seconds of CPU time. An error is one line, after so many others."""
    said, complained = io.StringIO(), io.StringIO()
    began = time.process_time()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = main([str(argument) for argument in arguments])
    assert time.process_time() - began < 5
    assert code in (0, 1, 2)
    lines = [line for line in complained.getvalue().splitlines() if "was set aside" not in line]
    if code:
        assert len(lines) == before + 1, lines
    assert all(len(line) < 4000 for line in lines)


@pytest.fixture
def nothing_started(monkeypatch):
    def started(*_, **__):
        raise AssertionError("a process was started")

    for owner, name in ((os, "system"), (os, "fork"), (os, "posix_spawn"), (subprocess, "Popen")):
        monkeypatch.setattr(owner, name, started)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yml").write_text(CONFIG)
    return tmp_path


def with_grid(grid, **more):
    return yaml.safe_dump({**SWEEP, "grid": grid, "per": {}, **more})


@CASES
@given(text=sweep_files())
@example(text=with_grid({5: [1]}))
@example(text=with_grid({"gamma": [0.9]}, per={"gamma": {0.9: {"callback": 5}}}))
@example(text=with_grid({"callback": {"a": [{"os.system": {"command": "true"}}]}}))
def test_any_sweep_file_is_checked_or_refused(here, nothing_started, text):
    Path("sweep.yml").write_text(text, encoding="utf-8", errors="surrogatepass")
    run("sweep", "sweep.yml", "--dry-run")


@CASES
@given(damage=damages(), of_config=st.booleans())
def test_a_damaged_sweep_file_is_checked_or_refused(here, nothing_started, damage, of_config):
    files = {"config.yml": CONFIG, "sweep.yml": yaml.safe_dump(SWEEP)}
    for name, text in files.items():
        Path(name).write_bytes(damaged(text.encode(), damage) if of_config == (name == "config.yml") else text.encode())
    run("sweep", "sweep.yml", "--dry-run")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for number, planned in enumerate(write_sweep(folder, {"callback": ["none", "redo"]}, ["CartPole-v1"], (0, 1))):
        write_run(*planned, parquet=number % 2 == 0)
    return folder


WHERE = st.floats(0, 1, exclude_max=True)
DAMAGES = st.lists(
    st.one_of(
        st.tuples(WHERE, damages()),
        st.tuples(WHERE, st.tuples(st.just("value"), WHERE, VALUES)),
        st.tuples(WHERE, st.sampled_from(["remove", "folder", "loop"])),
    ),
    min_size=1,
    max_size=3,
)


def damage_folder(folder, damage):
    """Damage files of a folder: bytes, a value in JSON, or what lies in a file's place."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for where, how in damage:
        file = files[int(where * len(files))]
        if isinstance(how, str):
            file.unlink(missing_ok=True)
            if how == "folder":
                file.mkdir()
            elif how == "loop":
                file.symlink_to(file)
            files.remove(file)
        elif how[0] != "value":
            file.write_bytes(damaged(file.read_bytes(), how))
        elif file.suffix == ".json":
            file.write_bytes(with_value(file.read_bytes(), *how[1:]))


def with_value(text, where, value):
    """JSON in which another value stands somewhere."""
    try:
        content = json.loads(text)
        known = [place for place in places(content) if place]
        *above, last = known[int(where * len(known))]
        owner = content
        for key in above:
            owner = owner[key]
        owner[last] = value
        return json.dumps(content).encode()
    except (ValueError, TypeError, IndexError):  # it was damaged before, or has keys that JSON has not
        return text


@CASES
@given(damage=DAMAGES)
@example(damage=[(0.25, "loop")])
def test_a_damaged_run_folder_is_reported(made, tmp_path, nothing_started, undrawn, damage):
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder)
    damage_folder(folder, damage)
    run("report", folder)


@CASES
@given(damage=DAMAGES)
@example(damage=[(0.0, "folder")])
@example(damage=[(0.0, "loop")])
def test_a_damaged_run_folder_is_gone_on_with_or_refused(here, nothing_started, untrained, damage):
    Path("sweep.yml").write_text(yaml.safe_dump(SWEEP))
    shutil.rmtree("out", ignore_errors=True)
    for planned in read_sweep_file(Path("sweep.yml")).runs[::4]:
        planned.describe(Path("out"))
        write_json(Path("out") / planned.name / "result.json", {"seconds": 5.0, "final_return": 9.0})
    damage_folder(Path("out"), damage)
    run("sweep", "sweep.yml", "--out", "out", before=1)


@pytest.fixture
def untrained(monkeypatch):
    """All of a sweep but what Ray does."""
    monkeypatch.setattr(execution, "_import_ray", Mock)
    monkeypatch.setattr(execution, "_Executor", Mock())
