"""Sweep files are checked whole before anything starts, and every run of them is a command of the zoo."""

import argparse
import inspect
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rl_zoo3
import yaml
from rl_zoo3.utils import ALGOS, StoreDict

from sb3_redo.cli.main import main
from sb3_redo.experiments.readers import READERS
from sb3_redo.sweeps.conditions import hyperparameters, python_text
from sb3_redo.sweeps.sweep_file import read_sweep_file
from sb3_redo.sweeps.value_types import complaint_about
from sb3_redo.validation import UsageError

SWEEPS = Path(__file__).parents[2] / "zoo_configs" / "sweeps"
TEXT = """\
algorithm: dqn
environments: [CartPole-v1]
config: config.yml
seeds: [0, 1]
settings:
  learning_rate: 0.001
grid:
  replay_ratio: [0.25, 2]
  width: [1, 2]
  callback:
    none:
      - sb3_redo.DormancyCallback: {dormancy_threshold: 0.1}
    redo:
      - sb3_redo.ReDoCallback: {dormancy_threshold: 0.1}
per:
  replay_ratio:
    2: {target_update_interval: 7, callback: {dormancy_threshold: 0.5}}
"""
CONFIG = """\
CartPole-v1:
  n_timesteps: 500
  policy: MlpPolicy
  train_freq: 16
  gradient_steps: 8
  policy_kwargs: "dict(net_arch=[8])"
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads a sweep whose text was changed."""
    monkeypatch.chdir(tmp_path)

    def reading(old="", new="", config=CONFIG, also=("", "")):
        assert old in TEXT
        (tmp_path / "config.yml").write_text(config)
        (tmp_path / "sweep.yml").write_text(TEXT.replace(old, new, 1).replace(*also, 1))
        return read_sweep_file(tmp_path / "sweep.yml")

    return reading


def test_runs_are_the_product_of_environments_grid_and_seeds(read):
    sweep = read()
    assert len(sweep.runs) == len({run.name for run in sweep.runs}) == 2 * 2 * 2 * 2
    assert sweep.runs[0].name == "CartPole-v1/replay_ratio=0.25,width=1,callback=none/seed=0"
    assert sweep.runs[-1].condition == {"replay_ratio": 2, "width": 2, "callback": "redo"}
    assert sweep.plan()["axes"] == {"replay_ratio": [0.25, 2], "width": [1, 2], "callback": ["none", "redo"]}
    assert sweep.plan()["text"] == TEXT


def test_what_a_run_changes_is_what_its_condition_says(read):
    first, last = read().runs[0], read().runs[-1]
    assert first.overrides == {
        "learning_rate": 0.001,
        "train_freq": 4,
        "gradient_steps": 1,
        "policy": "sb3_redo.networks.DQNMlpPolicy",
        "policy_kwargs": "dict(dict(net_arch=[8]), width=1)",
    }
    assert last.overrides["target_update_interval"] == 7
    assert (last.overrides["train_freq"], last.overrides["gradient_steps"]) == (1, 2)
    assert first.callbacks == [{"sb3_redo.DormancyCallback": {"dormancy_threshold": 0.1}}]
    assert last.callbacks == [{"sb3_redo.ReDoCallback": {"dormancy_threshold": 0.5}}]


def test_the_zoo_reads_from_the_command_what_was_meant(read):
    run = read().runs[-1]
    words = shlex.split(run.command_line(Path("out")))
    parser = argparse.ArgumentParser()
    parser.add_argument("-params", nargs="+", action=StoreDict)
    found, _ = parser.parse_known_args(words)
    callback = found.params.pop("callback")
    assert found.params == run.overrides
    assert callback[1:] == run.callbacks
    assert callback[0]["sb3_redo.sweeps.RunFolder"]["folder"] == f"out/{run.name}"
    assert words[:3] == ["python", "-m", "rl_zoo3.train"]


