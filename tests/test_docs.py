"""The pages on architecture, own loops and own callbacks say what is true, and their examples run."""

import doctest
import functools
import json
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from stable_baselines3 import DQN

from docs.draw_architecture import BOXES, PICTURE, ROOT, ROUTE, calls, downward, draw, imports
from sb3_redo import ReDoCallback
from tests.helpers.house import upward_imports
from tests.helpers.runs import dqn

PACKAGE = ROOT / "sb3_redo"
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("architecture", "own_loop", "callbacks")}
README = (ROOT / "README.md").read_text()


def blocks(page):
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)


def words_in(text):
    return set(re.findall(r"\w+", text))


# ---- the picture


def test_the_picture_is_what_the_program_draws_now():
    assert PICTURE.read_text(encoding="utf-8") == draw(PACKAGE), "run python -m docs.draw_architecture"


def test_the_picture_changes_with_the_imports(tmp_path):
    for name in BOXES:
        (tmp_path / "sb3_redo" / name).mkdir(parents=True)
        (tmp_path / "sb3_redo" / name / "module.py").write_text("")
    (tmp_path / "sb3_redo" / "cli" / "module.py").write_text("import sb3_redo.forward.module\n")
    assert imports(tmp_path / "sb3_redo") == {("cli", "forward")}
    assert draw(tmp_path / "sb3_redo").count('class="import"') == 2  # and that of the legend


def test_every_folder_and_module_of_the_package_has_a_box():
    parts = {path.stem for path in PACKAGE.glob("[a-z]*.py")}
    parts |= {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert parts == set(BOXES)


def test_all_imports_point_down_in_the_picture():
    known = {tuple(module.split(".")[1] for module in arrow.split(" -> ")) for arrow in upward_imports(PACKAGE)}
    assert not {arrow for arrow in imports(PACKAGE) if not downward(arrow)} - known
    assert all(map(downward, calls()))


# ---- the route of one recycling step


@pytest.fixture(scope="module")
def executed():
    """Calls between the package's files in a training that recycles: (caller, file, function, whether in recycle())."""
    found, depth = set(), 0

    @functools.cache
    def file_of(path):
        return Path(path).relative_to(PACKAGE).as_posix() if path.startswith(f"{PACKAGE}/") else "torch"

    def watch(frame, event, argument):
        nonlocal depth
        if event in ("call", "return") and (file := file_of(frame.f_code.co_filename)) != "torch":
            name = frame.f_code.co_name
            is_recycle = (file, name) == ("recycling/step.py", "recycle")
            if event == "call":
                depth += is_recycle
                found.add((file_of(frame.f_back.f_code.co_filename), file, name, depth > 0))
            else:
                depth -= is_recycle

    model, callback = dqn(gradient_steps=20, train_freq=20), ReDoCallback(0.9, recycling_period=10, batch_size=16)
    before = sys.getprofile()
    try:
        sys.setprofile(watch)
        model.learn(40, callback=callback)
    finally:
        sys.setprofile(before)
    return found


def test_the_route_is_the_one_that_a_recycling_step_takes(executed):
    files = ["torch", *(file for file, _, _ in ROUTE)]
    called = {each[:3] for each in executed}
    for number, (file, function, caller) in enumerate(ROUTE, 1):
        assert (files[caller], file, function) in called, f"{files[caller]} does not call {function} of {file}"
        assert caller < number, "read from the top down"
    assert len(ROUTE) <= 10


def listed(heading):
    """The files and functions of a numbered list on the page of the architecture."""
    section = PAGES["architecture"].split(f"## {heading}\n")[1].split("\n## ")[0]
    items = re.findall(r"^\d+\. `([\w/]+\.py)`, `([\w.]+)`", section, re.MULTILINE)
    assert len(items) == len(re.findall(r"^\d+\. ", section, re.MULTILINE))
    return [(file, function.split(".")[-1]) for file, function in items]


def test_the_page_lists_the_route():
    assert listed("One recycling step") == [(file, function) for file, function, _ in ROUTE]


def test_the_page_lists_the_files_that_recycle_goes_through(executed):
    route = listed("`recycle` itself")
    inside = {(file, function) for _, file, function, is_inside in executed if is_inside}
    # What SecondMoment.of holds is a function of that file.
    assert {file for file, _ in inside if file.startswith("recycling/")} == {file for file, _ in route}
    assert set(route) - {("recycling/optimizer_state.py", "of")} <= inside
    assert len(route) <= 5


# ---- what the pages name


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_short(page):
    assert len(PAGES[page].splitlines()) < 125


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page])
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    assert f"](docs/{page}.md)" in README


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    named = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", PAGES[page]) + re.findall(r"`(\w+\.py)`", PAGES[page])
    places = (ROOT, PACKAGE, PACKAGE / "wiring", PACKAGE / "sb3")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


