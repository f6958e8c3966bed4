"""Describes the runs of a sweep, each one ordinary command line of the zoo."""

import json
import logging
import os
import platform
import shlex
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sb3_redo import __version__
from sb3_redo.sweeps.conditions import python_text
from sb3_redo.sweeps.files import PROGRESS, RUN, is_finished, read_json, set_aside, write_json
from sb3_redo.validation import UsageError

# Added to the zoo's algorithms by sb3_redo.algorithms.
OUR_ALGORITHMS = ("double_dqn", "drq", "categorical_dqn")

_LOG = logging.getLogger(__name__)
_PACKAGES = ("stable-baselines3", "sb3-contrib", "rl_zoo3", "torch", "gymnasium", "numpy")


@dataclass(frozen=True)
class Run:
    """Describes one seed of one condition in one environment.

    :param environment: id
    :param condition: axis to label, in the order of the grid
    :param config: the zoo's configuration
    :param overrides: hyper-parameters that replace the configuration's, without callbacks
    :param callbacks: in the zoo's form
    :param settings: all effective hyper-parameters, without callbacks
    :param save_replay_buffer: whether the zoo saves the replay buffer beside the agent
    """

    algorithm: str
    environment: str
    condition: dict[str, Any]
    seed: int
    config: str
    overrides: dict[str, Any] = field(repr=False)
    callbacks: list[Any] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)
    n_timesteps: int | None = None
    gym_packages: tuple[str, ...] = ()
    checkpoint_minutes: float = 10.0
    save_replay_buffer: bool = False

    @property
    def name(self) -> str:
        """Return the run's folder below the sweep's: environment, condition and seed."""
        return f"{self.environment.replace('/', '-')}/{condition_folder(self.condition)}/seed={self.seed}"

    @property
    def replay_ratio(self) -> float | None:
        """Return the replay ratio of the settings, or ``None`` without one, as for on-policy algorithms."""
        every, made = self.settings.get("train_freq"), self.settings.get("gradient_steps")
        if not isinstance(every, int) or not isinstance(made, int):
            return None
        return made / (every * self.settings.get("n_envs", 1)) if made >= 0 else 1.0

    @property
    def effort(self) -> float:
        """Estimate its duration relative to other runs from its steps. Gradient steps count most."""
        steps = self.n_timesteps or self.settings.get("n_timesteps", 1)
        ratio = self.replay_ratio
        return float(steps) * (0.25 + (1.0 if ratio is None else ratio)) * float(self.condition.get("width", 1))

    @property
    def described(self) -> dict[str, Any]:
        """Return everything in which runs may differ, for TensorBoard's HParams tab."""
        kwargs = self.settings.get("policy_kwargs")
        width = kwargs.get("width", 1) if isinstance(kwargs, dict) else 1
        ratio = {} if self.replay_ratio is None else {"replay_ratio": self.replay_ratio}
        always = {"environment": self.environment, "algorithm": self.algorithm, "width": width}
        return {**always, **self.condition, **ratio}

    def command(self, out: Path, threads: int = 1, python: str = "python") -> list[str]:
        """Return the arguments of the zoo's train command. Repeating the command resumes a stopped run.

        :param out: the sweep's folder
        :param threads: of PyTorch
        """
        folder = out / self.name
        keeper = {
            "folder": str(folder),
            "condition": self.described,
            "axes": list(self.condition),
            "checkpoint_minutes": self.checkpoint_minutes,
        }
        callbacks = [{"sb3_redo.sweeps.RunFolder": keeper}, *self.callbacks]
        hyper = {**self.overrides, "callback": callbacks}
        command = "sb3_redo.zoo" if self.algorithm in OUR_ALGORITHMS else "rl_zoo3.train"
        return [
            *(python, "-m", command, "--algo", self.algorithm, "--env", self.environment),
            *("-conf", self.config, "-f", str(folder / "zoo"), "--seed", str(self.seed)),
            *("--eval-freq", "-1", "--num-threads", str(threads)),
            *(("--save-replay-buffer",) if self.save_replay_buffer else ()),
            *(("-n", str(self.n_timesteps)) if self.n_timesteps else ()),
            *(("--gym-packages", *self.gym_packages) if self.gym_packages else ()),
            *("-params", *(f"{name}:{python_text(value)}" for name, value in hyper.items())),
        ]

    def command_line(self, out: Path, threads: int = 1) -> str:
        """Return the command quoted for a shell."""
        return shlex.join(self.command(out, threads))

    def check_same(self, out: Path) -> None:
        """Check that a run already started in the folder has the same settings.

        :raises UsageError: when it was begun with other settings
        """
        file = out / self.name / RUN
        try:
            begun = read_json(file)
        except ValueError as error:
            _LOG.warning("%s: it was renamed", error)
            set_aside(file)
            begun = None
            if is_finished(file.parent):
                self.describe(out)  # otherwise reports could not identify the run
        # Compared as JSON, which has no tuples and no integer keys.
        mine = json.loads(json.dumps({**self.settings, "callback": self.callbacks}))
        theirs = mine if begun is None else begun.get("settings", mine)  # absent in commands typed by hand
        if theirs == mine:
            return
        theirs = theirs if isinstance(theirs, dict) else {}
        names = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
        raise UsageError(
            f"{out / self.name} was begun with another {', '.join(names)}: choose another --out, or remove the folder"
        )

    def describe(self, out: Path, threads: int = 1) -> None:
        """Write the run's description."""
        describe_run(
            out / self.name,
            environment=self.environment,
            algorithm=self.algorithm,
            condition=self.condition,
            seed=self.seed,
            run=self.name,
            settings={**self.settings, "callback": self.callbacks},
            command=self.command(out, threads),
        )


def condition_folder(condition: dict[str, Any]) -> str:
    """Return the name of the folder of a condition's runs."""
    name = ",".join(f"{axis}={label}" for axis, label in condition.items()) or "default"
    return name.replace("/", "-")


def describe_run(
    folder: Path, *, environment: str, algorithm: str, condition: dict[str, Any], seed: int, **more: Any
) -> None:
    """Write a run's description, ``run.json``, for reports."""
    about = {"environment": environment, "algorithm": algorithm, "condition": condition, "seed": seed}
    versions = {"python": sys.version.split()[0], "sb3-redo": __version__} | {name: version(name) for name in _PACKAGES}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(folder / RUN, {**about, **more, "date": date, "versions": versions})


def machine() -> dict[str, Any]:
    """Describe this machine without its name: system, processor, cores and, once used, the GPU."""
    found = {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor() or platform.machine()


def progress_of(folder: Path) -> tuple[int, int]:
    """Return the environment steps made, and the total to be made (0 while unknown)."""
    try:
        told = read_json(folder / PROGRESS) or {}
        return int(told.get("num_timesteps", 0)), int(told.get("of", 0))
    except (ValueError, TypeError):  # the training soon writes the file again
        return 0, 0