WIDTH = "width: [1, 2]"
WRONG = {
    "an unknown key": ("seeds: [0, 1]", "seds: [0, 1]", r"sweep.yml:4: seds: .* did you mean 'seeds'\?"),
    "a seed that is no number": ("[0, 1]", "[0, one]", r"sweep.yml:4: seeds.1: expected a whole number, got 'one'"),
    "no list": ("width: [1, 2]", "width: 2", r"sweep.yml:9: grid.width: expected a list of values, got 2"),
    "neither a list nor labels": (
        "width: [1, 2]",
        "batch_size: 32",
        r"sweep.yml:9: grid.batch_size: expected a list of values, or a mapping of labels to values, got 32",
    ),
    "a width of text": (
        "width: [1, 2]",
        "width: [1, wide]",
        r"sweep.yml:9: grid.width.1: expected a number, got 'wide'",
    ),
    "a negative width": (
        "width: [1, 2]",
        "width: [1, -2]",
        r"sweep.yml:9: grid.width.1: expected a number greater than 0, got -2",
    ),
    "callbacks as a list": (
        "  callback:\n    none:\n      - sb3_redo.DormancyCallback: {dormancy_threshold: 0.1}\n    redo:\n  ",
        "  callback:\n  ",
        r"sweep.yml:\d+: grid.callback: expected a mapping of labels to lists of callbacks",
    ),
    "an unknown environment": ("CartPole-v1", "CartPole-v7", r"sweep.yml:2: environments.0: 'CartPole-v7' is not reg"),
    "an unknown algorithm": ("dqn", "dqnn", r"sweep.yml:1: algorithm: .* did you mean 'dqn'\?"),
    "an unknown hyper-parameter": ("learning_rate", "learnig_rate", r"sweep.yml:6: .* did you mean 'learning_rate'\?"),
    "an unknown axis": ("width", "widht", r"sweep.yml:9: grid.widht: .* did you mean 'width'\?"),
    "no replay ratio": ("[0.25, 2]", "[0.25, 2, 0]", r"sweep.yml:8: grid.replay_ratio.2: .* must be positive"),
    "a rounded replay ratio": ("[0.25, 2]", "[0.33333, 2]", r'sweep.yml:8: grid.replay_ratio.0: .*"1/3" can be had'),
    "no label of the grid": (
        "    2: {target",
        "    3: {target",
        r"sweep.yml:17: per.replay_ratio.3: the grid has",
    ),
    "no callback": ("ReDoCallback", "ReDoCalback", r"sweep.yml:13: grid.callback.redo: .*ReDoCalback"),
    "a callback's setting": (
        "ReDoCallback: {dormancy_threshold: 0.1}",
        "ReDoCallback: {dormancy_threshold: -1}",
        r"sweep.yml:13: grid.callback.redo: dormancy_threshold must be",
    ),
    "a callback's setting beside a value": (
        "callback: {dormancy_threshold: 0.5}",
        "callback: {dormancy_treshold: 0.5}",
        r"sweep.yml:15: per: the callbacks of CartPole-v1/replay_ratio=2.*dormancy_treshold",
    ),
    "text for a number": (
        "learning_rate: 0.001",
        "learning_rate: 1e-4",
        r"sweep.yml:6: settings.learning_rate: expected a number, got '1e-4', which is text to YAML: write 1.0e-4",
    ),
    "a grid value of a wrong type": (
        "width: [1, 2]",
        "width: [1, 2]\n  batch_size:\n    - 32\n    - 6.5",
        r"sweep.yml:12: grid.batch_size.1: expected a whole number, got 6.5",
    ),
    "a grid value of a wrong type behind a label": (
        "width: [1, 2]",
        "width: [1, 2]\n  batch_size:\n    small: 32\n    large: many",
        r"sweep.yml:12: grid.batch_size.large: expected a whole number, got 'many'",
    ),
    "a wrong type beside a value": (
        "target_update_interval: 7",
        "target_update_interval: true",
        r"sweep.yml:17: per.replay_ratio.2.target_update_interval: expected a whole number, got True",
    ),
    "two labels alike": ("[0.25, 2]", '[0.25, "0.25", 2]', r"sweep.yml:7: grid: two conditions are named alike"),
    "no configuration": ("config.yml", "confg.yml", r"sweep.yml:3: config: confg.yml cannot be read"),
    "a key twice": ("seeds: [0, 1]", "seeds: [0, 1]\nseeds: [2]", r"sweep.yml:5: seeds: duplicate key"),
    "no YAML": ("seeds: [0, 1]", "seeds: [0, 1", r"sweep.yml:5: this is no YAML: expected"),
    "a discount of five": (
        WIDTH,
        "gamma: [0.9, 5]",
        r"sweep.yml:9: grid.gamma.1: expected a number from 0 to 1, got 5",
    ),
    "a negative batch": (WIDTH, "batch_size: [-4]", r"sweep.yml:9: grid.batch_size.0: expected a number from 1 to"),
    "no number": (WIDTH, "gamma: [.nan]", r"sweep.yml:9: expected a number, got NaN"),
    "a schedule of a negative rate": (WIDTH, "learning_rate: [lin_-1]", r"sweep.yml:9: .* at least 0, got -1"),
    "half a frequency": (WIDTH, "train_freq: {a: [4]}", r"sweep.yml:9: .*step or episode"),
    "a huge number of steps": (WIDTH, f"n_timesteps: [{'9' * 401}]", r"sweep.yml:9: .* 64 bits, got one of 401 char"),
    "an unknown policy": (WIDTH, "policy: [MlpPolcy]", r"sweep.yml:9: grid.policy.0: .* did you mean 'MlpPolicy'\?"),
    "a policy that is none": (WIDTH, "policy: [torch.nn.Linear]", r"sweep.yml:9: .* subclass of BasePolicy"),
    "an unknown optimizer": (
        WIDTH,
        WIDTH + "\n  policy_kwargs: {a: {optimizer_class: torch.optim.Adm}}",
        r"sweep.yml:10: .* 'Adm'",
    ),
    "a class that stays text": (
        WIDTH,
        "policy_kwargs: {a: {activation_fn: torch.nn.ReLU}}",
        r"sweep.yml:9: .* activation_fn has to be a class, and 'torch.nn.ReLU' is text: write ",
    ),
    "a class in Python text": (
        WIDTH,
        'policy_kwargs: ["dict(activation_fn=nn.ReLu)"]',
        r"sweep.yml:9: grid.policy_kwargs.0: .*torch.nn has no 'ReLu'; did you mean 'ReLU'\?",
    ),
    "a name in Python text": (
        WIDTH,
        'policy_kwargs: ["dict(activation_fn=ReLU)"]',
        r"sweep.yml:9: grid.policy_kwargs.0: .*the zoo has no 'ReLU'",
    ),
    "a class of another kind": (
        WIDTH,
        'policy_kwargs: ["dict(optimizer_class=nn.ReLU)"]',
        r"sweep.yml:9: .* expected a subclass of Optimizer for optimizer_class, got <class",
    ),
    "a policy's setting in Python text": (
        WIDTH,
        'policy_kwargs: ["dict(dict(net_arch=[8]), net_arhc=[8])"]',
        r"sweep.yml:9: .* did you mean 'net_arch'\?",
    ),
    "settings of a policy that are none": (
        WIDTH,
        "policy_kwargs: ['[8]']",
        r"sweep.yml:9: .* expected a mapping of policy_kwargs, got \[8\]",
    ),
    "a call in Python text": (
        WIDTH,
        "replay_buffer_kwargs: [\"__import__('os').system('touch called') or {}\", \"dict(n=HerBuffer)\"]",
        r"sweep.yml:9: grid.replay_buffer_kwargs.1: .*the zoo has no 'HerBuffer'",
    ),
    "an unknown wrapper": (
        WIDTH,
        "env_wrapper: {a: rl_zoo3.wrappers.FrameSkp}",
        r"sweep.yml:9: grid.env_wrapper.a: .* no attribute 'FrameSkp'",
    ),
    "a wrapper's setting": (
        WIDTH,
        "env_wrapper: {a: [{rl_zoo3.wrappers.FrameSkip: {skp: 2}}]}",
        r"sweep.yml:9: grid.env_wrapper.a: rl_zoo3.wrappers.FrameSkip: got an unexpected keyword argument 'skp'",
    ),
    "a wrapper of Python": (
        WIDTH,
        "vec_env_wrapper: {a: os.system}",
        r"sweep.yml:9: grid.vec_env_wrapper.a: .*of Python itself",
    ),
    "a wrapper that wraps nothing": (
        WIDTH,
        "env_wrapper: {a: torch.__version__}",
        r"sweep.yml:9: .* that wraps an env",
    ),
    "an unknown policy setting": (WIDTH, "policy_kwargs: {a: {net_arhc: [8]}}", r"sweep.yml:9: .* mean 'net_arch'\?"),
    "an unknown activation": (
        WIDTH,
        WIDTH + "\n  policy_kwargs: {a: {activation: rely}}",
        r"sweep.yml:10: .* 'relu'\?",
    ),
    "text that is no Python": (WIDTH, "policy_kwargs: {a: dict(}", r"sweep.yml:9: .* an expression in Python"),
    "what the sweep sets": (WIDTH, "seed: [1]", r"sweep.yml:9: grid.seed: seed must be one of"),
    "a label with a NUL": (WIDTH, 'gamma: {"a\\0": 0.9}', r"sweep.yml:9: expected text, got 'a.x00'"),
    "a label of two lines": (
        WIDTH,
        'gamma: {"a\\nb": 0.9}',
        r"sweep.yml:7: grid: expected labels that make up the name",
    ),
    "a label of 300 characters": (WIDTH, f"gamma: {{{'a' * 300}: 0.9}}", r"sweep.yml:7: grid: .* at most 255 bytes"),
    "an axis that is no name": (WIDTH, "5: [1]", r"sweep.yml:9: grid.5: 5 must be one of"),
    "an entry that is no name": (WIDTH, "policy_kwargs.a b: [1]", r"sweep.yml:9: grid.policy_kwargs.a b: "),
    "a ratio beyond all memory": (
        "[0.25, 2]",
        '[0.25, 2, "1e999999999"]',
        r"sweep.yml:8: .* must be a number or a fraction",
    ),
    "too many runs": ("[0, 1]", str(list(range(2000))), r"sweep.yml:7: grid: expected at most 10,000 runs, got 16,000"),
    "no settings of a callback": (
        "callback: {dormancy_threshold: 0.5}",
        "callback: 5",
        r"sweep.yml:17: per.* a mapping",
    ),
    "a function for a callback": (
        "sb3_redo.ReDoCallback: {dormancy_threshold: 0.1}",
        "os.system: {command: touch called}",
        r"sweep.yml:13: grid.callback.redo: .* got 'os' of Python itself",
    ),
    "a function of the zoo for a callback": (
        "sb3_redo.ReDoCallback: {dormancy_threshold: 0.1}",
        "rl_zoo3.utils.get_class_by_name: {name: os.system}",
        r"sweep.yml:13: grid.callback.redo: expected a subclass of BaseCallback, got rl_zoo3.utils.get_class_by_name",
    ),
    "a program for a callback": ("sb3_redo.ReDoCallback:", "sb3_redo.__main__.main:", r"sweep.yml:13: .*be imported"),
    "a module that opens a browser": (
        "seeds:",
        "gym_packages: [antigravity]\nseeds:",
        r"sweep.yml:4: .*of Python itself",
    ),
    "aliases of aliases": (
        "seeds: [0, 1]",
        "seeds: &a [0]\nsettings: &b\n"
        + "".join(f"  x{n}: &x{n} [{', '.join(['*a' if n == 0 else f'*x{n - 1}'] * 10)}]\n" for n in range(9)),
        r"sweep.yml:\d+: expected at most 20,000 values, got \d",
    ),
    "an alias of itself": ("seeds: [0, 1]", "seeds: &a [*a]", r"sweep.yml:4: an alias leads back to the value"),
    "a tag of Python": (
        "seeds: [0, 1]",
        "seeds: !!python/object/apply:os.system [touch called]",
        r"sweep.yml:4: .* got the tag '!!python/object/apply:os.system'",
    ),
    "depth": ("seeds: [0, 1]", f"seeds: {'[' * 5000}", r"sweep.yml: expected values at most 40 deep"),
    "a number of base 60": ("seeds: [0, 1]", f"seeds: [{'1:' * 3000}1]", r"sweep.yml:4: expected a number of 64 bits"),
    "no date": (
        "seeds: [0, 1]",
        "seeds: [2001-02-30]",
        r"sweep.yml:4: expected text, got a date: put '2001-02-30' in quotes",
    ),
    "a seed with a point": ("seeds: [0, 1]", "seeds: [1.0]", r"sweep.yml:4: seeds.0: expected a whole number, got 1.0"),
    "a seed twice": (
        "seeds: [0, 1]",
        "seeds: [1, 0x1]",
        r"sweep.yml:4: seeds: expected values that differ, got \[1, 1\]",
    ),
    "one seed alone": ("seeds: [0, 1]", "seeds: 5", r"sweep.yml:4: seeds: expected a list, got 5"),
    "a truth value for a seed": (
        "seeds: [0, 1]",
        "seeds: [true]",
        r"sweep.yml:4: seeds.0: expected a whole number, got Tr",
    ),
    "steps with a point": (
        "seeds:",
        "n_timesteps: 1.0e+3\nseeds:",
        r"sweep.yml:4: n_timesteps: expected a whole number, g",
    ),
    "steps in two places": (
        "seeds: [0, 1]\nsettings:",
        "n_timesteps: 9\nseeds: [0, 1]\nsettings:\n  n_timesteps: 8",
        r"sweep.yml:4: n_timesteps: n_timesteps is set here and among the settings: give it once",
    ),
    "endless time between checkpoints": (
        "seeds:",
        "checkpoint_minutes: .inf\nseeds:",
        r"sweep.yml:4: checkpoint_minutes: expected a number of at most 1,000,000, got inf",
    ),
    "an endless learning rate": (
        "learning_rate: 0.001",
        "learning_rate: .inf",
        r"sweep.yml:6: settings.learning_rate: exp",
    ),
    "labels that differ in case": (
        WIDTH,
        "gamma: {A: 0.9, a: 0.8}",
        r"sweep.yml:7: grid: two conditions are named alike",
    ),
    "labels that look alike": (
        WIDTH,
        'gamma: {"\\xe9": 0.9, "e\\u0301": 0.8}',
        r"sweep.yml:7: grid: two conditions are named alike",
    ),
    "labels of the same": (
        WIDTH,
        "gamma: {a: 0.9, b: 0.9}",
        r"sweep.yml:9: grid.gamma: 'a' and 'b' are the same train",
    ),
    "a ratio in two ways": (
        "[0.25, 2]",
        "[0.25, 1/4, 2]",
        r"sweep.yml:8: grid.replay_ratio: 0.25 and '1/4' are the same",
    ),
    "a schedule beside a ratio": (
        "learning_rate: 0.001",
        "train_freq: 8",
        r"sweep.yml:8: grid.replay_ratio.0: a replay ratio and train_freq exclude each other: give one of them",
    ),
    "an axis of no callback": (
        TEXT[TEXT.index("  callback:") :],
        "  callback:\n    a: []\n  callback.dormancy_threshold: [0.1]\ntarget_period: 8\n",
        r"sweep.yml:12: grid.callback.dormancy_threshold: no run has a callback of sb3_redo with this setting",
    ),
    "a setting beside a value of no callback": (
        "callback: {dormancy_threshold: 0.5}",
        "callback: {sb3_redo.interventions.WeightDecayCallback: {}}",
        r"sweep.yml:17: per.replay_ratio.2.callback.sb3_redo",
    ),
    "a list for a key": (
        "seeds: [0, 1]",
        "seeds: [0, 1]\n? [a]\n: 1",
        r"sweep.yml:5: expected text or a number for a key",
    ),
    "settings of an environment": (
        "learning_rate: 0.001",
        "env_kwargs: 5",
        r"sweep.yml:6: settings.env_kwargs: expected",
    ),
    "layers without neurons": (
        WIDTH,
        "policy_kwargs: {a: {net_arch: [-8]}}",
        r"sweep.yml:9: .* of neurons for net_arch",
    ),
    "no mapping": (TEXT, "- 1", r"sweep.yml:1: expected a mapping, got \[1\]"),
    "nothing": (TEXT, "", r"sweep.yml:1: expected a mapping, got nothing"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_is_refused_with_the_line(read, wrong):
    old, new, message = WRONG[wrong]
    began = time.process_time()
    with pytest.raises(UsageError, match=message) as refusal:
        read(old, new)
    assert time.process_time() - began < 1
    assert len(str(refusal.value)) < 2500
    assert not Path("called").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1),
        ("learning_rate", "lin_1e-3"),
        ("train_freq", [1, "episode"]),
        ("policy_kwargs", "dict(net_arch=[8])"),
        ("policy_kwargs", {"net_arch": [8]}),
        ("ent_coef", "auto_0.1"),
        ("ent_coef", 0.1),
        ("n_timesteps", 1e6),
        ("normalize", "dict(norm_obs=True)"),
        ("action_noise", "whatever"),
        ("replay_buffer_class", "HerReplayBuffer"),
    ],
)
def test_values_that_the_zoo_takes_are_taken(name, value):
    assert complaint_about(name, value, dict(inspect.signature(ALGOS["sac"]).parameters)) is None


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("learning_rate", "1e-3", "a number, got '1e-3', which is text to YAML: write 1.0e-3"),
        ("gamma", "lin_0.9", "a number, got 'lin_0.9'"),
        ("ent_coef", "1e-2", "a number or text, got '1e-2', which is text to YAML: write 1.0e-2"),
        ("learning_starts", "1e4", "a whole number, got '1e4', which is text to YAML: write 10000"),
        ("buffer_size", 1e6, "a whole number, got 1000000.0"),
        ("use_sde", 1, "true or false, got 1"),
        ("policy_kwargs", [8], "text or a mapping, got [8]"),
        ("train_freq", "episode", "a whole number or a list, got 'episode'"),
        ("n_envs", True, "a whole number, got True"),
    ],
)
def test_values_that_no_algorithm_takes_are_refused(name, value, wanted):
    parameters = dict(inspect.signature(ALGOS["sac"]).parameters)
    assert complaint_about(name, value, parameters) == f"expected {wanted}"