@pytest.mark.parametrize("page", PAGES)
def test_names_of_ours_exist(page):
    source = words_in("".join(path.read_text() for path in PACKAGE.rglob("*.py")))
    source |= words_in((ROOT / "tests/helpers/house.py").read_text())
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    named = {name for code in re.findall(r"`([^`]+)`", prose) for name in re.findall(r"\b[A-Za-z_]\w+", code)}
    ours = {name for name in named if "_" in name.strip("_") or re.search("[a-z][A-Z]", name) or name.isupper()}
    theirs = words_in("q_network requires_grad_ reset_parameters docs draw_architecture own_loop b_obs _optim")
    theirs |= words_in("WeightNormCallback test_imports test_docs test_untouched test_step test_tensorboard")
    theirs |= words_in("test_optimizers test_optimizer_state")
    assert ours - source - theirs == set()


# ---- a training loop of one's own

BLOCKED = ("stable_baselines3", "sb3_contrib", "gymnasium", "rl_zoo3", "tensorboard", "pandas", "matplotlib")

BLOCKER = f"""
import importlib.abc, importlib.machinery, json, sys

class Blocker(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):  # torch looks for pandas without importing it
        if name.split(".")[0] in {BLOCKED}:
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise ImportError(spec.name + " is blocked")

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Blocker())
"""

OWN_LOOP = """
import torch
from torch import nn

network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
nn.init.constant_(network[0].bias[:2], -100.0)  # two dead neurons
optimizer, observations = torch.optim.Adam(network.parameters()), torch.randn(16, 3)
three_lines, loop, agent = json.loads(sys.argv[1])
exec(three_lines)
assert network[0].bias[:2].tolist() == [0.0, 0.0] and not network[2].weight[:, :2].any()

records = []
def counted(function):
    def count(*args, **settings):
        records.append(function(*args, **settings))
        return records[-1]
    return count

import sb3_redo.by_hand
sb3_redo.recycle_dormant = counted(sb3_redo.by_hand.recycle_dormant)
exec(loop, {})
exec(agent, {})
try:
    from sb3_redo import ReDoCallback
except ImportError as error:
    assert "is blocked" in str(error)
else:
    raise AssertionError("a callback needs no Stable-Baselines3")
print(json.dumps([record.recycled for record in records]))
"""


