"""Offers ``sb3-redo experiment``."""

import argparse
import shutil
import textwrap
from pathlib import Path
from typing import Any

from sb3_redo.cli.sweep import add_resources, check_resources, execute_sweep, folder, print_commands
from sb3_redo.experiments.catalogue import PRESETS, catalogue, experiment_named
from sb3_redo.validation import UsageError, needs, positive_integer

EXAMPLES = """examples:
  sb3-redo experiment --list
  sb3-redo experiment label_shuffling --workers 2
  sb3-redo experiment replay_ratio --preset paper --address ray://HEAD:10001
"""
_WIDEST = 116


def add_experiment(commands: Any, **settings: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "experiment",
        help="repeat an experiment of the papers, small or full-size",
        description="Train the sweeps of an experiment, and write a page with figures and a comparison with the paper. "
        "Give the same command again to resume: finished runs are skipped.",
        epilog=EXAMPLES,
        **settings,
    )
    parser.set_defaults(run=_experiment)
    parser.add_argument("name", metavar="NAME", nargs="?", help="a name from --list")
    parser.add_argument("--list", action="store_true", help="list the experiments with their content and cost")
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0], help="size (default: %(default)s)")
    parser.add_argument("--seeds", metavar="N", type=int, help="number of seeds, from 0 (default: the preset's)")
    parser.add_argument(
        "--out", metavar="DIR", type=folder, default=Path("runs"), help="folder of the sweeps (default: %(default)s)"
    )
    add_resources(parser)


def listing() -> str:
    """Return what ``--list`` prints."""
    width = min(shutil.get_terminal_size((_WIDEST, 0)).columns, _WIDEST)
    parts = []
    for experiment in catalogue().values():
        lines = [("shows", experiment.shows)]
        for name, preset in experiment.presets.items():
            time = f", about {preset.cpu_minutes} CPU minutes" if preset.cpu_minutes else ""
            lines.append((name, f"{preset.count()} runs{time}: {preset.settings}"))
        wrapped = (
            textwrap.fill(text, width, initial_indent=f"  {name:<7}", subsequent_indent=" " * 9) for name, text in lines
        )
        parts.append("\n".join([f"{experiment.name}: {experiment.title}", *wrapped]))
    return "\n\n".join(parts)


def _experiment(arguments: argparse.Namespace) -> int:
    if arguments.list:
        print(listing())
        return 0
    if arguments.name is None:
        raise UsageError("name an experiment: sb3-redo experiment --list shows them")
    experiment = experiment_named(arguments.name)
    with needs("sweep,report", "an experiment"):
        check_resources(arguments)
        from sb3_redo.experiments.page import sweeps_of, write_page
    try:
        if arguments.seeds is not None:
            positive_integer("--seeds", arguments.seeds)
    except ValueError as error:
        raise UsageError(str(error)) from None
    sweeps = sweeps_of(experiment.preset(arguments.preset), arguments.seeds)
    folders = [arguments.out / sweep.name for sweep in sweeps]
    if arguments.dry_run:
        for sweep, out in zip(sweeps, folders, strict=True):
            print_commands(sweep, out, arguments)
        return 0
    failed = [execute_sweep(sweep, out, arguments) for sweep, out in zip(sweeps, folders, strict=True)]
    out = arguments.out / "experiments" / f"{experiment.name}_{arguments.preset}"
    print(f"page: {write_page(experiment, arguments.preset, sweeps, folders, out)}")
    return 1 if any(failed) else 0
