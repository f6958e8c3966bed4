"""``sb3-redo inspect``: which neurons of trained agents are dormant."""

import argparse
import ast
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_redo.validation import (
    UsageError,
    needs,
    non_negative_integer,
    non_negative_number,
    positive_integer,
    printable,
)

# Modules that import torch are imported where they are used, so that --help is fast.
if TYPE_CHECKING:
    from sb3_redo.zoo.inspection import Failure, Inspection

EXAMPLES = """examples:
  sb3-redo inspect logs/dqn/CartPole-v1_1
  sb3-redo inspect dqn.zip --env CartPole-v1 --csv layers.csv --plot layers.png
  sb3-redo inspect --recursive logs --env auto --workers 2 --csv agents.csv
  sb3-redo inspect --compare logs/dqn/CartPole-v1_1 logs/dqn/CartPole-v1_2
"""


def add_inspect(commands: Any, formatter_class: Any) -> None:
    """Add the command to the command line."""
    inspect = commands.add_parser(
        "inspect",
        help="measure which neurons of trained agents are dormant",
        description="Run trained agents in their environments, with the exploration of training, and measure which "
        "neurons are dormant. Fresh networks of the same policies are measured for comparison.",
        epilog=EXAMPLES
        + "\nAgents, statistics and settings are pickles: open only files that you trust, or use --safe.",
        formatter_class=formatter_class,
    )
    inspect.set_defaults(run=_inspect)
    inspect.add_argument(
        "paths",
        metavar="PATH",
        type=Path,
        nargs="*",
        help="a saved agent (zip), the folder of a zoo run (with algorithm, environment, wrappers, frame stack and "
        "normalisation), or owner/name of a repository of the Hugging Face Hub",
    )
    many = inspect.add_argument_group("several agents")
    many.add_argument("--recursive", type=Path, metavar="DIR", help="all agents at any depth below a folder")
    many.add_argument("--compare", action="store_true", help="put two agents side by side, layer by layer")
    many.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    env = inspect.add_argument_group("environment")
    env.add_argument("--env", metavar="ID", help="the environment; 'auto' for the run's or its replacement")
    env.add_argument(
        "--env-kwargs", nargs="+", metavar="KEY:VALUE", help="keyword arguments of the environment, in the zoo's form"
    )
    env.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules that register environments"
    )
    env.add_argument("--wrapper", nargs="+", metavar="CLASS", help="dotted paths of wrappers, instead of the run's")
    env.add_argument("--n-stack", type=int, metavar="N", help="frames to stack, instead of the run's")
    env.add_argument("--vec-normalize", type=Path, metavar="FILE", help="statistics of VecNormalize")
    inspect.add_argument(
        "--algo", help="the zoo's name of the algorithm, if the zip does not contain it: ppo, a2c, ..."
    )
    inspect.add_argument("--safe", action="store_true", help="unpickle only tensors and known classes")
    inspect.add_argument("--n-samples", type=int, default=5000, metavar="N", help="observations (default: %(default)s)")
    inspect.add_argument(
        "--dormancy-threshold",
        type=float,
        metavar="T",
        help="dormant when the score is at most this (default: that of the run's callback, else 0.1)",
    )
    inspect.add_argument("--csv", type=Path, metavar="FILE", help="write a row per agent, seed and layer")
    inspect.add_argument("--json", type=Path, metavar="FILE", help="write all results")
    inspect.add_argument("--plot", type=Path, metavar="FILE", help="draw a bar per layer (.png, .svg or .pdf)")
    inspect.add_argument("--seed", type=int, default=0, help="seed of all random draws (default: %(default)s)")
    inspect.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="number of measurements, with different seeds (default: %(default)s)",
    )
    inspect.add_argument("--quiet", action="store_true", help="no progress bar")


def _inspect(arguments: argparse.Namespace) -> int:
    _check(arguments)
    # SB3, the zoo and environments print messages. Stdout is for the report only.
    with stdout_for_the_report_alone():
        paths = _paths(arguments)
        if arguments.compare and len(paths) != 2:
            raise UsageError(f"--compare takes two agents, got {len(paths)}")
        is_alone = len(paths) == 1 and arguments.recursive is None
        found = [_of_one(arguments, paths[0])] if is_alone else _of_many(arguments, paths)
        _write(arguments, found)
    _print(arguments, found)
    return int(any(each.rows()[0]["status"] == "failed" for each in found))


