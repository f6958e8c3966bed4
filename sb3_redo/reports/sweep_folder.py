"""Reads the folder of a sweep: planned runs, existing runs and their progress."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLBACK = "callback"
REPLAY_RATIO = "replay_ratio"
WIDTH = "width"
RETURN = "rollout/ep_rew_mean"


@dataclass(frozen=True)
class RunRecord:
    """Holds the description of a run; ``name`` is its path below the sweep's folder.

    :param condition: axis to value, in the order of the sweep's axes
    :param result: content of ``result.json``, or of ``outcome.json`` if no sweep has completed the run
    :param failure: content of ``failed.json``, for a failed run
    :param about: content of ``run.json``
    """

    name: str
    folder: Path
    environment: str
    condition: Mapping[str, Any]
    seed: int
    settings: Mapping[str, Any]
    result: Mapping[str, Any] | None = None
    failure: Mapping[str, Any] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        if self.result is not None:
            return "finished"
        return "unfinished" if self.failure is None else "failed"

    @property
    def label(self) -> str:
        """Return the condition as in the folder's name: ``replay_ratio=1,callback=redo``."""
        return _label(self.condition)

    @property
    def setting(self) -> str:
        """Return the condition without its callback."""
        return _label({axis: value for axis, value in self.condition.items() if axis != CALLBACK})


@dataclass(frozen=True)
class SweepRecord:
    """Holds the description of a sweep.

    :param planned: names of all planned runs; without ``sweep.json``, of the existing ones
    :param runs: existing runs with a description
    :param broken: unreadable files with reasons
    :param text: of the sweep file; empty if unknown
    """

    folder: Path
    name: str
    algorithm: str
    n_timesteps: int | None
    planned: tuple[str, ...]
    runs: tuple[RunRecord, ...]
    broken: tuple[str, ...]
    text: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the names of planned runs that have not started."""
        there = {run.name for run in self.runs}
        return tuple(name for name in self.planned if name not in there)

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(axis for run in self.runs for axis in run.condition))

    def in_state(self, state: str) -> tuple[RunRecord, ...]:
        return tuple(run for run in self.runs if run.state == state)


def read_sweep_folder(folder: Path, only: Collection[str] | None = None) -> SweepRecord:
    """Read the runs of a sweep's folder, without their points.

    :param folder: with ``sweep.json`` and run folders; without ``sweep.json``, all runs below it form the sweep
    :param only: names of the planned runs to read; by default all
    :raises FileNotFoundError: when it holds neither
    """
    folder = Path(folder)
    broken: list[str] = []
    about = _read_json(folder, folder / "sweep.json", broken) or {}
    for name, kind in _KINDS.items():
        value = about.get(name)
        if value is not None and (
            not isinstance(value, kind) or not all(isinstance(each, str) for each in _list(value))
        ):
            broken.append(f"sweep.json: {name} is {about.pop(name)!r:.200}")
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
        about.get("text") or "",
    )


def text(value: Any) -> str:
    """Write an axis value as in a condition's name."""
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
        condition = dict(about.get("condition") or {})
        if not all(isinstance(name, str) and isinstance(value, _SCALAR) for name, value in condition.items()):
            raise ValueError(f"expected a condition of names and values, got {condition!r:.200}")
        if _DESCRIBING & set(condition):
            raise ValueError(f"expected axes of other names than {', '.join(sorted(_DESCRIBING))}")
        if not about["environment"]:
            raise ValueError("expected the name of an environment, got none")
        seed = int(about["seed"])
        if not 0 <= seed < 2**63:
            raise ValueError(f"expected a seed of at least 0, got {seed!s:.40}")
        return RunRecord(
            path.parent.relative_to(sweep).as_posix(),
            path.parent,
            str(about["environment"]),
            condition,
            seed,
            {"algorithm": about.get("algorithm", "unknown"), **(about.get("settings") or {})},
            result,
            failure,
            about,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        broken.append(f"{path.relative_to(sweep)}: {type(error).__name__}: {error}")
        return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


_KINDS: dict[str, Any] = {"runs": list, "algorithm": str, "name": str, "n_timesteps": (int, float), "text": str}
_SCALAR = (str, int, float, type(None))
_COUNTS = ("num_timesteps", "gradient_steps", "recycled_total")
_NUMBERS = (
    "seconds",
    "steps_per_second",
    *(f"final_{name}" for name in ("return", "dormant_fraction", "accuracy", "loss")),
)
_LARGEST = {**dict.fromkeys(_NUMBERS, 1e300), **dict.fromkeys(_COUNTS, 2**53)}
# Columns of tables. No axis may have such a name.
_DESCRIBING = frozenset(("run", "environment", "condition", "seed", "setting", "state", "redo"))


def _is_no_count(name: str, value: Any) -> bool:
    return name in _COUNTS and value != value


def _read_json(sweep: Path, path: Path, broken: list[str]) -> dict[str, Any] | None:
    """Read the object in a file. Returns ``None`` without a file, or if it is unreadable, which is recorded."""
    try:
        text = path.read_text()
        contents = json.loads(text)
        # Invalid characters could not be written to the report.
        json.dumps(contents, ensure_ascii=False).encode()
        if not isinstance(contents, dict):
            raise ValueError(f"expected an object, got {type(contents).__name__}")
        for name, largest in _LARGEST.items():
            value = contents.get(name)
            if (
                not isinstance(value, (int, float, type(None)))
                or abs(value or 0) > largest
                or _is_no_count(name, value)
            ):
                raise ValueError(f"expected a number as {name}, got {value!r:.200}")
        return contents
    except FileNotFoundError:
        pass
    except (ValueError, OSError, RecursionError) as error:
        broken.append(f"{path.relative_to(sweep)}: {error}")
    return None