def test_the_zoos_own_settings_pass_for_every_algorithm():
    for algorithm, made in ALGOS.items():
        parameters = dict(inspect.signature(made).parameters)
        file = Path(rl_zoo3.__file__).parent / "hyperparams" / f"{algorithm}.yml"
        if not file.exists():
            continue
        for entry in yaml.safe_load(file.read_text()).values():
            for name, value in (entry or {}).items():
                assert complaint_about(name, value, parameters) is None, (algorithm, name, value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("5", r"sweep.yml:3: config: config.yml cannot be read: it is not a mapping"),
        ("CartPole-v1: 5", r"config.yml:1: CartPole-v1: expected a mapping of settings, got 5"),
        ("CartPole-v1: {polcy: MlpPolicy}", r"config.yml:1: CartPole-v1.polcy: .* did you mean 'policy'\?"),
        ("CartPole-v1:\n  gamma: 5", r"config.yml:2: CartPole-v1.gamma: expected a number from 0 to 1, got 5"),
        ("CartPole-v1: {policy: MlpPolicy}", r"config.yml:1: CartPole-v1: expected n_timesteps here or in the sweep"),
        ("CartPole-v1: &a {b: *a}", r"sweep.yml:3: config: config.yml:1: an alias leads back"),
        (CONFIG + "  callback: os.system\n", None),
        (
            CONFIG + "  env_wrapper:\n    - rl_zoo3.wrappers.FrameSkp\n",
            r"config.yml:7: CartPole-v1.env_wrapper: .*'FrameSkp'",
        ),
        (CONFIG + "  vec_env_wrapper: 5\n", r"config.yml:7: .*expected the dotted path of a wrapper, got 5"),
        (CONFIG.replace("net_arch=[8]", "a=nn.L"), r"config.yml:6: CartPole-v1.policy_kwargs: .*has no 'L'"),
        (CONFIG.replace("net_arch", "net_arhc"), r"config.yml:6: CartPole-v1.policy_kwargs: .*mean 'net_arch'\?"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_line(read, config, message):
    if message is None:  # the axis takes the place of the configuration's callbacks
        assert read(config=config)
        return
    with pytest.raises(UsageError, match=message):
        read(config=config)


def test_a_configuration_in_python_is_not_run(read, tmp_path):
    (tmp_path / "config.py").write_text("open('called', 'w')")
    with pytest.raises(UsageError, match=r"sweep.yml:3: config: expected a .yml file, got 'config.py'"):
        read("config.yml", "config.py")
    assert not (tmp_path / "called").exists()


def test_a_file_that_never_ends_is_not_read(read, tmp_path):
    os.mkfifo(tmp_path / "pipe.yml")
    with pytest.raises(UsageError, match="not a regular file"):
        read("config.yml", "pipe.yml")


@pytest.mark.parametrize("option", [["--out", ""], ["--out", "a\0b"]])
def test_an_output_that_is_no_folder_is_refused(read, option, capsys):
    read()
    assert main(["sweep", "sweep.yml", *option]) == 2
    assert "argument --out: expected the name of a folder, got " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.Nothing", "gone cannot be imported: SystemExit"),
        ("ends.Ends", "bye"),
        ("stable_baselines3.common.callbacks.BaseCallback", "Can't instantiate abstract class BaseCallback"),
    ],
)
def test_what_ends_python_when_it_is_named_is_refused(read, tmp_path, monkeypatch, path, message):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "gone.py").write_text("raise SystemExit")
    (tmp_path / "ends.py").write_text(
        "from sb3_redo import DormancyCallback\n"
        "class Ends(DormancyCallback):\n    def __init__(self): raise SystemExit('bye')\n"
    )
    with pytest.raises(UsageError, match=rf"sweep.yml:13: grid.callback.redo: {message}"):
        read("- sb3_redo.ReDoCallback: {dormancy_threshold: 0.1}", f"- {path}")