def _paths(arguments: argparse.Namespace) -> list[Path]:
    """Return the paths of the agents. The folder of a sweep stands for all of its runs."""
    with needs("zoo", "sb3-redo inspect"):
        from sb3_redo.zoo.sources import agents_in

    paths: list[Path] = []
    for path in arguments.paths:
        paths += agents_in(path) if (path / "sweep.json").is_file() else [path]
    if arguments.recursive is not None:
        paths += agents_in(arguments.recursive)
    if not paths:
        raise UsageError(f"there is no agent below {arguments.recursive or arguments.paths[0]}")
    return paths


def _print(arguments: argparse.Namespace, found: Sequence["Inspection | Failure"]) -> None:
    from sb3_redo.zoo.inspection import Inspection
    from sb3_redo.zoo.tables import compared, overview

    inspections = [each for each in found if isinstance(each, Inspection)]
    if arguments.compare and len(inspections) == 2:
        report = compared(*inspections)
    elif len(found) == 1 and inspections:
        report = str(inspections[0])
    else:
        report = overview(found)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may know no ±
    print("\n".join(map(printable, report.splitlines())))


def _write(arguments: argparse.Namespace, found: Sequence["Inspection | Failure"]) -> None:
    from sb3_redo.zoo.inspection import Inspection, to_frame

    if arguments.csv is not None:
        to_frame(found).to_csv(arguments.csv, index=False)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([each.to_dict() for each in found], indent=1) + "\n")
    if arguments.plot is not None and isinstance(found[0], Inspection):
        from sb3_redo.dormancy.plots import figure_of

        report = found[0].report
        figure_of(report.layers, report.dormancy_threshold, report.observations).savefig(arguments.plot, dpi=150)


def _of_one(arguments: argparse.Namespace, path: Path) -> "Inspection":
    """Inspect one agent, with a progress bar over observations."""
    with _bar(arguments, arguments.n_samples * arguments.seeds, unit="obs", desc="gathering") as bar:
        inspection = _inspected(arguments, path, bar.update)
    if not arguments.quiet:
        print(f"{inspection.algorithm} from {path}", file=sys.stderr)
    return inspection


def _of_many(arguments: argparse.Namespace, paths: Sequence[Path]) -> list["Inspection | Failure"]:
    """Inspect agents in other processes. Neither a failure nor a crash stops the rest."""
    found: dict[int, Inspection | Failure] = {}
    with _bar(arguments, len(paths), unit="agent") as bar:
        for number, result in _at_once(arguments, paths):
            found[number] = result
            bar.update()
    return [found[number] for number in range(len(paths))]


def _bar(arguments: argparse.Namespace, total: int, **settings: Any) -> Any:
    with needs("zoo", "sb3-redo inspect"):
        from tqdm import tqdm

    # disable=None: shown only on a terminal
    return tqdm(total=total, file=sys.stderr, disable=True if arguments.quiet else None, **settings)


def _at_once(arguments: argparse.Namespace, paths: Sequence[Path]) -> Iterator[tuple[int, "Inspection | Failure"]]:
    """Inspect agents in other processes. Yields numbers and results as they finish."""
    from sb3_redo.zoo.inspection import failed

    # A forked process already has the imports. Several would share locks of the threads that watch them.
    context = get_context("fork" if arguments.workers == 1 and sys.platform == "linux" else "spawn")
    with ExitStack() as stack:
        # A simulator may crash its process. So each process is a separate pool that can be replaced.
        def new_pool() -> ProcessPoolExecutor:
            return stack.enter_context(ProcessPoolExecutor(1, context, _alone_with_stderr))

        free = [new_pool() for _ in range(min(arguments.workers, len(paths)))]
        running: dict[Future[Any], tuple[int, ProcessPoolExecutor]] = {}
        waiting = list(enumerate(paths))
        while waiting or running:
            while waiting and free:
                number, path = waiting.pop(0)
                pool = free.pop()
                running[pool.submit(_guarded, arguments, path)] = number, pool
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, pool = running.pop(future)
                try:
                    yield number, future.result()
                    free.append(pool)
                except BrokenExecutor:
                    yield number, failed(paths[number], RuntimeError("its process crashed"))
                    pool.shutdown()
                    free.append(new_pool())


