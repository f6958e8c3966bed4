"""One name, one thing."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ONCE = ("Run", "Sweep", "read_sweep_file", "read_sweep_folder", "gradient_steps_of", "plot_dormancy", "beside_paper")
NEVER = ("train", "read_sweep")


def defined():
    """Every public function and class of a module, as often as it is defined."""
    for folder in ("sb3_redo", "benchmarks", "studies", "tests/helpers"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    yield node.name


@pytest.mark.parametrize("name", ONCE)
def test_names_that_meant_several_things_mean_one(name):
    assert list(defined()).count(name) == 1


@pytest.mark.parametrize("name", NEVER)
def test_names_that_meant_several_things_say_more(name):
    assert name not in set(defined())


def test_no_two_modules_are_called_runs():
    folders = ("sb3_redo", "benchmarks", "studies", "tests")
    assert len([path for folder in folders for path in (ROOT / folder).rglob("runs.py")]) == 1
