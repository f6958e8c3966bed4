"""Shows a live table of a sweep on a terminal, or else prints a line per run."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from sb3_redo.sweeps.execution import Standing
from sb3_redo.sweeps.files import RESULT, is_finished, read_json
from sb3_redo.sweeps.run import Run, progress_of
from sb3_redo.validation import needs

with needs("sweep", "the progress of a sweep"):
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table


class Progress:
    """Shows the progress of a sweep.

    :param out: the sweep's folder
    :param runs: all runs
    """

    def __init__(self, out: Path, runs: list[Run], console: Console | None = None):
        self.out = out
        self.runs = runs
        self.console = console or Console(file=sys.stderr)
        self.begun = time.monotonic()
        self._weights = {run.name: run.effort for run in runs}
        self._trained_before: float | None = None
        self._steps_before: int | None = None
        self._told: set[str] = set()
        self._live: Live | None = None

    def opening(self, workers: int | None) -> str:
        """Return the first line: number of runs, runs at a time, estimated time and folder.

        The time is estimated from finished runs, scaled by effort. Without finished runs it is a guess.

        :param workers: ``None`` on a cluster, because its size may change
        """
        finished = [run for run in self.runs if is_finished(self.out / run.name)]
        self._told |= {run.name for run in finished}
        guessed = [_guessed_seconds(run) for run in self.runs if run.name not in self._told]
        done = f", {len(finished)} of them finished" if finished else ""
        if not guessed:
            return f"{len(self.runs)} runs{done}, in {self.out}"
        if workers is None:
            return f"{len(self.runs)} runs{done}, as many at a time as the cluster holds, in {self.out}"
        pace, source = 1.0, "a guess until one has ended"
        told = [(read_json(self.out / run.name / RESULT) or {}).get("seconds") for run in finished]
        taken = sum(seconds for seconds in told if isinstance(seconds, float))
        if taken > 0:
            pace, source = taken / sum(map(_guessed_seconds, finished)), "at the pace of those"
        seconds = pace * max(sum(guessed) / workers, *guessed)
        return f"{len(self.runs)} runs{done}, {workers} at a time, about {duration(seconds)} ({source}), in {self.out}"

    @contextmanager
    def shown(self) -> Iterator["Progress"]:
        """Show the table until the sweep ends."""
        if not self.console.is_terminal:
            yield self
            return
        with Live(console=self.console, refresh_per_second=2) as self._live:
            yield self

    def update(self, standing: Standing) -> None:
        """Show the current progress."""
        ended = dict.fromkeys(standing.finished, "finished") | dict.fromkeys(standing.failed, "failed")
        if self._live is None and self._trained_before is not None and ended.keys() == self._told:
            return
        steps = {name: progress_of(self.out / name) for name in self._weights}
        left = self._seconds_left(standing, steps)
        self._tell_ends(standing, ended, left)
        if self._live is not None:
            self._live.update(self.table(standing, steps))

    def _tell_ends(self, standing: Standing, ended: dict[str, str], left: float | None) -> None:
        for name, how in ended.items():
            if name not in self._told:
                self._told.add(name)
                about = self._figures(name) if how == "finished" else f": {standing.failed[name]}"
                line = f"{how} {len(self._told)}/{len(self.runs)}: {name}{about}"
                if left and len(self._told) == len(ended):
                    line += f"; about {duration(left)} left"
                self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _figures(self, name: str) -> str:
        """Return the outcome of a finished run, in words."""
        try:
            result = read_json(self.out / name / RESULT) or {}
            figures = [f"return {result['final_return']:.4g}"] if result.get("final_return") is not None else []
            if result.get("final_dormant_fraction") is not None:
                figures.append(f"{100 * result['final_dormant_fraction']:.0f} % dormant")
            figures += [f"{result['seconds']:.0f} s"] if "seconds" in result else []
        except (OSError, ValueError, TypeError):
            return f": {RESULT} cannot be read"
        return f": {', '.join(figures)}" if figures else ""

    def table(self, standing: Standing, steps: dict[str, tuple[int, int]]) -> Table:
        """Return the table, from each run's finished and planned environment steps."""
        left = self._seconds_left(standing, steps)
        made = sum(done for done, _ in steps.values())
        if self._steps_before is None:
            self._steps_before = made
        seconds = max(time.monotonic() - self.begun, 1e-9)
        table = Table(title=f"{len(self.runs)} runs in {self.out}")
        columns = ("done", "running", "waiting", "failed", "steps/s", "time left")
        for column in columns:
            table.add_column(column, justify="right")
        table.add_row(
            str(len(standing.finished)),
            str(len(standing.running)),
            f"{len(standing.open)}{f' ({len(standing.busy)} elsewhere)' if standing.busy else ''}",
            f"[red]{len(standing.failed)}[/red]" if standing.failed else "0",
            f"{(made - self._steps_before) / seconds:,.0f}",
            "?" if left is None else str(timedelta(seconds=round(left))),
        )
        table.caption = "\n".join(self._line(name, steps) for name in sorted(standing.running))
        return table

    def _seconds_left(self, standing: Standing, steps: dict[str, tuple[int, int]]) -> float | None:
        """Return the remaining time at the current pace, or ``None`` before any training."""
        trained = sum(weight * self._share(name, standing, steps) for name, weight in self._weights.items())
        if self._trained_before is None:
            self._trained_before = trained
        pace = (trained - self._trained_before) / max(time.monotonic() - self.begun, 1e-9)
        return (sum(self._weights.values()) - trained) / pace if pace > 0 else None

    @staticmethod
    def _line(name: str, steps: dict[str, tuple[int, int]]) -> str:
        done, of = steps[name]
        return f"{name}: {f'{100 * done / of:.0f} %' if of else 'starts'}"

    @staticmethod
    def _share(name: str, standing: Standing, steps: dict[str, tuple[int, int]]) -> float:
        if name in standing.finished or name in standing.failed:
            return 1.0
        done, of = steps[name]
        return done / of if of else 0.0


def _guessed_seconds(run: Run) -> float:
    """Guess the time of a run on one core, from gradient steps measured on a slow core."""
    return run.effort * (0.05 if "Cnn" in str(run.settings.get("policy")) else 0.004)


def duration(seconds: float) -> str:
    """Return a time in words, rounded to a whole number of units."""
    units = ((86_400, "day"), (3600, "hour"), (60, "minute"))
    size, unit = next((each for each in units if seconds >= 2 * each[0]), (1, "second"))
    count = max(round(seconds / size), 1)
    return f"{count} {unit}{'s' * (count > 1)}"