def run_blocked(script, *arguments):
    command = [sys.executable, "-W", "error", "-c", BLOCKER + script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_own_loops_recycle_where_torch_is_all_there_is():
    finished = run_blocked(OWN_LOOP, json.dumps(blocks("own_loop")))
    assert finished.returncode == 0, finished.stderr
    *_, recycled = finished.stdout.splitlines()
    assert len(json.loads(recycled)) == 4  # three in the loop, and one of the agent
    assert min(json.loads(recycled)) > 0


@pytest.mark.parametrize("name", BLOCKED)
def test_what_is_blocked_cannot_be_imported(name):
    assert f"ImportError: {name} is blocked" in run_blocked(f"import {name}").stderr


def test_the_readme_has_the_three_lines():
    three_lines, loop, _ = blocks("own_loop")
    assert f"```python\n{three_lines}```" in README
    assert len(loop[loop.index("torch.manual_seed") :].splitlines()) < 30


# ---- callbacks of one's own


@pytest.fixture
def documented(monkeypatch):
    """A module that has the callback of the page."""
    module = types.ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", module)
    exec(blocks("callbacks")[0], module.__dict__)
    return module


def long_trains(**settings):
    return dqn(train_freq=50, gradient_steps=50, policy_kwargs={"net_arch": [20, 20]}, **settings)


def train(model, callback, steps, documented):
    """Where the callback acted: gradient step that it logs, that of the optimizer, points so far, environment steps."""
    acted, real = [], documented.write_point

    def write_point(logger, values, num_timesteps):
        step = next(iter(model.policy.optimizer.state.values()))["step"]
        acted.append((values["weights/gradient_step"], int(step), values["weights/points"], num_timesteps))
        real(logger, values, num_timesteps)

    documented.write_point = write_point
    try:
        model.learn(steps, callback=callback, reset_num_timesteps=False)
    finally:
        documented.write_point = real
    return acted


def test_the_example_is_short_and_acts_every_1000_gradient_steps(documented):
    assert len(blocks("callbacks")[0].splitlines()) < 20
    assert documented.WeightNormCallback().period == 1000


def test_the_example_acts_exactly_at_its_multiples_inside_a_long_train_call(documented):
    acted = train(long_trains(), documented.WeightNormCallback(period=15), 200, documented)
    assert [each[0] for each in acted] == list(range(15, 200, 15))
    assert all(gradient_step == made for gradient_step, made, _, _ in acted)
    assert len({num_timesteps for *_, num_timesteps in acted}) == 4  # train() calls


def test_the_example_goes_on_after_loading_as_an_uninterrupted_run(documented, tmp_path):
    whole = train(long_trains(), documented.WeightNormCallback(period=15), 200, documented)
    model = long_trains()
    first = train(model, documented.WeightNormCallback(period=15), 100, documented)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DQN.load(tmp_path / "model", env=model.get_env())
    loaded.load_replay_buffer(tmp_path / "buffer")
    second = train(loaded, documented.WeightNormCallback(period=15), 100, documented)
    assert first
    assert second
    assert first + second == whole
    assert [points for _, _, points, _ in whole] == list(range(1, 1 + len(whole)))


def test_a_used_callback_is_shown_pickled_and_used_again(documented):
    callback = documented.WeightNormCallback(period=15)
    train(long_trains(), callback, 100, documented)
    copy = pickle.loads(pickle.dumps(callback))
    assert repr(copy) == repr(callback) == "WeightNormCallback(period=15)"
    assert copy.__dict__.get("model") is None
    assert train(long_trains(), copy, 100, documented)


def test_doctests_of_the_page_hold(documented):
    test = doctest.DocTestParser().get_doctest(PAGES["callbacks"].replace("```", ""), vars(documented), "page", None, 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize(
    ("selection", "layers"),
    [("lowest_tenth", {"q_net.q_net.0", "q_net.q_net.2"}), ("dormant_in_last_layer", {"q_net.q_net.2"})],
)
def test_selections_recycle_what_they_select(selection, layers):
    records = []

    class Recorded(ReDoCallback):
        def recycle(self, neurons, report):
            records.append(super().recycle(neurons, report))
            return records[-1]

    names = {}
    exec(blocks("callbacks")[2].rpartition("model.learn")[0], names)
    model = long_trains()
    with torch.no_grad():
        for layer in ("q_net.q_net.0", "q_net.q_net.2"):  # a neuron of each is dead
            model.policy.get_submodule(layer).bias[5] = -100.0
    model.learn(50, callback=Recorded(0.0, recycling_period=25, batch_size=16, select=names[selection]))
    recycled = records[0].neurons
    assert recycled.keys() == layers
    assert all(5 in neurons.tolist() for neurons in recycled.values())
    assert selection != "lowest_tenth" or {len(neurons) for neurons in recycled.values()} == {2}


def test_all_blocks_of_the_page_run_in_turn(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("whole_page")
    monkeypatch.setitem(sys.modules, "whole_page", module)
    for block in blocks("callbacks"):
        if ">>>" not in block:
            exec(block.replace("10_000", "200"), module.__dict__)
    assert module.model.num_timesteps == 200
