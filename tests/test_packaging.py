"""What is installed, what is public, and what is said of packages that are missing."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from configparser import ConfigParser
from pathlib import Path

import pytest
import rl_zoo3.import_envs  # noqa: F401  registers Atari's games before a test hides their package
from stable_baselines3 import DQN

import sb3_redo
from sb3_redo.sweeps.sweep_file import read_sweep_file
from sb3_redo.validation import MissingPackageError, UsageError, needs
from sb3_redo.zoo import CONFIGS

ROOT = Path(__file__).parents[1]
SETUP = ConfigParser(interpolation=None)
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")

PUBLIC = ["DormancyCallback", "ReDoCallback", "__version__", "measure_dormancy", "recycle_dormant", "trace_wiring"]

# What the core does not install.
OPTIONAL = (
    *("ale_py", "cv2", "huggingface_sb3", "imageio", "jsonschema", "matplotlib", "mpl_toolkits", "mujoco", "optuna"),
    *(
        "pandas",
        "pyarrow",
        "ray",
        "rich",
        "rl_zoo3",
        "rliable",
        "scipy",
        "seaborn",
        "sklearn",
        "tqdm",
        "yaml",
    ),
)

CORE_ALONE = """
import contextlib, importlib, io, json, sys
sys.modules.update(dict.fromkeys(%r))
from stable_baselines3 import DQN
from sb3_redo import ReDoCallback, measure_dormancy, recycle_dormant
from sb3_redo.cli.main import main

model = DQN("MlpPolicy", "CartPole-v1", learning_starts=20, tensorboard_log="tensorboard",
            policy_kwargs={"net_arch": [8]}, device="cpu")
model.learn(60, callback=ReDoCallback(recycling_period=5))
model.save("agent")
report = measure_dormancy(model, batch_size=30)
recycle_dormant(model, report)

said = {}

def note(name, call):
    try:
        call()
    except ImportError as error:
        said[name] = str(error)

def run(command):
    with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()):
        said[command] = main(command.split()), stderr.getvalue()

def make(module, name):
    return getattr(importlib.import_module(module), name)

for command in %r:
    run(command)
note("to_frame", report.to_frame)
note("plot", report.plot)
note("digits", lambda: make("sb3_redo.environments", "BlockMDP")())
note("atari", lambda: make("sb3_redo.zoo.atari", "check_atari")("PongNoFrameskip-v4"))
note("loading", lambda: make("sb3_redo.zoo.loading", "open_agent"))
note("zoo", lambda: make("sb3_redo.zoo.__main__", "main")())
note("reports", lambda: make("sb3_redo.reports.build", "write_report"))
note("read_sweep_file", lambda: make("sb3_redo.sweeps.sweep_file", "read_sweep_file"))
make("sb3_redo.algorithms", "DrQ"), make("sb3_redo.networks", "ImpalaCNN"), make("sb3_redo.interventions", "__name__")
print(json.dumps(said))
"""

COMMANDS = {
    "inspect agent.zip --env CartPole-v1": "zoo",
    "inspect agent.zip --csv layers.csv": "plots",
    "inspect agent.zip --plot layers.png": "plots",
    "sweep sweep.yml --dry-run": "sweep",
    "report runs": "report",
    "experiment --list": "sweep",
}
CALLS = {
    "to_frame": ("plots", "pandas"),
    "plot": ("plots", "matplotlib"),
    "digits": ("environments", "sklearn"),
    "atari": ("atari", "ale_py"),
    "loading": ("zoo", "yaml"),
    "zoo": ("zoo", "rl_zoo3"),
    "reports": ("report", "pandas"),
    "read_sweep_file": ("sweep", "pandas"),
}


def run(*command, folder):
    """What a command prints, run in a folder with nothing of this clone on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def in_a_child(script, folder):
    """What a script prints that imports this clone."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed(section, option):
    return SETUP[section][option].split("\n")[1:]


def test_the_metadata_list_every_package():
    # The list is typed, because the configurations lie outside of the package.
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "sb3_redo").rglob("__init__.py")]
    code = {".".join(folder.parts) for folder in folders}
    assert set(listed("options", "packages")) == code | {"sb3_redo.zoo_configs", "sb3_redo.zoo_configs.sweeps"}


def test_every_file_of_data_is_in_the_wheel():
    patterns = {name.strip(): values.split(", ") for name, values in SETUP["options.package_data"].items()}
    for path in (ROOT / "sb3_redo").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            package = ".".join(path.parent.relative_to(ROOT).parts)
            assert any(path.match(pattern) for pattern in patterns.get(package, ())), path


def test_a_clone_has_no_links():
    # Windows checks them out as text.
    assert not [path for path in (ROOT / "sb3_redo").rglob("*") if path.is_symlink()]
    assert CONFIGS == ROOT / "zoo_configs"
    assert (CONFIGS / "demo.yml").is_file()


def test_the_core_is_small():
    names = {re.split("[>=<]", line)[0] for line in listed("options", "install_requires")}
    assert names == {"torch", "stable-baselines3", "sb3-contrib", "gymnasium", "tensorboard"}


def test_every_extra_that_a_message_names_can_be_installed():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "sb3_redo").rglob("*.py"))
    named = {extra for names in re.findall(r'needs\("([\w,]+)", ', code) for extra in names.split(",")}
    assert {"zoo", "atari", "plots", "sweep", "report", "environments"} <= named
    assert named <= set(SETUP["options.extras_require"])
    assert not re.findall(r"pip install .?sb3-redo\[", code.replace('pip install "sb3-redo[{extra}]"', ""))


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What is said where only the core is installed."""
    return json.loads(in_a_child(CORE_ALONE % (OPTIONAL, list(COMMANDS)), tmp_path_factory.mktemp("core")))


