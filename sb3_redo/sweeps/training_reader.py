"""Reads sweep files for the zoo's agents."""

import inspect
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from functools import cache, cached_property
from keyword import iskeyword
from pathlib import Path
from typing import Any

from sb3_redo.reports.sweep_folder import CALLBACK, REPLAY_RATIO, WIDTH
from sb3_redo.sweeps.conditions import INTERVAL, POLICY_KWARGS, TARGET_PERIOD, entry_of, hyperparameters
from sb3_redo.sweeps.named_classes import check_callbacks, check_policy_settings, check_wrappers, policy_class
from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.sweep_reader import SweepReader
from sb3_redo.sweeps.value_types import SET_BY_THE_SWEEP, ZOO_SETTINGS, complaint_about
from sb3_redo.sweeps.yaml_document import Document
from sb3_redo.sweeps.zoo_python import EVALUATED, read_python
from sb3_redo.validation import UsageError, needs
from sb3_redo.zoo.atari import check_atari

_OURS = "sb3_redo."
_SCHEDULE = ("train_freq", "gradient_steps")


class TrainingReader(SweepReader):
    """Builds runs from a document of the right form."""

    schema = Path(__file__).with_name("sweep_schema.json")

    def __init__(self, document: Document):
        super().__init__(document)
        self.algorithm: str = self.content["algorithm"]
        self.per: dict[str, dict[Any, dict[str, Any]]] = self.content.get("per", {})
        # Relative to the sweep file, but named relative to the current folder.
        self.config = os.path.relpath(document.file.parent / self.content["config"])

    def check(self) -> None:
        """Check names, values, environments and callbacks against the zoo's.

        :raises UsageError: naming the file's line
        """
        with needs("sweep", "a sweep"):
            from rl_zoo3.utils import ALGOS

        import sb3_redo.algorithms  # noqa: F401  adds ours to the zoo's

        self._check_named(self.algorithm, tuple(ALGOS), "algorithm")
        self._check_environments()
        parameters = inspect.signature(ALGOS[self.algorithm]).parameters
        self.parameters = {name: value for name, value in parameters.items() if name not in SET_BY_THE_SWEEP}
        self.policies = ALGOS[self.algorithm].policy_aliases
        if REPLAY_RATIO in self.axes and "gradient_steps" not in self.parameters:
            raise self.document.error(f"{self.algorithm} has no replay ratio: it is on-policy", ("grid", REPLAY_RATIO))
        self._check_target_period()
        self._check_settings()
        if self.content.get("save_replay_buffer") and "buffer_size" not in self.parameters:
            complaint = f"{self.algorithm} has no replay buffer: it is on-policy"
            raise self.document.error(complaint, ("save_replay_buffer",))
        if "n_timesteps" in self.content and "n_timesteps" in {**self.settings, **self.axes}:
            raise self.document.error("n_timesteps is set here and among the settings: give it once", ("n_timesteps",))
        for environment in self.content["environments"]:
            self._base(environment)
        self._check_callbacks()

    def _check_target_period(self) -> None:
        # All other algorithms with a target update it at every gradient step, at any replay ratio.
        if "exploration_fraction" not in self.parameters:
            if TARGET_PERIOD in self.content:
                complaint = f"{self.algorithm} copies no target network: leave {TARGET_PERIOD} out"
                raise self.document.error(complaint, (TARGET_PERIOD,))
            return
        changed = (changes for labels in self.per.values() for changes in labels.values())
        is_given = TARGET_PERIOD in self.content or any(
            INTERVAL in each for each in (self.settings, self.axes, *changed)
        )
        if not is_given and len(self.axes.get(REPLAY_RATIO, ())) > 1:
            complaint = (
                f"expected a {TARGET_PERIOD} in this file: {self.algorithm} counts {INTERVAL} in environment steps, so "
                f"that every replay ratio would train on other targets; add '{TARGET_PERIOD}: N  # gradient steps', or "
                f"{INTERVAL} to settings if that is what you compare"
            )
            raise self.document.error(complaint, ("grid", REPLAY_RATIO))

    def _check_environments(self) -> None:
        import gymnasium as gym
        import rl_zoo3.import_envs  # noqa: F401  registers what the zoo can train on

        from sb3_redo.sweeps.named_classes import import_named

        for number, package in enumerate(self.content.get("gym_packages", ())):
            try:
                import_named(package)
            except ValueError as error:
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
            entry = isinstance(axis, str) and (entry_of(CALLBACK, axis) or entry_of(POLICY_KWARGS, axis))
            if not entry or not entry.isidentifier() or iskeyword(entry):
                self._check_named(axis, (REPLAY_RATIO, WIDTH, CALLBACK, *known), "grid", axis)
            # Values of a list have positions, values of a mapping have labels.
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
                    if name == CALLBACK and not isinstance(value, dict):
                        complaint = f"expected a mapping of settings, got {value!r}"
                        raise self.document.error(complaint, ("per", axis, label, name))
                    for path in (path for path in value if "." in str(path)) if name == CALLBACK else ():
                        wrong = _complaint_about(check_callbacks, {path: value[path]})
                        if wrong is not None:
                            raise self.document.error(wrong, ("per", axis, label, name, path))
                    self._check_value(name, value, "per", axis, label, name)

    def _check_value(self, name: str, value: Any, *location: Hashable, document: Document | None = None) -> None:
        complaint = complaint_about(name, value, self.parameters)
        if complaint is None and name == "policy":
            complaint = _complaint_about(policy_class, self.policies, value)
        if complaint is None and name in EVALUATED and isinstance(value, str):
            complaint = _complaint_about(read_python, value)
        if complaint is None and name in ("env_wrapper", "vec_env_wrapper"):
            complaint = _complaint_about(check_wrappers, value)
        if complaint is not None:
            raise (document or self.document).error(complaint, location)

    @cached_property
    def _entries(self) -> Document:
        # The zoo executes any other file as Python.
        if Path(self.config).suffix not in (".yml", ".yaml"):
            raise self.document.error(f"expected a .yml file, got {self.config!r}", ("config",))
        try:
            document = Document(Path(self.config))
        except UsageError as error:
            raise self.document.error(str(error), ("config",)) from None
        if not isinstance(document.content, dict):
            raise self.document.error(f"{self.config} cannot be read: it is not a mapping", ("config",))
        return document

    def _base(self, environment: str) -> dict[str, Any]:
        return dict(self._checked(self._entry_of(environment)))

    def _entry_of(self, environment: str) -> str:
        """Return the name of the configuration's entry for an environment, by the zoo's rules."""
        from rl_zoo3.exp_manager import ExperimentManager

        names = (environment, "atari" if ExperimentManager.is_atari(environment) else "default")
        for name in names:
            if name in self._entries.content:
                return name
        raise self.document.error(f"{self.config} has no entry for {environment}", ("config",))

    @cache  # noqa: B019  a reader is gone with its file
    def _checked(self, name: str) -> dict[str, Any]:
        """Return an entry of the configuration. Checks that all settings belong to the algorithm or the zoo."""
        entry = self._entries.content[name]
        if not isinstance(entry, dict):
            raise self._entries.error(f"expected a mapping of settings, got {entry!r}", (name,))
        for setting, value in entry.items():
            self._check_named(
                setting, (*self.parameters, *ZOO_SETTINGS, CALLBACK), name, setting, document=self._entries
            )
            self._check_value(setting, value, name, setting, document=self._entries)
        for needed in ("policy", "n_timesteps"):
            if needed not in {**entry, **self.settings, **self.axes, **self.content}:
                raise self._entries.error(f"expected {needed} here or in the sweep file, which has none", (name,))
        return entry

    def _check_callbacks(self) -> None:
        for label, callbacks in self.axes.get(CALLBACK, {}).items():
            complaint = _complaint_about(check_callbacks, callbacks)
            if complaint is not None:
                raise self.document.error(complaint, ("grid", CALLBACK, label))

    def runs(self) -> list[Run]:
        """Build all runs. Checks that their folders differ and that their callbacks can be built."""
        runs = super().runs()
        # Some file systems treat names as equal if they differ only in case, or in the encoding of accents.
        names = Counter(unicodedata.normalize("NFC", run.name).casefold() for run in runs)
        twin = next((name for name, count in names.items() if count > 1), None)
        if twin is not None:
            raise self.document.error(f"two conditions are named alike: {twin}", ("grid",))
        self._check_adjusted(runs)
        for axis in self.axes:
            self._check_labels(axis, runs)
        return runs

    def _check_labels(self, axis: str, runs: list[Run]) -> None:
        """Check that each label of an axis has different runs, and that callbacks exist for settings."""
        if entry_of(CALLBACK, axis) and not any(map(_kinds_of_ours, runs)):
            raise self.document.error("no run has a callback of sb3_redo with this setting", ("grid", axis))
        trained: dict[str, Hashable] = {}
        for label in self.axes[axis]:
            mine = [run for run in runs if run.condition[axis] == label]
            twin = trained.setdefault(repr([(run.overrides, run.callbacks) for run in mine]), label)
            if twin != label:
                raise self.document.error(
                    f"{twin!r} and {label!r} are the same trainings: leave one out", ("grid", axis)
                )
            of_callbacks = self.per.get(axis, {}).get(label, {}).get(CALLBACK, {})
            there = {kind for run in mine for kind in _kinds_of_ours(run)}
            for name in of_callbacks:
                if not there or ("." in str(name) and name not in there):
                    raise self.document.error(
                        "none of these runs has such a callback", ("per", axis, label, CALLBACK, name)
                    )

    def _check_adjusted(self, runs: list[Run]) -> None:
        """Check the callbacks of a configuration, also as changed by ``per``, and the policies' settings."""
        first = {repr(run.callbacks): run for run in reversed(runs)}.values()
        for run in first:
            complaint = _complaint_about(check_callbacks, run.callbacks)
            if complaint is not None:
                raise self._error_of(run, CALLBACK, f"the callbacks of {run.name}: {complaint}")
        kwargs = {repr((run.settings.get("policy"), run.settings.get(POLICY_KWARGS))): run for run in reversed(runs)}
        for run in kwargs.values():
            if "policy" in run.settings:
                policy = policy_class(self.policies, run.settings["policy"])
                complaint = _complaint_about(check_policy_settings, policy, run.settings.get(POLICY_KWARGS))
                if complaint is not None:
                    raise self._error_of(run, POLICY_KWARGS, f"the policy of {run.name}: {complaint}")

    def _error_of(self, run: Run, owner: str, message: str) -> UsageError:
        """Return an error that points to the source of a run's mapping: axis, setting or configuration."""
        where: list[tuple[Hashable, ...]] = [("grid", axis) for axis in self.axes if entry_of(owner, axis)]
        # The callback axis itself is already checked.
        where += [("grid", owner)] if owner in self.axes and owner != CALLBACK else []
        where += [("per",)] if any(owner in changed for each in self.per.values() for changed in each.values()) else []
        where += [("settings", owner)] if owner in self.settings else []
        if where:
            return self.document.error(message, where[0])
        return self._entries.error(message, (self._entry_of(run.environment), owner))

    def _run(self, environment: str, condition: dict[str, Any], seed: int) -> Run:
        base = self._base(environment)
        changes = {name: self.content[name] for name in (TARGET_PERIOD,) if name in self.content} | self.settings
        of_callbacks: dict[str, Any] = {}
        callbacks = base.pop(CALLBACK, None) or []
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
            overrides = hyperparameters(self.algorithm, {**self._schedule, **base}, changes)
        except (TypeError, ValueError) as error:
            axis = REPLAY_RATIO if "replay ratio" in str(error) else WIDTH
            where: tuple[Hashable, ...] = ()
            if axis in condition:
                where = ("grid", axis, list(self.axes[axis]).index(condition[axis]))
            if "target period" in str(error):
                where = (TARGET_PERIOD,)
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

    @cached_property
    def _schedule(self) -> dict[str, Any]:
        """Return the algorithm's default settings for the replay ratio."""
        defaults = {name: self.parameters[name].default for name in _SCHEDULE if name in self.parameters}
        return {name: default for name, default in defaults.items() if isinstance(default, int)}

    def _in_force(self, base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """Return all hyper-parameters of a run, with the algorithm's defaults for the replay ratio."""
        length = {"n_timesteps": self.content["n_timesteps"]} if "n_timesteps" in self.content else {}
        return {**self._schedule, **base, **overrides, **length}


def _complaint_about(check: Callable[..., Any], *arguments: Any) -> str | None:
    try:
        check(*arguments)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _kinds_of_ours(run: Run) -> list[str]:
    """Return the paths of a run's callbacks with settings that an axis may change."""
    paths = (next(iter(callback), None) if isinstance(callback, dict) else callback for callback in run.callbacks)
    return [path for path in paths if isinstance(path, str) and path.startswith(_OURS)]


def _listed(callbacks: Any) -> list[Any]:
    return list(callbacks) if isinstance(callbacks, list) else [callbacks]


def _adjusted(callback: Any, settings: Mapping[str, Any]) -> Any:
    """Return a callback of ours with changed settings, others unchanged. A dotted path selects a class."""
    if isinstance(callback, dict) and len(callback) == 1:
        ((path, own),) = callback.items()
    else:
        path, own = callback, {}
    if not isinstance(path, str) or not path.startswith(_OURS) or not isinstance(own, dict):
        return callback
    of_all = {name: value for name, value in settings.items() if "." not in str(name)}
    changed = of_all | settings.get(path, {})
    return {path: {**own, **changed}} if changed else callback
