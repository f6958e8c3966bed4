"""What a sweep costs beside its trainings, and what it saves, as a table and as JSON.

``python -m benchmarks.sweep zoo_configs/sweeps/small_replay_ratio.yml --out runs/sweep_benchmark`` trains every run
twice, which takes the better part of an hour on two cores; given again, it goes on where it was stopped, and must not
be believed. Its lines:

- ``sweep / one after the other``: wall time of ``sb3-redo sweep`` over that of the command lines that its ``--dry-run``
  prints, typed one after the other. With ``--typed-seeds 2`` only those of the first two seeds are typed, and the time
  that all would take is worked out from them.
- ``own overhead of long runs``: of the time from when a run of at least a minute was given to a worker until its folder
  was complete, the share in which it did not train: loading libraries, building the agent, saving it, reading
  TensorBoard's files, waiting for Ray.
- ``own overhead of all``: of the time that the workers had from the first second of the command to its last, the share
  in which nothing trained. The start of Ray, short runs, and workers with nothing left to do are in it: no bar.
- ``other weights``: the share of the runs whose agent is not the same to the bit both ways.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from stable_baselines3.common.save_util import load_from_zip_file

from benchmarks.passes import Line, tell
from sb3_redo.sweeps.files import RESULT, RUN, read_json
from sb3_redo.sweeps.run import Run
from sb3_redo.sweeps.run_process import thread_variables
from sb3_redo.sweeps.sweep_file import read_sweep_file

LONG = 60.0
"""Seconds from which on a run counts as long."""


def timed(file: Path, do: Callable[[], object]) -> float:
    """The wall time of doing something, which is not done again where a file says how long it took."""
    if not file.exists():
        begun = time.monotonic()
        do()
        file.write_text(json.dumps(time.monotonic() - begun))
    return float(json.loads(file.read_text()))


def sweep(file: Path, out: Path, workers: int) -> None:
    """Give the command."""
    command = [sys.executable, "-m", "sb3_redo", "sweep", str(file), "--out", str(out), "--workers", str(workers)]
    subprocess.run(command, check=True)


def type_in(runs: Sequence[Run], out: Path) -> float:
    """Run the printed commands one after the other; the seconds they took."""
    environment = {**os.environ, **thread_variables(1)}
    seconds = 0.0
    for run in runs:
        folder = out / run.name
        folder.mkdir(parents=True, exist_ok=True)
        command = run.command(out, python=sys.executable)
        with open(folder / "typed.txt", "w") as log:
            seconds += timed(
                folder / "typed.json",
                lambda command=command, log=log: subprocess.run(  # type: ignore[misc]
                    command, check=True, env=environment, stdout=log, stderr=log
                ),
            )
    return seconds


def weights(run: Run, out: Path) -> dict[str, torch.Tensor]:
    """Of the agent that the zoo saved."""
    (file,) = (out / run.name).glob("zoo/*/*/*.zip")
    return dict(load_from_zip_file(file)[1]["policy"])


def differ(run: Run, one: Path, other: Path) -> bool:
    """Whether a run gave another agent."""
    mine, its = weights(run, one), weights(run, other)
    return mine.keys() != its.keys() or any(not torch.equal(mine[key], its[key]) for key in mine)


def spans(runs: Sequence[Run], out: Path) -> list[tuple[float, float]]:
    """For each run the seconds that a worker had it, and those in which it trained."""
    found = []
    for run in runs:
        folder = out / run.name
        handed, complete = ((folder / name).stat().st_mtime for name in (RUN, "points.parquet"))
        result = read_json(folder / RESULT)
        assert result is not None
        found.append((complete - handed, float(result["seconds"])))
    return found


def lines(file: Path, out: Path, workers: int, typed_seeds: int | None) -> list[Line]:
    """Train, and tell."""
    plan = read_sweep_file(file)
    runs = plan.runs
    to_type = [run for run in runs if run.seed in plan.seeds[:typed_seeds]]
    swept, typed = out / "swept", out / "typed"
    swept.mkdir(parents=True, exist_ok=True)
    wall = timed(swept / "wall.json", lambda: sweep(file, swept, workers))
    sequence = type_in(sorted(to_type, key=lambda run: (run.seed, run.effort)), typed) * len(runs) / len(to_type)
    each = spans(runs, swept)
    training = sum(trained for _, trained in each)
    changed = sum(differ(run, swept, typed) for run in to_type) / len(to_type)

    def one(quantity: str, value: float, bar: float | None, note: str) -> Line:
        return Line(file.stem, quantity, value, value, value, bar, note)

    return [
        one(
            "sweep / one after the other", wall / sequence, 0.6, f"{wall:.0f} s and {sequence:.0f} s, {len(runs)} runs"
        ),
        *overhead_of_long_runs(file.stem, each),
        one("own overhead of all", 1 - training / (workers * wall), None, f"{training:.0f} s of training"),
        one("other weights", changed, 0.0, f"{len(to_type)} runs"),
    ]


def overhead_of_long_runs(subject: str, each: Sequence[tuple[float, float]]) -> list[Line]:
    """Nothing where none is long."""
    long = [(held, trained) for held, trained in each if trained >= LONG]
    if not long:
        return []
    shares = [1 - trained / held for held, trained in long]
    share = 1 - sum(trained for _, trained in long) / sum(held for held, _ in long)
    return [Line(subject, "own overhead of long runs", share, min(shares), max(shares), 0.05, f"{len(long)} runs")]


def main() -> None:
    """Print the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a sweep file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--workers", type=int, default=2, help="(default: %(default)d)")
    parser.add_argument("--typed-seeds", type=int, metavar="N", help="type only the runs of so many seeds")
    parser.add_argument("--json", type=Path, help="file for the JSON; without it, it follows the table")
    options = parser.parse_args()
    tell(lines(options.file, options.out, options.workers, options.typed_seeds), options.json)


if __name__ == "__main__":
    main()
