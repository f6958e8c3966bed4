"""The pages of the site: their snippets run, their links lead somewhere, and the API reference is whole."""

import contextlib
import importlib
import io
import json
import pkgutil
import re
import subprocess
import sys
import types
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_redo
from tests.helpers.made_runs import write_run, write_sweep
from tests.helpers.runs import TINY

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
LINKED = [*PAGES, *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING"))]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


# ---- snippets

# tests/test_docs.py runs these in its own way.
RUN_ELSEWHERE = {"docs/own_loop.md", "docs/callbacks.md"}

A_MODEL = f"""
from stable_baselines3 import DQN
from sb3_redo import DormancyCallback
model = DQN("MlpPolicy", "CartPole-v1", **{{**{TINY}, "buffer_size": 300}})
model.learn(270)
"""

# What a page takes for granted.
BEFORE = {"docs/logging.md": A_MODEL, "docs/plasticity.md": A_MODEL}


def snippets(page):
    """Each block of Python, with the block of text below it, which it prints."""
    pattern = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def shortened(code):
    return re.sub(r"n_samples=\d+", "n_samples=50", re.sub(r"\.learn\([\d_]+", ".learn(150", code))


@pytest.fixture
def trackers(monkeypatch):
    """Stand-ins of wandb and mlflow, and what is logged to them."""
    logged = []
    wandb, mlflow = types.ModuleType("wandb"), types.ModuleType("mlflow")
    wandb.init = lambda **settings: logged.append(("init", settings))
    wandb.finish = lambda: None
    mlflow.log_metrics = lambda numbers, step: logged.append((step, numbers))
    mlflow.set_tracking_uri = mlflow.set_experiment = mlflow.log_params = lambda given: None
    mlflow.start_run = contextlib.nullcontext
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return logged


def run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    exec(BEFORE.get(name_of(page), ""), module.__dict__)
    for code, printed in snippets(page):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(shortened(code), module.__dict__)
        if printed:
            assert out.getvalue().split() == printed.split(), code
        if isinstance(model := module.__dict__.get("model"), BaseAlgorithm) and hasattr(model, "_logger"):
            model.logger.close()  # SB3 leaves files open
    return module


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=name_of)
def test_snippets_run_and_print_what_stands_below_them(page, monkeypatch, tmp_path, trackers):
    if name_of(page) in RUN_ELSEWHERE:
        pytest.skip("run by tests/test_docs.py")
    if page.stem == "inspect":
        run_folder = tmp_path / "logs/dqn/CartPole-v1_1"
        (run_folder / "CartPole-v1").mkdir(parents=True)
        (run_folder / "CartPole-v1/config.yml").write_text("!!python/object/apply:collections.OrderedDict\n- []\n")
        for file in (run_folder / "CartPole-v1.zip", tmp_path / "agent.zip"):
            DQN("MlpPolicy", "CartPole-v1", **TINY, policy_kwargs={"net_arch": [8]}).save(file)
    if page.stem == "sweeps":
        axes = {"replay_ratio": [1, 4], "callback": ["none", "redo"]}
        for planned in write_sweep(tmp_path / "runs/small_replay_ratio", axes):
            write_run(*planned)
    run(page, monkeypatch, tmp_path)


def test_trackers_get_the_measurements(monkeypatch, tmp_path, trackers):
    run(DOCS / "trackers.md", monkeypatch, tmp_path)
    assert trackers[0][0] == "init"
    assert trackers[0][1]["sync_tensorboard"] is True
    steps = [step for step, numbers in trackers[1:] if "dormancy/fraction" in numbers]
    assert steps == [104]  # when training is about to begin: DQN collects 100 steps first, in rollouts of 4
    assert all(isinstance(number, float) for _, numbers in trackers[1:] for number in numbers.values())


def test_yaml_can_be_read_as_the_zoo_reads_it():
    (block,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "quickstart.md").read_text(), re.DOTALL)
    settings = yaml.safe_load(block)["CartPole-v1"]
    ((name, arguments),) = settings["callback"][0].items()
    module, _, cls = name.rpartition(".")
    assert getattr(importlib.import_module(module), cls)(**arguments).schedule.period == 1000


# ---- links


def anchors(text):
    """The anchors of a page's headings, as GitHub and the site name them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(page, text):
    """Links that lead to no file, or to no heading of their page."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            yield link


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_and_anchors_lead_somewhere(page):
    assert list(dead_links(page, page.read_text(encoding="utf-8"))) == []


