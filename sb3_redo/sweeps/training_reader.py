"""Reads sweep files of agents that the zoo trains."""

import inspect
import itertools
import os
from collections import Counter
from collections.abc import Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sb3_redo.reports.sweep_folder import CALLBACK, REPLAY_RATIO, WIDTH
from sb3_redo.sweeps.conditions import POLICY_KWARGS, entry_of, hyperparameters
from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.sweep_reader import SweepReader
from sb3_redo.sweeps.value_types import ZOO_SETTINGS, complaint_about
from sb3_redo.sweeps.yaml_document import Document
from sb3_redo.validation import needs
from sb3_redo.zoo.atari import check_atari


class TrainingReader(SweepReader):
    """Makes runs of a document that has the right form."""

    schema = Path(__file__).with_name("sweep_schema.json")

    def __init__(self, document: Document):
        super().__init__(document)
        self.algorithm: str = self.content["algorithm"]
        self.per: dict[str, dict[Any, dict[str, Any]]] = self.content.get("per", {})
        # Relative to the sweep file, but named as it would be typed where the command is.
        self.config = os.path.relpath(document.file.parent / self.content["config"])

    def check(self) -> None:
        """Check names, values, environments and callbacks against those that the zoo knows.

        :raises UsageError: naming the file's line
        """
        with needs("sweep", "a sweep"):
            from rl_zoo3.utils import ALGOS

        import sb3_redo.algorithms  # noqa: F401  adds ours to the zoo's

        self._check_named(self.algorithm, tuple(ALGOS), "algorithm")
        self._check_environments()
        self.parameters = dict(inspect.signature(ALGOS[self.algorithm]).parameters)
        if REPLAY_RATIO in self.axes and "gradient_steps" not in self.parameters:
            raise self.document.error(f"{self.algorithm} has no replay ratio: it is on-policy", ("grid", REPLAY_RATIO))
        self._check_settings()
        if self.content.get("save_replay_buffer") and "buffer_size" not in self.parameters:
            complaint = f"{self.algorithm} has no replay buffer: it is on-policy"
            raise self.document.error(complaint, ("save_replay_buffer",))
        for environment in self.content["environments"]:
            self._base(environment)
        self._check_callbacks()

    def _check_environments(self) -> None:
        import importlib

        import gymnasium as gym
        import rl_zoo3.import_envs  # noqa: F401  registers what the zoo can train on

        for number, package in enumerate(self.content.get("gym_packages", ())):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise self.document.error(str(error), ("gym_packages", number)) from None
        for number, environment in enumerate(self.content["environments"]):
            if environment not in gym.registry:
                import difflib

                check_atari(environment)
                near = difflib.get_close_matches(environment, gym.registry, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise self.document.error(f"{environment!r} is not registered{hint}", ("environments", number))

    def _check_settings(self) -> None:
        known = (*self.parameters, *ZOO_SETTINGS)
        for name, value in self.settings.items():
            self._check_named(name, known, "settings", name)
            self._check_value(name, value, "settings", name)
        for axis, values in self.axes.items():
            if not entry_of(CALLBACK, axis) and not entry_of(POLICY_KWARGS, axis):
                self._check_named(axis, (REPLAY_RATIO, WIDTH, CALLBACK, *known), "grid", axis)
            # A list's values are found by their numbers, a mapping's by their labels.
            places = values if isinstance(self.content["grid"][axis], dict) else itertools.count()
            for place, value in zip(places, values.values(), strict=False):
                self._check_value(axis, value, "grid", axis, place)
        for axis, labels in self.per.items():
            self._check_named(axis, tuple(self.axes), "per", axis)
            for label, settings in labels.items():
                if label not in self.axes[axis]:
                    there = ", ".join(map(repr, self.axes[axis]))
                    raise self.document.error(f"the grid has {there}", ("per", axis, label))
                for name, value in settings.items():
                    self._check_named(name, (*known, CALLBACK), "per", axis, label, name)
                    self._check_value(name, value, "per", axis, label, name)

    def _check_value(self, name: str, value: Any, *location: Hashable) -> None:
        complaint = complaint_about(name, value, self.parameters)
        if complaint is not None:
            raise self.document.error(complaint, location)

    @cached_property
    def _entries(self) -> dict[str, Any]:
        try:
            return dict(yaml.safe_load(Path(self.config).read_text()))
        except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
            raise self.document.error(f"{self.config} cannot be read: {error}", ("config",)) from None

    def _base(self, environment: str) -> dict[str, Any]:
        """Return the configuration's entry for an environment, found as the zoo finds it."""
        from rl_zoo3.exp_manager import ExperimentManager

        names = (environment, "atari" if ExperimentManager.is_atari(environment) else "default")
        for name in names:
            if name in self._entries:
                return dict(self._entries[name])
        raise self.document.error(f"{self.config} has no entry for {environment}", ("config",))

    def _check_callbacks(self) -> None:
        for label, callbacks in self.axes.get(CALLBACK, {}).items():
            complaint = _complaint_about_callbacks(callbacks)
            if complaint is not None:
                raise self.document.error(complaint, ("grid", CALLBACK, label))

    def runs(self) -> list[Run]:
        """Make all runs, each in a folder of its own and with callbacks that can be made."""
        runs = super().runs()
        names = Counter(run.name for run in runs)
        twin = next((name for name, count in names.items() if count > 1), None)
        if twin is not None:
            raise self.document.error(f"two conditions are named alike: {twin}", ("grid",))
        self._check_adjusted(runs)
        return runs

    def _check_adjusted(self, runs: list[Run]) -> None:
        """Check the callbacks of a configuration, and those that ``per`` has changed."""
        seen: list[Any] = []
        for run in runs:
            if run.callbacks in seen:
                continue
            seen.append(run.callbacks)
            complaint = _complaint_about_callbacks(run.callbacks)
            if complaint is not None:
                elsewhere = ("per",) if self.per else ("config",)
                where = next((("grid", axis) for axis in self.axes if entry_of(CALLBACK, axis)), elsewhere)
                raise self.document.error(f"the callbacks of {run.name}: {complaint}", where)

    def _run(self, environment: str, condition: dict[str, Any], seed: int) -> Run:
        base = self._base(environment)
        changes = dict(self.settings)
        of_callbacks: dict[str, Any] = {}
        callbacks = base.pop(CALLBACK, [])
        for axis, label in condition.items():
            if axis == CALLBACK:
                callbacks = self.axes[axis][label]
            elif setting := entry_of(CALLBACK, axis):
                of_callbacks[setting] = self.axes[axis][label]
            else:
                changes[axis] = self.axes[axis][label]
            extra = dict(self.per.get(axis, {}).get(label, {}))
            of_callbacks |= extra.pop(CALLBACK, {})
            changes |= extra
        try:
            overrides = hyperparameters(self.algorithm, base, changes)
        except (TypeError, ValueError) as error:
            axis = REPLAY_RATIO if "replay ratio" in str(error) else WIDTH
            where = ("grid", axis, list(self.axes[axis]).index(condition[axis])) if axis in condition else ()
            raise self.document.error(str(error), where) from None
        return Run(
            self.algorithm,
            environment,
            condition,
            seed,
            self.config,
            overrides,
            [_adjusted(callback, of_callbacks) for callback in _listed(callbacks)],
            self._in_force(base, overrides),
            self.content.get("n_timesteps"),
            tuple(self.content.get("gym_packages", ())),
            self.content.get("checkpoint_minutes", 10.0),
            self.content.get("save_replay_buffer", False),
        )

    def _in_force(self, base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """Return all hyper-parameters of a run, with the algorithm's defaults for what makes a replay ratio."""
        defaults = {
            name: parameter.default
            for name, parameter in self.parameters.items()
            if name in ("train_freq", "gradient_steps") and isinstance(parameter.default, int)
        }
        length = {"n_timesteps": self.content["n_timesteps"]} if "n_timesteps" in self.content else {}
        return {**defaults, **base, **overrides, **length}


def _complaint_about_callbacks(callbacks: Any) -> str | None:
    """Say why the zoo cannot make callbacks, if it cannot."""
    from rl_zoo3.utils import get_callback_list

    try:
        get_callback_list({CALLBACK: callbacks})
    except (ImportError, AttributeError, TypeError, ValueError, AssertionError) as error:
        return str(error)
    return None


def _listed(callbacks: Any) -> list[Any]:
    return list(callbacks) if isinstance(callbacks, list) else [callbacks]


def _adjusted(callback: Any, settings: Mapping[str, Any]) -> Any:
    """Return a callback of ours with other settings, any other as it is."""
    if isinstance(callback, dict) and settings:
        ((path, own),) = callback.items()
        return {path: {**own, **settings}} if path.startswith("sb3_redo.") else callback
    if isinstance(callback, str) and settings and callback.startswith("sb3_redo."):
        return {callback: dict(settings)}
    return callback
