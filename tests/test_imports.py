"""Imports point one way, and importing has no effect."""

import subprocess
import sys
from pathlib import Path

import sb3_redo

TORCH_ONLY = ("forward", "wiring", "dormancy", "recycling")


def loaded_after(statement):
    """Top-level modules in a fresh process after one statement."""
    # The package's __init__ offers the callbacks, so a stand-in without contents takes its place.
    script = f"""
import sys, types, pathlib, importlib.util
package = types.ModuleType("sb3_redo")
package.__path__ = list(importlib.util.find_spec("sb3_redo").submodule_search_locations)
sys.modules["sb3_redo"] = package
{statement}
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return finished.stdout.split()


def test_the_inner_rooms_know_torch_alone():
    rooms = Path(sb3_redo.__file__).parent
    modules = (f"{room}.{path.stem}" for room in TORCH_ONLY for path in (rooms / room).glob("[a-z]*.py"))
    loaded = loaded_after("\n".join(f"import sb3_redo.{module}" for module in modules if module != "dormancy.plots"))
    assert "torch" in loaded
    assert "stable_baselines3" not in loaded


def test_the_check_above_would_notice():
    assert "stable_baselines3" in loaded_after("import sb3_redo.sb3.buffers")


def test_wiring_names_nothing_of_stable_baselines():
    import stable_baselines3.common.policies as policies

    text = "".join(path.read_text() for path in (Path(sb3_redo.__file__).parent / "wiring").glob("*.py"))
    assert not [name for name in vars(policies) if name.endswith("Policy") and name in text]


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
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_a_star_import_gives_the_public_names():
    names = {}
    exec("from sb3_redo import *", names)
    public = {"DormancyCallback", "ReDoCallback", "measure_dormancy", "recycle_dormant", "trace_wiring"}
    assert public <= set(names)