def test_the_first_page_leads_to_the_answers():
    first = (DOCS / "index.md").read_text()
    answers = ("install", "choosing", "own_network", "on_policy", "trackers", "api/index", "changelog", "contributing")
    assert [name for name in answers if f"]({name}.md" not in first] == []
    assert "](install.md#versions)" in first
    assert "## Cite" in first


def test_dead_links_are_found():
    text = "[a](wiring.md#no-such-heading) [b](gone.md) [c](wiring.md#the-method) [d](https://x.org/gone) `[e](f)`"
    assert list(dead_links(DOCS / "index.md", text)) == ["wiring.md#no-such-heading", "gone.md"]


# ---- the API reference

# Rooms whose names are for the package alone.
INTERNAL = ("sb3_redo.sweeps", "sb3_redo.experiments", "sb3_redo.cli")


def documented():
    """Names in the API reference: those of a module with all its names, and single ones."""
    text = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    single = set(re.findall(r"^\.\. auto(?:class|function|data):: (\S+)", text, re.MULTILINE))
    return set(re.findall(r"^\.\. automodule:: (\S+)", text, re.MULTILINE)), single


def test_every_public_name_is_in_the_api_reference():
    modules, single = documented()
    packages = ["sb3_redo", *(each.name for each in pkgutil.iter_modules(sb3_redo.__path__, "sb3_redo.") if each.ispkg)]
    public = {package for package in packages if getattr(importlib.import_module(package), "__all__", None)}
    assert public - modules == set()
    named = {name for page in PAGES for code, _ in snippets(page) for name in imported_from_us(code)}
    assert named
    assert {name for name in named if name.rpartition(".")[0] not in modules} - single == set()


def test_names_in_the_api_reference_exist():
    modules, single = documented()
    for module in modules:
        assert importlib.import_module(module).__all__
    for name in single:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__


def imported_from_us(code):
    for module, names in re.findall(r"^ *from (sb3_redo[\w.]*) import ([\w, ]+)", code, re.MULTILINE):
        yield from (f"{module}.{name.strip()}" for name in names.split(","))


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    from sphinx.util.inventory import InventoryFile

    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "trees", DOCS, tmp_path]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    with (tmp_path / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, name: name)
    inventory = getattr(inventory, "data", inventory)  # a dictionary in some versions of Sphinx
    shown = {name for kind in inventory for name in inventory[kind]}
    modules, single = documented()
    expected = {f"{module}.{name}" for module in modules for name in importlib.import_module(module).__all__}
    assert (expected | single) - shown == set()
    assert "image/png" in (tmp_path / "notebooks/dormancy.html").read_text() or (tmp_path / "_images").exists()


# ---- versions


def pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split(";")[0].strip().split("==") for line in lines if "==" in line)


def test_the_hooks_have_the_versions_of_the_constraints():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    given = [pin.split("==") for hook in local["hooks"] for pin in hook.get("additional_dependencies", ())]
    assert given
    assert all(pinned()[package] == version for package, version in given)
    assert {hook["id"]: hook["language"] for hook in local["hooks"]}["mypy"] == "system"


def test_the_page_on_installing_has_the_versions_of_the_metadata():
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    page = (DOCS / "install.md").read_text()
    allowed = re.findall(r"^([\w-]+)>=([\d.]+)", setup["options"]["install_requires"], re.MULTILINE)
    row = re.compile(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
    table = {name.split(" and ")[0].lower(): (oldest, tested) for name, oldest, tested in row.findall(page)}
    for library, package in (("pytorch", "torch"), ("stable-baselines3",) * 2, ("gymnasium",) * 2):
        assert table[library] == (dict(allowed)[package], pinned()[package])
    assert table["rl zoo"][1] == pinned()["rl_zoo3"]
    extras = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))))
    assert extras == set(setup["options.extras_require"])


def test_the_changelog_begins_with_this_version():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == sb3_redo.__version__


def test_the_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    readme = (ROOT / "README.md").read_text()
    assert citation["preferred-citation"]["title"] in readme
    assert json.dumps(citation, default=str)


def test_experimental_rooms_say_so():
    page = (DOCS / "stability.md").read_text().split("## Experimental")[1].split("\n## ")[0]
    experimental = re.findall(r"`(sb3_redo\.\w+)`", page)
    assert len(experimental) == 6
    packages = {f"sb3_redo.{path.parent.name}": path for path in (ROOT / "sb3_redo").glob("*/__init__.py")}
    marked = {name for name, path in packages.items() if "Experimental: names may change" in path.read_text()}
    assert set(experimental) == marked
