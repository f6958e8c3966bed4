"""Offers ``sb3-redo sweep`` and ``sb3-redo report``."""

import argparse
import os
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_redo.validation import UsageError, needs, non_negative_number, positive_integer

if TYPE_CHECKING:
    from sb3_redo.sweeps.execution import Standing
    from sb3_redo.sweeps.sweep_file import Sweep

SWEEP_EXAMPLES = """examples:
  sb3-redo sweep zoo_configs/sweeps/small_replay_ratio.yml --workers 2
  sb3-redo sweep zoo_configs/sweeps/small_replay_ratio.yml --dry-run
"""
REPORT_EXAMPLES = """example:
  sb3-redo report runs/small_replay_ratio
"""


def folder(text: str) -> Path:
    """Return an option's folder. Refuses empty text, which a shell passes for an unset variable."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected the name of a folder, got {text!r}")
    return Path(text)


def add_sweep(commands: Any, **settings: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "sweep",
        help="train a grid of settings, on this machine or on a Ray cluster",
        description="Train every run of a sweep file. Give the same command again to resume: finished runs are "
        "skipped, and stopped ones continue.",
        epilog=SWEEP_EXAMPLES,
        **settings,
    )
    parser.set_defaults(run=_sweep)
    parser.add_argument("file", metavar="FILE", type=Path, help="a sweep file (YAML)")
    parser.add_argument("--out", metavar="DIR", type=folder, help="folder of the runs (default: runs/NAME of the file)")
    add_resources(parser)


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Add the options for the resources of trainings."""
    parser.add_argument("--dry-run", action="store_true", help="print each run's command line and start nothing")
    parser.add_argument("--workers", metavar="N", type=int, help="runs at a time on this machine (default: its cores)")
    parser.add_argument("--address", metavar="ray://…", help="use an existing Ray cluster instead of this machine")
    for kind, default in (("cpu", 1.0), ("gpu", 0.0)):
        text = f"{kind.upper()}s per run, also a fraction (default: %(default)g)"
        parser.add_argument(f"--{kind}s-per-run", metavar="X", type=float, default=default, help=text)
    parser.add_argument(
        "--threads-per-run", metavar="N", type=int, default=1, help="PyTorch threads per run (default: %(default)d)"
    )


def add_report(commands: Any, **settings: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "report",
        help="tables, figures and a page of a sweep",
        description="Read the folders of a sweep's runs, finished or not, and write tables, figures and an HTML page.",
        epilog=REPORT_EXAMPLES,
        **settings,
    )
    parser.set_defaults(run=_report)
    parser.add_argument("folder", metavar="DIR", type=folder, help="the sweep's folder")
    parser.add_argument(
        "--out", metavar="DIR", type=folder, help="output folder (default: report/ in the sweep's folder)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)d)")
    parser.add_argument("--holm", action="store_true", help="adjust p-values for the number of comparisons")


def check_resources(arguments: argparse.Namespace) -> None:
    """Check the options of :func:`add_resources`.

    :raises UsageError: on unusable options, or when packages for training are not installed
    """
    try:
        positive_integer("--workers", 1 if arguments.workers is None else arguments.workers)
        positive_integer("--threads-per-run", arguments.threads_per_run)
        if non_negative_number("--cpus-per-run", arguments.cpus_per_run) == 0:
            raise ValueError("--cpus-per-run must be greater than 0: it limits the number of runs at a time")
        non_negative_number("--gpus-per-run", arguments.gpus_per_run)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
    if arguments.address is not None and not arguments.address.strip():
        raise UsageError("--address needs that of a Ray cluster, got ''")
    if arguments.address is not None and arguments.workers is not None:
        raise UsageError("--workers is for this machine: with --address the cluster's size and --cpus-per-run decide")
    with needs("sweep", "a sweep"):
        import sb3_redo.cli.progress
        import sb3_redo.sweeps.run_process
        import sb3_redo.sweeps.sweep_file  # noqa: F401  all that a sweep needs but Ray
    # Runs are started by python -m and import modules from the current folder. So the check has to do the same.
    sys.path.insert(0, os.getcwd())


def _sweep(arguments: argparse.Namespace) -> int:
    check_resources(arguments)
    from sb3_redo.experiments.readers import READERS
    from sb3_redo.sweeps.sweep_file import read_sweep_file

    sweep = read_sweep_file(arguments.file, readers=READERS)
    out = arguments.out or Path("runs") / sweep.name
    if arguments.dry_run:
        print_commands(sweep, out, arguments)
        return 0
    code = execute_sweep(sweep, out, arguments)
    again = "the same command tries the failed runs again; " if code else ""
    print(f"next: {again}sb3-redo report {shlex.quote(str(out))}")
    return code


def print_commands(sweep: "Sweep", out: Path, arguments: argparse.Namespace) -> None:
    """Print each run's command line, and to stderr the number of runs of each condition.

    :param out: the sweep's folder
    :param arguments: with the options of :func:`add_resources`
    """
    from sb3_redo.sweeps.run import condition_folder
    from sb3_redo.sweeps.run_process import thread_variables

    conditions = Counter(condition_folder(run.condition) for run in sweep.runs)
    each = [(len(sweep.environments), "environment"), (len(conditions), "condition"), (len(sweep.seeds), "seed")]
    of_each = ", ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in each)
    print(f"{len(sweep.runs)} run{'s' * (len(sweep.runs) > 1)} in {out}: {of_each}", file=sys.stderr)
    for name, count in conditions.items():
        print(f"  {name}: {count} run{'s' * (count > 1)}", file=sys.stderr)
    threads = thread_variables(arguments.threads_per_run)
    variables = " ".join(f"{name}={value}" for name, value in threads.items())
    for run in sweep.runs:
        print(f"{variables} {run.command_line(out, arguments.threads_per_run)}")


def execute_sweep(sweep: "Sweep", out: Path, arguments: argparse.Namespace) -> int:
    """Train all unfinished runs, and print the outcome.

    :param out: the sweep's folder
    :param arguments: with the options of :func:`add_resources`
    :return: the exit code: 1 if a run failed
    """
    from sb3_redo.cli.progress import Progress
    from sb3_redo.sweeps.execution import Resources, execute

    resources = Resources(
        arguments.workers,
        arguments.address,
        arguments.cpus_per_run,
        arguments.gpus_per_run,
        arguments.threads_per_run,
    )
    workers = resources.workers or max(1, int((os.cpu_count() or 1) / resources.cpus_per_run))
    progress = Progress(out, sweep.runs)
    print(progress.opening(None if resources.address else workers), file=sys.stderr, flush=True)
    with progress.shown():
        standing = execute(sweep, out, resources, progress.update)
    return _tell_end(standing, out)


def _tell_end(standing: "Standing", out: Path) -> int:
    print(f"{len(standing.finished)} runs finished, {len(standing.failed)} failed, in {out}")
    return 1 if standing.failed else 0


def _report(arguments: argparse.Namespace) -> int:
    with needs("report", "a report"):
        from sb3_redo.reports.build import write_report
    print(write_report(arguments.folder, arguments.out, arguments.seed, with_holm=arguments.holm))
    return 0
