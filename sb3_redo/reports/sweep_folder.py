"""Reads the folder of a sweep: which runs were planned, which are there, how far each came."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLBACK = "callback"
REPLAY_RATIO = "replay_ratio"
WIDTH = "width"


@dataclass(frozen=True)
class RunRecord:
    """Holds what a run folder says; ``name`` is its path below the sweep's folder.

    :param condition: axis to value, in the order of the sweep's axes
    :param result: what ``result.json`` says, for a finished run, or ``outcome.json`` where no sweep has completed it
    :param failure: what ``failed.json`` says, for a failed run
    """

    name: str
    folder: Path
    environment: str
    condition: Mapping[str, Any]
    seed: int
    settings: Mapping[str, Any]
    result: Mapping[str, Any] | None = None
    failure: Mapping[str, Any] | None = None

    @property
    def state(self) -> str:
        if self.result is not None:
            return "finished"
        return "unfinished" if self.failure is None else "failed"

    @property
    def label(self) -> str:
        """The condition as its folder is named: ``replay_ratio=1,callback=redo``."""
        return _label(self.condition)

    @property
    def setting(self) -> str:
        """The condition without its callback."""
        return _label({axis: value for axis, value in self.condition.items() if axis != CALLBACK})


@dataclass(frozen=True)
class SweepRecord:
    """Holds what a sweep's folder says.

    :param planned: names of all planned runs; where no ``sweep.json`` says so, of those that are there
    :param runs: those whose folder says what it is
    :param broken: files that could not be read and why
    """

    folder: Path
    name: str
    algorithm: str
    n_timesteps: int | None
    planned: tuple[str, ...]
    runs: tuple[RunRecord, ...]
    broken: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of planned runs that were not begun."""
        there = {run.name for run in self.runs}
        return tuple(name for name in self.planned if name not in there)

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(axis for run in self.runs for axis in run.condition))

    def in_state(self, state: str) -> tuple[RunRecord, ...]:
        return tuple(run for run in self.runs if run.state == state)


def read_sweep_folder(folder: Path, only: Collection[str] | None = None) -> SweepRecord:
    """Read what a sweep's folder says about its runs. Their points are left for later.

    :param folder: holds ``sweep.json`` and the run folders; without the former, the runs below it are the sweep
    :param only: names of the runs that count, as planned; all if not given
    :raises FileNotFoundError: when it holds neither
    """
    folder = Path(folder)
    broken: list[str] = []
    about = _read_json(folder, folder / "sweep.json", broken) or {}
    found = (_read_run(folder, path, broken) for path in sorted(folder.rglob("run.json")))
    runs = tuple(run for run in found if run is not None)
    if not about and not runs and not broken:
        raise FileNotFoundError(f"{folder} holds neither sweep.json nor a run folder (one with run.json)")
    planned = tuple(about.get("runs", ())) or tuple(run.name for run in runs)
    if only is not None:
        planned, runs = tuple(only), tuple(run for run in runs if run.name in only)
    order = {name: number for number, name in enumerate(planned)}
    algorithm = about.get("algorithm") or next((_algorithm_of(run) for run in runs), "unknown")
    return SweepRecord(
        folder,
        about.get("name") or folder.resolve().name,
        algorithm,
        about.get("n_timesteps"),
        planned,
        tuple(sorted(runs, key=lambda run: (order.get(run.name, len(order)), run.name))),
        tuple(broken),
    )


def text(value: Any) -> str:
    """Write a value of an axis as it stands in a condition."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _label(condition: Mapping[str, Any]) -> str:
    return ",".join(f"{axis}={text(value)}" for axis, value in condition.items()) or "default"


def _algorithm_of(run: RunRecord) -> str:
    return str(run.settings.get("algorithm", "unknown"))


def _read_run(sweep: Path, path: Path, broken: list[str]) -> RunRecord | None:
    about = _read_json(sweep, path, broken)
    if about is None:
        return None
    result, outcome, failure = (
        _read_json(sweep, path.with_name(f"{name}.json"), broken) for name in ("result", "outcome", "failed")
    )
    if result is None and failure is None:
        result = outcome
    try:
        return RunRecord(
            path.parent.relative_to(sweep).as_posix(),
            path.parent,
            str(about["environment"]),
            dict(about.get("condition") or {}),
            int(about["seed"]),
            {"algorithm": about.get("algorithm", "unknown"), **(about.get("settings") or {})},
            result,
            failure,
        )
    except (KeyError, TypeError, ValueError) as error:
        broken.append(f"{path.relative_to(sweep)}: {type(error).__name__}: {error}")
        return None


def _read_json(sweep: Path, path: Path, broken: list[str]) -> dict[str, Any] | None:
    """Read the object in a file; nothing when there is no such file, or when it is broken, which is then noted."""
    try:
        contents = json.loads(path.read_text())
        if isinstance(contents, dict):
            return contents
        broken.append(f"{path.relative_to(sweep)}: expected an object, got {type(contents).__name__}")
    except FileNotFoundError:
        pass
    except (ValueError, OSError) as error:
        broken.append(f"{path.relative_to(sweep)}: {error}")
    return None
