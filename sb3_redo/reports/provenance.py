"""Describes the runs of a sweep from their folders."""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sb3_redo.reports.sweep_folder import SweepRecord, text

_MOST_VALUES = 12


def provenance_of(sweep: SweepRecord) -> dict[str, str]:
    """Return a description of the comparison: sweep, conditions, date, machine and versions.

    :param sweep: from :func:`~sb3_redo.reports.sweep_folder.read_sweep_folder`
    :return: headings to texts; unknown facts are left out
    """
    results = [run.result for run in sweep.runs if run.result is not None]
    dates = sorted(date[:16] for run in sweep.runs if isinstance(date := run.about.get("date"), str))
    steps = _distinct(f"{int(result['num_timesteps']):,}" for result in results if result.get("num_timesteps"))
    environments = _distinct(run.environment for run in sweep.runs)
    found = {
        "trained": f"{sweep.algorithm} on {environments}" + (f", {steps} environment steps a run" if steps else ""),
        "compared": _conditions(sweep),
        "begun": " to ".join(dict.fromkeys([dates[0], dates[-1]])).replace("T", " ") + " UTC" if dates else "",
        "machine": _distinct((_machine(result.get("machine")) for result in results), "; "),
        "versions": _distinct((_versions(run.about.get("versions")) for run in sweep.runs), "; "),
    }
    return {heading: words for heading, words in found.items() if words}


def sources_of(sweep: SweepRecord) -> dict[str, str]:
    """Return the sources of the runs: the sweep file, the shared settings and a command.

    :return: headings to texts; unknown ones are left out
    """
    settings = [{name: json.dumps(value) for name, value in run.settings.items()} for run in sweep.runs]
    shared = set.intersection(*(set(each.items()) for each in settings)) if settings else set()
    commands = (run.about.get("command") for run in sweep.runs)
    command = next((words for words in commands if isinstance(words, list) and words), [])
    found = {
        f"Sweep file {sweep.name}.yml": sweep.text,
        "Settings that all runs share": "\n".join(f"{name}: {value}" for name, value in sorted(shared)),
        "Command of the first run": shlex.join(map(str, command)),
    }
    return {heading: words for heading, words in found.items() if words}


def _conditions(sweep: SweepRecord) -> str:
    parts = [f"{axis}: {_distinct(text(run.condition.get(axis)) for run in sweep.runs)}" for axis in sweep.axes]
    seeds = sorted({run.seed for run in sweep.runs})
    whole = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1))
    return "; ".join([*parts, f"seeds: {seeds[0]} to {seeds[-1]}" if whole else f"seeds: {_distinct(map(str, seeds))}"])


def _distinct(words: Iterable[str], between: str = ", ") -> str:
    """Join distinct words. A long list is shortened, with the number of omitted words."""
    found = list(Counter(word for word in words if word))
    more = [f"{len(found) - _MOST_VALUES} more"] if len(found) > _MOST_VALUES else []
    return between.join([*found[:_MOST_VALUES], *more])


def _machine(about: Any) -> str:
    if not isinstance(about, Mapping):
        return ""
    cores = f"{about.get('cores')} cores" if about.get("cores") else ""
    words = [about.get(name) for name in ("gpu", "processor")] + [cores, about.get("system")]
    return ", ".join(str(word) for word in words if word)


def _versions(about: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in about.items()) if isinstance(about, Mapping) else ""
