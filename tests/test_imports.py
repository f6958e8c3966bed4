"""Imports point one way, rooms keep to themselves, and importing has no effect."""

import subprocess
import sys
from pathlib import Path

import pytest

import sb3_redo
from tests.helpers import house

PACKAGE = Path(sb3_redo.__file__).parent
TORCH_ONLY = ("forward", "wiring", "dormancy", "recycling")
ABSENT = ("stable_baselines3", "sb3_contrib", "gymnasium", "rl_zoo3", "tensorboard", "pandas")

BLOCKING = f"""
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocker())
"""


def run(script):
    """Run a script in a fresh process."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def importing(*rooms):
    """A script that imports every module of some rooms where torch is there and SB3 is not."""
    files = (path for room in rooms for path in (PACKAGE / room).glob("*.py") if path.name != "plots.py")
    modules = ("sb3_redo." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in files)
    return BLOCKING + "\n".join(f"import {module.removesuffix('.__init__')}" for module in modules)


def test_the_inner_rooms_and_the_functions_know_torch_alone():
    finished = run(importing(*TORCH_ONLY) + "\nfrom sb3_redo import measure_dormancy, recycle_dormant, trace_wiring")
    assert finished.returncode == 0, finished.stderr


def test_the_check_above_would_notice():
    assert " is blocked" in run(importing("sb3")).stderr


def test_wiring_names_nothing_of_stable_baselines():
    import stable_baselines3.common.policies as policies

    text = "".join(path.read_text() for path in (PACKAGE / "wiring").glob("*.py"))
    assert not [name for name in vars(policies) if name.endswith("Policy") and name in text]


def test_imports_point_down_without_circles():
    assert house.circles(PACKAGE) == []
    assert house.upward_imports(PACKAGE) == []


def test_every_room_has_its_floor():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == {room for floor in house.FLOORS for room in floor}


def test_no_room_calls_an_underscore_name_of_another():
    assert house.foreign_underscores(PACKAGE) == []


def test_dormancy_and_recycling_know_nothing_of_each_other():
    arrows = {(house.room_of(one), house.room_of(other)) for one, other in house.graph_of(PACKAGE).edges}
    assert not {("dormancy", "recycling"), ("recycling", "dormancy")} & arrows
    assert ("sweeps", "experiments") not in arrows


@pytest.fixture
def made(tmp_path):
    """A package of four rooms, and a function that adds a line to the module of one."""
    package = tmp_path / "made"

    def add(room, line):
        file = package / room / "core.py"
        file.write_text(f"{file.read_text()}{line}\n")

    for room in ("forward", "wiring", "dormancy", "recycling"):
        (package / room).mkdir(parents=True)
        (package / room / "core.py").write_text("")
    add("forward", "class Core:\n    def _hidden(self): ...")
    return package, add


@pytest.mark.parametrize(
    ("room", "line", "check", "found"),
    [
        ("forward", "import made.wiring.core", house.upward_imports, "made.forward.core -> made.wiring.core"),
        (
            "dormancy",
            "from made.recycling import core",
            house.upward_imports,
            "made.dormancy.core -> made.recycling.core",
        ),
        ("recycling", "def f():\n    import made.dormancy.core", house.upward_imports, None),
        ("wiring", "core._hidden()", house.foreign_underscores, "made.wiring.core:1: _hidden"),
    ],
)
def test_what_is_broken_on_purpose_is_noticed(made, room, line, check, found):
    package, add = made
    assert check(package) == []
    add(room, line)
    assert check(package) == [found or "made.recycling.core -> made.dormancy.core"]


def test_circles_are_noticed_even_where_only_type_checkers_see_them(made):
    package, add = made
    add("wiring", "import made.forward.core")
    assert house.circles(package) == []
    add("forward", "if TYPE_CHECKING:\n    import made.wiring.core")
    assert house.circles(package) == [["made.forward.core", "made.wiring.core"]]


def test_importing_moves_no_random_stream_and_sets_no_filter():
    script = """
import random, warnings
import numpy, torch, stable_baselines3, rl_zoo3.callbacks
def state():
    streams = random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()
    return streams, list(warnings.filters)
before = state()
from sb3_redo import *
assert before == state()
"""
    finished = run(script)
    assert finished.returncode == 0, finished.stderr


def test_a_star_import_gives_the_public_names():
    names = {}
    exec("from sb3_redo import *", names)
    public = {"DormancyCallback", "ReDoCallback", "measure_dormancy", "recycle_dormant", "trace_wiring"}
    assert public <= set(names)