@pytest.mark.parametrize(("command", "extra"), COMMANDS.items())
def test_commands_name_what_installs_the_packages_that_they_lack(said, command, extra):
    code, text = said[command]
    assert code == 2
    assert text.startswith("sb3-redo: error: ")
    assert text.endswith(f': pip install "sb3-redo[{extra}]"\n')


@pytest.mark.parametrize(("call", "expected"), CALLS.items())
def test_calls_name_the_package_that_they_lack(said, call, expected):
    extra, package = expected
    assert f' needs {package}: pip install "sb3-redo[{extra}]"' in said[call]


def test_the_caller_says_which_extra_is_needed():
    def fail():
        with needs("sweep", "a sweep"), needs("report", "a report", "write it by hand"):
            import no_such_package.at_all  # noqa: F401

    with pytest.raises(UsageError, match=r'^a sweep needs no_such_package: pip install "sb3-redo\[sweep\]"$'):
        fail()


def test_a_reason_without_a_name_is_passed_on():
    with (
        pytest.raises(MissingPackageError, match=r"a plot needs more packages \(DLL load failed\): .*, or draw$"),
        needs("plots", "a plot", "draw"),
    ):
        raise ImportError("DLL load failed")


def test_a_sweep_of_atari_games_names_their_package(tmp_path, monkeypatch):
    (tmp_path / "config.yml").write_text("atari: {n_timesteps: 1}")
    text = "{algorithm: dqn, environments: [%s], config: config.yml, seeds: [0], grid: {width: [1]}}"
    monkeypatch.setitem(sys.modules, "ale_py", None)
    (tmp_path / "sweep.yml").write_text(text % "ALE/NoSuchGame-v5")
    with pytest.raises(UsageError, match=r'an Atari game needs ale_py: pip install "sb3-redo\[atari\]"'):
        read_sweep_file(tmp_path / "sweep.yml")
    (tmp_path / "sweep.yml").write_text(text % "CartPoll-v1")
    with pytest.raises(UsageError, match="did you mean 'CartPole-v1'"):
        read_sweep_file(tmp_path / "sweep.yml")


def test_what_is_public_is_listed():
    assert dir(sb3_redo) == PUBLIC
    assert sorted([*sb3_redo.__all__, "__version__"]) == PUBLIC
    assert all(getattr(sb3_redo, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="has no attribute 'ReDo'"):
        sb3_redo.ReDo  # noqa: B018


def test_what_is_light_stays_light(tmp_path):
    script = """
import sys
import sb3_redo, sb3_redo.experiments.catalogue, sb3_redo.zoo.policy_names
from sb3_redo.cli.main import main
dir(sb3_redo), sb3_redo.__version__
for command in ("--help", "--version", "sweep --help", "inspect --help"):
    try:
        main(command.split())
    except SystemExit:
        pass
sb3_redo.zoo.policy_names.scalable_policy("dqn", "CnnPolicy")
heavy = {"torch", "stable_baselines3", "gymnasium", "rl_zoo3", "pandas", "sb3_redo.networks"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    assert f"sb3-redo {sb3_redo.__version__}\n" in in_a_child(script, tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "clone").mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "clone")
    for name in ("sb3_redo", "zoo_configs"):
        shutil.copytree(ROOT / name, folder / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", "-o", folder / "dist", folder / "clone", folder=folder)
    return folder / "dist"


@pytest.mark.slow
def test_the_wheel_does_its_work_alone(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    scripts = tmp_path / "venv/bin"
    python = scripts / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index")
    run(*pip, wheel, folder=tmp_path)
    # All else comes from here. A .pth adds the folders to the path, but not what editable installs put into them.
    packages = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", packages, folder=tmp_path).strip())
    ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "borrowed.pth").write_text("\n".join(ours))

    work = tmp_path / "work"
    work.mkdir()
    script = "import importlib.metadata as m, sb3_redo as s; print(s.__file__, s.__version__, m.version('sb3-redo'))"
    file, *versions = run(python, "-c", script, folder=work).split()
    assert Path(file).parent == site / "sb3_redo"
    assert versions == [sb3_redo.__version__] * 2

    DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, device="cpu").save(work / "agent")
    command = ("inspect", "agent.zip", "--env", "CartPole-v1", "--n-samples", 50)
    assert "of 8 neurons dormant" in run(scripts / "sb3-redo", *command, folder=work)

    sweep = site / "sb3_redo/zoo_configs/sweeps/small_replay_ratio.yml"
    runs = run(scripts / "sb3-redo", "sweep", sweep, "--dry-run", folder=work).splitlines()
    assert len(runs) == len(read_sweep_file(CONFIGS / "sweeps/small_replay_ratio.yml").runs)
    (config,) = {re.search(r"-conf (\S+)", line)[1] for line in runs}
    assert (work / config).resolve() == (site / "sb3_redo/zoo_configs/demo.yml").resolve()

    runs = run(scripts / "sb3-redo", "experiment", "label_shuffling", "--dry-run", folder=work).splitlines()
    assert all("sb3_redo.experiments.classifier_run" in line for line in runs)
    script = """
import importlib, pkgutil, sb3_redo
for module in pkgutil.walk_packages(sb3_redo.__path__, "sb3_redo."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""
    names = run(python, "-c", script, folder=work).split()
    code = [path for path in (ROOT / "sb3_redo").rglob("*.py") if path.name != "__main__.py"]
    assert len(names) == len(code) - 1  # but for the package itself