def test_an_environment_without_settings_is_refused(read):
    with pytest.raises(UsageError, match=r"sweep.yml:3: config: config.yml has no entry for CartPole-v1"):
        read(config="Acrobot-v1: {}")


def test_an_on_policy_algorithm_has_no_replay_ratio(read):
    with pytest.raises(UsageError, match=r"sweep.yml:8: grid.replay_ratio: ppo has no replay ratio"):
        read("algorithm: dqn", "algorithm: ppo")


def test_a_replay_buffer_is_saved_where_the_file_says_so(read):
    assert not any("--save-replay-buffer" in run.command(Path("out")) for run in read().runs)
    command = read("algorithm: dqn", "algorithm: dqn\nsave_replay_buffer: true").runs[0].command(Path("out"))
    assert command.index("--save-replay-buffer") < command.index("-params")
    with pytest.raises(UsageError, match=r"sweep.yml:\d+: save_replay_buffer: expected true or false, got 'often'"):
        read("algorithm: dqn", "algorithm: dqn\nsave_replay_buffer: often")


def test_an_on_policy_algorithm_has_no_replay_buffer(read):
    text = "algorithm: ppo\nsave_replay_buffer: true\nenvironments: [CartPole-v1]\nconfig: config.yml\nseeds: [0]\n"
    with pytest.raises(UsageError, match=r"sweep.yml:2: save_replay_buffer: ppo has no replay buffer: it is on-policy"):
        read(TEXT, text + "grid: {learning_rate: [0.001]}\n")


