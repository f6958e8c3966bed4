"""Compares two checkouts of this repository bit for bit: trainings, sweeps, reports and inspections with fixed seeds.

``python -m benchmarks.compare_checkouts BEFORE AFTER`` runs every scenario once with each of the two folders as
``PYTHONPATH``, by commands that a user can type: the zoo's train command, ``sb3-redo inspect``, ``sweep`` and
``report``. It prints a line per scenario:

- ``equal`` or ``DIFFERENT``; ``FAILED`` where a command ended with an error in one checkout or in both.
- How many values were compared, or which differ. ``weights`` are the tensors of the saved agent, target networks
  included; ``optimizer states`` the tensors and settings of its optimizers; ``CSV points`` the cells of the file that
  SB3's logger writes; ``scores`` those of all neurons of a layer at a measurement; ``inspect values`` the lines and the
  table of ``sb3-redo inspect``; ``points`` and ``results`` what a sweep writes beside its agents; ``report cells`` the
  tables of its report. Times are left out.
- The seconds that the commands took before and after.

The exit code is 1 unless all scenarios are equal. Trainings have one thread and no GPU.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, configure
from stable_baselines3.common.save_util import load_from_zip_file

Digests = dict[str, dict[str, str]]
"""What to compare: kind to name to value, or to its hash."""
TIMES = {"time/fps", "time/time_elapsed", "seconds", "steps_per_second"}
"""Keys and columns that differ from run to run."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class ScoresFile(KVWriter):
    """Writes the hash of every histogram that is logged: neurons' scores, which a CSV file has no room for."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.path.touch()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        tensors = {key: value for key, value in key_values.items() if isinstance(value, torch.Tensor)}
        with self.path.open("a") as file:
            file.writelines(f"{key},{hash_of(value)}\n" for key, value in tensors.items())

    def close(self) -> None:
        """Leave the file, which is open only while it is written to."""


class CsvPoints(BaseCallback):
    """Logs a training to ``points/progress.csv``, which the zoo has no option for. To be the first callback."""

    def _init_callback(self) -> None:
        logger = configure("points", ["csv"])
        logger.output_formats.append(ScoresFile("points/scores.csv"))
        self.model.set_logger(logger)

    def _on_step(self) -> bool:
        return True


@dataclass(frozen=True)
class Training:
    """Describes a training of the zoo.

    :param callbacks: names below ``sb3_redo`` to settings
    :param settings: hyper-parameters; the zoo's own configuration if not given
    :param steps: in the environment
    :param inspects: whether to inspect the saved agent
    :param module: the zoo's train command, or ours
    :param options: of that command, besides those that all trainings have
    """

    callbacks: Mapping[str, Any]
    settings: Mapping[str, Any] | None = None
    algorithm: str = "dqn"
    environment: str = "CartPole-v1"
    steps: int = 2000
    inspects: bool = False
    module: str = "rl_zoo3.train"
    options: tuple[str, ...] = ()

    def arguments(self, folder: Path) -> list[str]:
        """Write the configuration, and return the arguments of the command."""
        shutil.copy(__file__, folder)  # for the callback: the checkout before has no such module
        callbacks: dict[str, Any] = {f"{Path(__file__).stem}.CsvPoints": {}}
        callbacks |= {f"sb3_redo.{name}": settings for name, settings in self.callbacks.items()}
        options = list(self.options)
        if self.settings is not None:
            settings = {"n_timesteps": self.steps, **self.settings}
            (folder / "zoo.yml").write_text(yaml.safe_dump({self.environment: settings}))
            options += ["-conf", "zoo.yml"]
        return [
            *("-m", self.module, "--algo", self.algorithm, "--env", self.environment, "-n", str(self.steps)),
            *("--seed", "1", "--eval-freq", "-1", "--num-threads", "1", "-f", "logs", *options),
            *("-params", f"callback:{[{name: given} for name, given in callbacks.items()]!r}"),
        ]


MEASURING: dict[str, Any] = {
    "dormancy_threshold": 0.1,
    "measuring_period": 200,
    "batch_size": 64,
    "log_histograms": True,
}
RECYCLING = {**MEASURING, "recycling_period": 200}
DORMANCY = {"DormancyCallback": MEASURING}
REDO = {"ReDoCallback": RECYCLING}
OFTEN = {"logging_period": 200}
LAYERS = {"net_arch": [64, 64, 64]}
CARTPOLE = {
    "policy": "MlpPolicy",
    "learning_rate": 0.003,  # so high that neurons become dormant
    "buffer_size": 2000,
    "learning_starts": 200,
    "target_update_interval": 100,
    "train_freq": 1,
    "policy_kwargs": LAYERS,
}
# A text that the zoo evaluates. Centred RMSProp keeps a mean gradient, which recycling clears too.
CENTRED = "dict(net_arch=[64, 64], optimizer_class=RMSpropTFLike, optimizer_kwargs=dict(eps=1e-5, centered=True))"
PENDULUM = {"policy": "MlpPolicy", "buffer_size": 2000, "learning_starts": 500, "policy_kwargs": {"net_arch": [32, 32]}}
IMAGES = {"buffer_size": 2000, "learning_starts": 200, "target_update_interval": 100, "train_freq": 4}
ATARI = {
    **IMAGES,
    "policy": "CnnPolicy",
    "env_wrapper": ["stable_baselines3.common.atari_wrappers.AtariWrapper"],
    "frame_stack": 4,
}
EXAMINING = {"measuring_period": 200, "batch_size": 32}
COVARIANCE = {"plasticity.GradientCovarianceCallback": {**EXAMINING, "log_images": False}}


def ours(policy: str = "DQNMlpPolicy", **settings: Any) -> dict[str, Any]:
    """Return the settings of CartPole with a policy of ours."""
    return {**CARTPOLE, "policy": f"sb3_redo.networks.{policy}", "policy_kwargs": {**LAYERS, **settings}}


def instruments(period: int) -> dict[str, Any]:
    """Return the callbacks of ``sb3_redo.plasticity`` that every algorithm can have."""
    often = {"measuring_period": period, "batch_size": 32}
    return {
        "plasticity.PlasticityCallback": {**often, "log_layers": True},
        "plasticity.ProbeTaskCallback": {**often, "steps": 50, "targets": 2},
        "plasticity.CurvatureCallback": {**often, "steps": 10, "log_images": False},
    }


def intervention(name: str, companions: Mapping[str, Any], /, **settings: Any) -> Training:
    """Return a training of DQN on CartPole with a callback of ``sb3_redo.interventions`` behind others."""
    return Training({**companions, f"interventions.{name}": settings}, CARTPOLE)


TRAININGS = {
    "cartpole-dqn": Training(
        {"ReDoCallback": {"recycling_period": 500, "log_histograms": True}}, steps=10_000, inspects=True
    ),
    "halfcheetah-sac": Training(
        {"ReDoCallback": {**RECYCLING, "batch_size": 256}},
        {"policy": "MlpPolicy", "learning_starts": 500},
        "sac",
        "HalfCheetah-v5",
        inspects=True,
    ),
    "demon-attack-dqn": Training(
        {"ReDoCallback": {**RECYCLING, "recycling_period": 100}},
        ATARI,
        environment="DemonAttackNoFrameskip-v4",
        inspects=True,
    ),
    "cartpole-ppo": Training(
        {"ReDoCallback": {**RECYCLING, "dormancy_threshold": 0.4}}, algorithm="ppo", steps=10_000, inspects=True
    ),
    "dormancy": Training(DORMANCY, CARTPOLE),
    "redo": Training({"ReDoCallback": {**RECYCLING, "optimizer_state": "clear", "compensate": True}}, CARTPOLE),
    "redo-random": Training(
        {"ReDoCallback": {**RECYCLING, "outgoing": "random", "outgoing_norm": 1.0, "incoming_norm": 1.0}}, CARTPOLE
    ),
    **{
        f"scheduled-{selection}": intervention("ScheduledReDoCallback", {}, selection=selection, end=2000, **RECYCLING)
        for selection in ("lowest", "highest", "random", "utility", "cbp")
    },
    "gradient-redo": intervention("GradientReDoCallback", {}, gradient_threshold=0.1, **RECYCLING),
    "continual-backprop": intervention(
        "ContinualBackpropCallback", DORMANCY, replacement_rate=0.001, maturity=100, **OFTEN
    ),
    "continual-backprop-10": intervention(
        "ContinualBackpropCallback", DORMANCY, replacement_rate=0.001, maturity=100, period=10, **OFTEN
    ),
    "pruning": intervention("PruningCallback", {}, pruning_period=200, **MEASURING),
    "reset-last": intervention("ResetCallback", DORMANCY, layers="last", period=500),
    "reset-all": intervention("ResetCallback", DORMANCY, layers="all", period=500),
    "shrink-and-perturb": intervention("ShrinkAndPerturbCallback", DORMANCY, period=500, reset_optimizer=True),
    "injection": Training(
        {**REDO, "interventions.PlasticityInjectionCallback": {"at": 1000}}, ours("InjectableDQNMlpPolicy")
    ),
    "weight-decay": Training(REDO, ours(optimizer_kwargs={"weight_decay": 1e-5})),
    "adamw": Training(REDO, ours(optimizer_class="torch.optim.AdamW")),
    "regenerative": intervention("RegenerativeCallback", REDO, **OFTEN),
    "parseval": intervention("ParsevalCallback", REDO, **OFTEN),
    "clipping": intervention("WeightClippingCallback", REDO, bound=1.0, **OFTEN),
    "projection": Training({**REDO, "interventions.NormProjectionCallback": OFTEN}, ours(layer_norm=True)),
    "layer-norm": Training(REDO, ours(layer_norm=True)),
    "crelu": Training(REDO, ours(activation="crelu", width=0.5)),
    "fourier": Training({"ReDoCallback": {**RECYCLING, "dormancy_threshold": 0.97}}, ours(activation="fourier")),
    "spectral-norm-first": Training(REDO, ours(spectral_norm="first")),
    "spectral-norm-penultimate": Training(REDO, ours(spectral_norm="penultimate")),
    "adam-epsilon": Training(
        REDO,
        ours(
            optimizer_class="sb3_redo.networks.Adam",
            optimizer_kwargs={"eps_root": 1e-3, "betas": [0.9, 0.9], "eps": 1e-9},
        ),
    ),
    "dueling": Training(REDO, ours("DuelingDQNMlpPolicy")),
    "double-dqn": Training(
        REDO, {**CARTPOLE, "policy_kwargs": CENTRED}, "double_dqn", module="sb3_redo.zoo", inspects=True
    ),
    "categorical-dqn": Training(
        REDO,
        {**CARTPOLE, "policy_kwargs": {**LAYERS, "v_min": 0.0, "v_max": 100.0}},
        "categorical_dqn",
        module="sb3_redo.zoo",
        inspects=True,
    ),
    "drq": Training(
        REDO,
        {
            **IMAGES,
            "policy": "sb3_redo.networks.DuelingDQNCnnPolicy",
            "policy_kwargs": {"width": 0.25},
            "env_kwargs": {"enlarge": 5},
        },
        "drq",
        "sb3_redo/BlockMDP-true-label-v0",
        module="sb3_redo.zoo",
        options=("--gym-packages", "sb3_redo.environments"),
    ),
    "reset-sac": Training(
        {**DORMANCY, "interventions.ResetCallback": {"period": 500, "entropy_coefficient": True}},
        PENDULUM,
        "sac",
        "Pendulum-v1",
    ),
    "reset-ppo": Training(
        {
            "DormancyCallback": {**MEASURING, "measuring_period": 40},
            "interventions.ResetCallback": {"layers": 2, "period": 40},
        },
        algorithm="ppo",
    ),
    "plasticity-dqn": Training({**instruments(200), **COVARIANCE}, CARTPOLE, steps=1000),
    "plasticity-sac": Training({**instruments(200), **COVARIANCE}, PENDULUM, "sac", "Pendulum-v1", steps=1000),
    "plasticity-ppo": Training(instruments(20), algorithm="ppo", steps=1000),
    "brownian-motion": Training(
        {"plasticity.BrownianMotionCallback": {**EXAMINING, "steps": 10}}, CARTPOLE, steps=1000
    ),
}
SWEEP = {
    "algorithm": "dqn",
    "environments": ["CartPole-v1"],
    "config": "zoo.yml",
    "seeds": [0, 1],
    "grid": {
        "callback": {
            name: [{f"sb3_redo.{callback}": settings} for callback, settings in callbacks.items()]
            for name, callbacks in (("none", DORMANCY), ("redo", REDO))
        }
    },
}


def call(checkout: Path, folder: Path, *arguments: str) -> str:
    """Run Python on a checkout in a folder, and return what it printed.

    :raises RuntimeError: when it fails, with the last line of its messages; all of them are in ``messages.txt``
    """
    environment = {**os.environ, **ONE_THREAD, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(checkout)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        (folder / "messages.txt").write_text(done.stderr)
        raise RuntimeError(f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout


def train_in(training: Training, checkout: Path, folder: Path) -> Digests:
    """Train, inspect where that is asked for, and read what there is to compare."""
    call(checkout, folder, *training.arguments(folder))
    (saved,) = (folder / "logs" / training.algorithm).glob("*/*.zip")
    found = {**agent_in(saved), "CSV points": cells(folder / "points" / "progress.csv")}
    rows = (folder / "points" / "scores.csv").read_text().splitlines()
    if rows:  # none without a DormancyCallback
        pairs = (row.split(",") for row in rows)
        found["scores"] = {f"{key}, row {number}": scores for number, (key, scores) in enumerate(pairs, 1)}
    if training.inspects:
        run = str(saved.parent.relative_to(folder))
        options = ("--n-samples", "500", "--quiet", "--csv", "layers.csv")
        lines = call(checkout, folder, "-m", "sb3_redo", "inspect", run, *options).splitlines()
        said = {f"line {number}": line for number, line in enumerate(lines, 1)}
        found["inspect values"] = {**said, **cells(folder / "layers.csv")}
    return found


def sweep(checkout: Path, folder: Path) -> Digests:
    """Train a sweep of four runs, report it, and read what there is to compare."""
    (folder / "zoo.yml").write_text(yaml.safe_dump({"CartPole-v1": {**CARTPOLE, "n_timesteps": 2000}}))
    (folder / "sweep.yml").write_text(yaml.safe_dump(SWEEP))
    call(checkout, folder, "-m", "sb3_redo", "sweep", "sweep.yml", "--out", "runs", "--workers", "1")
    call(checkout, folder, "-m", "sb3_redo", "report", "runs")
    found: Digests = {}
    for run in sorted((folder / "runs").glob("*/*/seed=*")):
        (saved,) = run.glob("zoo/*/*/*.zip")
        for kind, values in {**agent_in(saved), **outcome_of(run)}.items():
            named = {f"{run.parent.name} {run.name}: {name}": value for name, value in values.items()}
            found.setdefault(kind, {}).update(named)
    tables = sorted((folder / "runs" / "report").glob("*.csv"))
    found["report cells"] = {f"{table.name}: {name}": cell for table in tables for name, cell in cells(table).items()}
    return found


SCENARIOS: dict[str, Callable[[Path, Path], Digests]] = {
    **{name: partial(train_in, training) for name, training in TRAININGS.items()},
    "sweep": sweep,
}


def agent_in(saved: Path) -> Digests:
    """Hash the weights and the optimizers' states of a saved agent."""
    loaded: tuple[Any, ...] = load_from_zip_file(saved, load_data=False, device="cpu")
    _, parts, variables = loaded
    optimizers = {name: part for name, part in parts.items() if name.endswith("optimizer")}
    weights = {**parts["policy"], **(variables or {})}
    return {
        "weights": {name: hash_of(weights[name]) for name in sorted(weights)},
        "optimizer states": dict(pair for name in sorted(optimizers) for pair in state_of(name, optimizers[name])),
    }