def _guarded(arguments: argparse.Namespace, path: Path) -> "Inspection | Failure":
    """Inspect an agent. Returns a failure instead of raising an error."""
    from sb3_redo.zoo.inspection import failed

    try:
        return _inspected(arguments, path).light()
    except Exception as error:  # third-party code: environments, wrappers, pickles
        return failed(path, error)


def _inspected(arguments: argparse.Namespace, path: Path, progress: Callable[[int], Any] | None = None) -> "Inspection":
    """Inspect an agent with the settings of the command line."""
    from sb3_redo.zoo.inspection import inspect_agent
    from sb3_redo.zoo.saved_agents import one_line

    # As python -m does: a project's wrappers and environments lie in the working directory.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return inspect_agent(
            path,
            algorithm=arguments.algo,
            env=arguments.env,
            env_kwargs=_env_kwargs(arguments.env_kwargs or []),
            gym_packages=arguments.gym_packages,
            wrappers=arguments.wrapper,
            n_stack=arguments.n_stack,
            vec_normalize=arguments.vec_normalize,
            n_samples=arguments.n_samples,
            dormancy_threshold=arguments.dormancy_threshold,
            seed=arguments.seed,
            seeds=arguments.seeds,
            safe=arguments.safe,
            progress=progress,
        )
    except (Exception, SystemExit) as error:  # of environments and wrappers
        speaks_for_itself = isinstance(error, (UsageError, RuntimeError, OSError, ImportError))
        if speaks_for_itself and not isinstance(error, RecursionError):
            raise
        raise RuntimeError(f"{path} cannot be inspected: {type(error).__name__}: {one_line(error)}") from error


@contextmanager
def stdout_for_the_report_alone() -> Iterator[None]:
    """Redirect everything printed within this context to stderr, including output of C code."""
    with suppress(OSError, ValueError, AttributeError):  # None if stdout is closed
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # no stdout
        kept = None
    try:
        if kept is not None:
            os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def _alone_with_stderr() -> None:
    """Set up a process that inspects agents: one thread, and nothing on stdout."""
    import torch

    torch.set_num_threads(1)
    os.dup2(2, 1)


def _check(arguments: argparse.Namespace) -> None:
    """Check the arguments before anything is loaded."""
    try:
        for option, value in (
            ("--n-samples", arguments.n_samples),
            ("--seeds", arguments.seeds),
            ("--workers", arguments.workers),
        ):
            positive_integer(option, value)
        if arguments.dormancy_threshold is not None:
            non_negative_number("--dormancy-threshold", arguments.dormancy_threshold)
        if arguments.n_stack is not None:
            non_negative_integer("--n-stack", arguments.n_stack)
        non_negative_integer("--seed", arguments.seed)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not arguments.paths and arguments.recursive is None:
        raise UsageError("give the path of an agent, or --recursive DIR (see sb3-redo inspect --help)")
    if arguments.recursive is not None and not arguments.recursive.is_dir():
        raise UsageError(f"--recursive needs a folder, there is none at {arguments.recursive}")
    for option, target in (("--csv", arguments.csv), ("--json", arguments.json), ("--plot", arguments.plot)):
        if target is not None:
            _check_writable(option, target)
    if arguments.csv is not None:
        with needs("plots", "--csv"):
            import pandas  # noqa: F401
    if arguments.plot is not None:
        import sb3_redo.dormancy.plots  # noqa: F401  or say that matplotlib is missing

        if arguments.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise UsageError(f"--plot must end in .png, .svg or .pdf, got {arguments.plot}")
        if len(arguments.paths) != 1 or arguments.recursive is not None:
            raise UsageError("--plot draws one agent: give one PATH, or --csv for a table of several")


def _check_writable(option: str, target: Path) -> None:
    if target.is_dir():
        raise UsageError(f"{option} needs a file, {target} is a folder")
    if not target.parent.is_dir():
        raise UsageError(f"{option} cannot be written: there is no folder {target.parent}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UsageError(f"{option} cannot be written: no permission for {target}")


def _env_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    """Return keyword arguments from ``key:value`` pairs with Python literals as values."""
    found = {}
    for pair in pairs:
        key, _, value = pair.partition(":")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            hint = "the value is a Python number, True, None or a text with quotes of its own, \"mode:'hard'\""
            raise UsageError(f"--env-kwargs takes key:value, got {pair!r}; {hint}") from None
    return found