def test_the_command_line_says_what_is_wrong_and_starts_nothing(tmp_path, capsys):
    (tmp_path / "sweep.yml").write_text("algorithm: dqn\n")
    assert main(["sweep", str(tmp_path / "sweep.yml"), "--out", str(tmp_path / "out")]) == 2
    assert "sweep.yml:1: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_a_command_for_each_run(read, capsys, tmp_path):
    count = len(read().runs)
    assert main(["sweep", "sweep.yml", "--out", "out", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == count
    assert all(line.startswith("OMP_NUM_THREADS=1 ") for line in lines)
    assert all(" python -m rl_zoo3.train --algo dqn " in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_runs_of_each_condition(read, capsys):
    read()
    assert main(["sweep", "sweep.yml", "--out", "out", "--dry-run"]) == 0
    first, second, *others = capsys.readouterr().err.splitlines()
    assert first == "16 runs in out: 1 environment, 8 conditions, 2 seeds"
    assert second == "  replay_ratio=0.25,width=1,callback=none: 2 runs"
    assert len(others) == 7


@pytest.mark.slow
def test_a_dry_run_of_the_papers_sweep_takes_far_less_time_than_its_imports():
    text = f"""
import time, sys
from sb3_redo.cli.main import main
import sb3_redo.algorithms, sb3_redo.networks, rl_zoo3.exp_manager, sb3_redo.experiments.readers, sb3_redo.cli.progress
imported = time.process_time()
main(["sweep", {str(SWEEPS / "paper_replay_ratio.yml")!r}, "--dry-run"])
print(imported, time.process_time() - imported, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    imports, beyond = map(float, done.stderr.splitlines()[-1].split())
    assert len(done.stdout.splitlines()) == 680
    assert beyond < 2
    assert beyond < imports / 3


@pytest.mark.parametrize("option", [["--workers", "0"], ["--threads-per-run", "0"], ["--cpus-per-run", "0"]])
def test_wrong_options_are_refused(read, option, capsys):
    read()
    assert main(["sweep", "sweep.yml", *option]) == 2
    assert f"{option[0]} must be" in capsys.readouterr().err


# Parts


def test_the_number_of_environments_counts():
    assert hyperparameters("dqn", {"n_envs": 4}, {"replay_ratio": 1}) == {"train_freq": 1, "gradient_steps": 4}


def test_a_target_period_is_held_by_every_condition(read):
    sweep = read(
        "seeds: [0, 1]",
        "seeds: [0, 1]\ntarget_period: 200",
        config=CONFIG,
        also=("  replay_ratio:\n    2: {target_update_interval: 7, callback", "  replay_ratio:\n    2: {callback"),
    )
    found = {run.condition["replay_ratio"]: run.settings["target_update_interval"] for run in sweep.runs}
    assert found == {0.25: 800, 2: 100}


def test_what_the_target_period_cannot_be_is_refused(read):
    with pytest.raises(
        UsageError, match=r"sweep.yml:5: target_period: a target period and target_update_interval excl"
    ):
        read("seeds: [0, 1]", "seeds: [0, 1]\ntarget_period: 200")
    with pytest.raises(
        UsageError, match=r"sweep.yml:5: target_period: no target_update_interval gives .*; 16 can be had"
    ):
        read("seeds: [0, 1]", "seeds: [0, 1]\ntarget_period: 15", also=("target_update_interval: 7, ", ""))
    with pytest.raises(UsageError, match=r"sweep.yml:5: target_period: sac copies no target network"):
        read("seeds: [0, 1]", "seeds: [0, 1]\ntarget_period: 15", also=("algorithm: dqn", "algorithm: sac"))


def test_ratios_whose_targets_would_differ_by_themselves_are_refused(read):
    per = ("target_update_interval: 7, ", "")
    with pytest.raises(
        UsageError, match=r"sweep.yml:8: grid.replay_ratio: expected a target_period .*'target_period: N"
    ):
        read(also=per)
    assert read("learning_rate: 0.001", "target_update_interval: 9", also=per)
    assert read("  width: [1, 2]", "  target_update_interval: [9, 90]", also=per)
    assert read("[0.25, 2]", "[2]", also=per)
    assert read("algorithm: dqn", "algorithm: sac", also=per)


def test_a_setting_beside_a_value_can_be_of_one_callback_alone(read):
    sweep = read("callback: {dormancy_threshold: 0.5}", "callback: {sb3_redo.ReDoCallback: {dormancy_threshold: 0.5}}")
    found = {
        (run.condition["replay_ratio"], run.condition["callback"]): next(iter(run.callbacks[0].values()))
        for run in sweep.runs
    }
    thresholds = {key: value["dormancy_threshold"] for key, value in found.items()}
    assert thresholds == {(0.25, "none"): 0.1, (0.25, "redo"): 0.1, (2, "none"): 0.1, (2, "redo"): 0.5}


@pytest.mark.parametrize("value", [float("inf"), 1e-5, "text", [1, {"a": None}], True, {"b": [float("-inf")]}])
def test_python_text_is_read_back(value):
    assert eval(python_text(value)) == value


# The files that are shipped


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yml")), ids=lambda file: file.name)
def test_a_shipped_sweep_can_be_started(file):
    sweep = read_sweep_file(file, readers=READERS)
    measure_themselves = ("classifier", "offline")
    assert sweep.algorithm in (*ALGOS, *measure_themselves)
    assert all(run.callbacks or sweep.algorithm in measure_themselves for run in sweep.runs)


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yml")), ids=lambda file: file.name)
def test_a_shipped_sweep_has_the_same_targets_and_the_same_baselines_at_every_replay_ratio(file):
    measured, periods = {}, {}
    for run in read_sweep_file(file, readers=READERS).runs:
        if "target_update_interval" in run.settings and run.replay_ratio is not None:
            changed = {axis: label for axis, label in run.condition.items() if axis != "replay_ratio"}
            period = run.settings["target_update_interval"] * run.replay_ratio
            periods.setdefault(repr(changed), set()).add(period)
        if [*map(list, run.callbacks)] == [["sb3_redo.DormancyCallback"]]:
            measured.setdefault(run.condition.get("callback"), set()).add(repr(run.callbacks))
    assert all(len(found) == 1 for found in (*measured.values(), *periods.values())), (measured, periods)


def test_kinds_of_sweeps_whose_readers_are_not_handed_over_are_unknown(read):
    for reader in READERS:
        with pytest.raises(UsageError, match=rf"sweep.yml:1: algorithm: .*, got '{reader.algorithm}'"):
            read("algorithm: dqn", f"algorithm: {reader.algorithm}")


def test_the_papers_replay_ratios():
    sweep = read_sweep_file(SWEEPS / "paper_replay_ratio.yml")
    assert len(sweep.environments) == 17
    assert sweep.axes == {"replay_ratio": [0.25, 0.5, 1, 2], "callback": ["none", "redo"]}
    assert len(sweep.runs) == 680
    targets = {run.condition["replay_ratio"]: run.settings["target_update_interval"] for run in sweep.runs}
    assert targets == {0.25: 8000, 0.5: 4000, 1: 2000, 2: 1000}
    ratios = {run.settings["gradient_steps"] / run.settings["train_freq"] for run in sweep.runs}
    assert ratios == {0.25, 0.5, 1, 2}
    assert {run.settings["n_timesteps"] for run in sweep.runs} == {2_500_000}


def test_anchors_and_merges_are_read_as_the_zoo_reads_them():
    content = yaml.safe_load((SWEEPS / "small_replay_ratio.yml").read_text())
    sweep = read_sweep_file(SWEEPS / "small_replay_ratio.yml")
    assert sweep.runs[-1].callbacks == content["grid"]["callback"]["redo"]


def test_a_merge_behind_an_anchor_is_no_key_twice(read):
    merged = read(
        "    redo:\n      - sb3_redo.ReDoCallback: {dormancy_threshold: 0.1}\n",
        "    redo:\n"
        "      - sb3_redo.ReDoCallback: &one {<<: &settings {dormancy_threshold: 0.1, batch_size: 8}, batch_size: 16}\n"
        "    again:\n      - sb3_redo.ReDoCallback: *one\n      - sb3_redo.DormancyCallback\n",
    )
    by_label = {run.condition["callback"]: run.callbacks[0] for run in merged.runs if run.replay_ratio == 0.25}
    expected = {"sb3_redo.ReDoCallback": {"dormancy_threshold": 0.1, "batch_size": 16}}
    assert by_label["redo"] == by_label["again"] == expected


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.py").write_text("from sb3_redo import DormancyCallback\nclass Mine(DormancyCallback): pass\n")
    (tmp_path / "config.yml").write_text(CONFIG)
    (tmp_path / "sweep.yml").write_text(TEXT.replace("sb3_redo.ReDoCallback", "here.Mine"))


def test_callbacks_of_the_folder_where_it_is_typed_are_found(here, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".")])
    assert main(["sweep", "sweep.yml", "--dry-run"]) == 0
    sys.modules.pop("here")
    assert "here.Mine" in capsys.readouterr().out


@pytest.mark.slow
def test_callbacks_of_the_folder_where_the_command_is_typed_are_found(here):
    command = Path(sys.executable).with_name("sb3-redo")
    done = subprocess.run([command, "sweep", "sweep.yml", "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "here.Mine" in done.stdout