def state_of(optimizer: str, state: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Hash each entry of an optimizer's state, in the order of its parameters."""
    yield f"{optimizer} settings", repr(state["param_groups"])
    for number, entries in state["state"].items():
        for key in sorted(entries):
            yield f"{optimizer} {number} {key}", hash_of(entries[key])


def hash_of(value: Any) -> str:
    """Hash a tensor's type, shape and bytes, or what else an optimizer keeps as Python writes it."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    content = value.detach().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode() + content).hexdigest()


def cells(table: Path) -> dict[str, str]:
    """Read the cells of a CSV file that are not empty, without times.

    They are named by row and column, since SB3 orders columns by chance.
    """
    with open(table, newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {
        f"{column}, row {number}": row[column]
        for number, row in enumerate(rows, 1)
        for column in sorted(row)
        if row[column] and column not in TIMES and row.get("key") not in TIMES
    }


def outcome_of(run: Path) -> Digests:
    """Read the points and the result of a run of a sweep, without times, and the settings it was started with."""
    points = pd.read_parquet(run / "points.parquet")
    points = points[~points["key"].isin(TIMES)]
    result = json.loads((run / "result.json").read_text())
    about = json.loads((run / "run.json").read_text())
    results = {name: repr(result[name]) for name in sorted(result.keys() - TIMES)}
    results |= {name: repr(about[name]) for name in ("environment", "algorithm", "condition", "seed", "settings")}
    rows = zip(points["key"], points["step"], points["gradient_step"], points["value"], strict=True)
    named = {f"{key}, row {number}": repr(values) for number, (key, *values) in enumerate(rows, 1)}
    return {"points": named, "results": results}


def differences(before: Digests, after: Digests) -> list[str]:
    """Say for each kind how many values differ, and name the first of them."""
    found = []
    for kind in dict.fromkeys((*before, *after)):
        mine, its = before.get(kind, {}), after.get(kind, {})
        names = dict.fromkeys((*mine, *its))
        changed = [name for name in names if mine.get(name) != its.get(name)]
        if changed:
            found.append(f"{len(changed)} of {len(names)} {kind} ({changed[0]})")
    return found


@dataclass(frozen=True)
class Comparison:
    """What came of a scenario."""

    name: str
    verdict: str
    note: str
    seconds: tuple[float, ...]

    def __str__(self) -> str:
        took = " + ".join(f"{seconds:.0f}" for seconds in self.seconds)
        return f"{self.name:<26}{self.verdict:<11}{self.note}; {took} s"


def compare(name: str, checkouts: Mapping[str, Path], out: Path) -> Comparison:
    """Run a scenario on the checkouts, one after the other, and compare what it left.

    Writes what is compared as JSON, into the scenario's folder.
    """
    found: list[Digests] = []
    seconds: list[float] = []
    failures = []
    for side, checkout in checkouts.items():
        folder = out / name / side
        folder.mkdir(parents=True)
        begun = time.monotonic()
        try:
            found.append(SCENARIOS[name](checkout, folder))
            (folder / "compared.json").write_text(json.dumps(found[-1], indent=1))
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            failures.append(f"{side}: {error}")
        seconds.append(time.monotonic() - begun)
    if failures:
        return Comparison(name, "FAILED", ", ".join(failures), tuple(seconds))
    if empty := [kind for kind, values in found[0].items() if not values]:
        return Comparison(name, "FAILED", f"nothing to compare: {', '.join(empty)}", tuple(seconds))
    if changed := differences(*found):
        return Comparison(name, "DIFFERENT", ", ".join(changed), tuple(seconds))
    counts = ", ".join(f"{len(values)} {kind}" for kind, values in found[0].items())
    return Comparison(name, "equal", counts, tuple(seconds))


def commit_of(checkout: Path, folder: Path) -> str:
    """Return the commit of a checkout, and whether files were changed since.

    :param folder: where to start Python, as for a scenario
    :raises RuntimeError: when Python takes ``sb3_redo`` from elsewhere
    """
    file = call(checkout, folder, "-c", "import sb3_redo; print(sb3_redo.__file__)").strip()
    if not Path(file).resolve().is_relative_to(checkout):
        raise RuntimeError(f"sb3_redo is imported from {file} and not from {checkout}")
    git = partial(subprocess.run, cwd=checkout, capture_output=True, text=True)
    commit = git(["git", "log", "-1", "--format=%h %s"]).stdout.strip() or "no commit"
    changed = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    return f"{commit}{' (with changes)' if changed else ''}"


def compare_all(names: Iterable[str], checkouts: Mapping[str, Path], out: Path, workers: int) -> list[Comparison]:
    """Compare scenarios, and print each line as soon as those before it are there."""
    found = []
    with ThreadPoolExecutor(workers) as pool:
        for comparison in pool.map(lambda name: compare(name, checkouts, out), names):
            print(comparison, flush=True)
            found.append(comparison)
    return found


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="folder of a checkout")
    parser.add_argument("after", type=Path, help="folder of another")
    parser.add_argument(
        "--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME", help="scenarios"
    )
    parser.add_argument("--out", type=Path, help="new folder to keep what the commands write; removed if not given")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1, help="scenarios at a time")
    options = parser.parse_args()
    checkouts = {"before": options.before.resolve(), "after": options.after.resolve()}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            if options.out is not None:
                options.out.mkdir(parents=True)
            for side, checkout in checkouts.items():
                print(f"{side}: {commit_of(checkout, Path(folder))}", flush=True)
        except (OSError, RuntimeError) as error:
            parser.error(str(error))
        out = (options.out or Path(folder)).resolve()
        found = compare_all(dict.fromkeys(options.only), checkouts, out, options.workers)
    equal = sum(comparison.verdict == "equal" for comparison in found)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{equal} of {len(found)} scenarios equal, {time.monotonic() - begun:.0f} s, {versions}")
    return 0 if equal == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
