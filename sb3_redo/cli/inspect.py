"""``sb3-redo inspect``: which neurons of a trained agent are dormant."""

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_redo.validation import UsageError, needs, non_negative_integer, non_negative_number, positive_integer

# Whatever imports torch is imported where it is used, so that --help does not wait for it.
if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from sb3_redo.dormancy.report import DormancyReport

EXAMPLES = """examples:
  sb3-redo inspect logs/dqn/CartPole-v1_1
  sb3-redo inspect dqn_cartpole.zip --env CartPole-v1 --csv layers.csv --plot layers.png
"""


def add_inspect(commands: Any, formatter_class: Any) -> None:
    """Add the command to those of the command line."""
    inspect = commands.add_parser(
        "inspect",
        help="measure which neurons of a trained agent are dormant",
        description="Run a trained agent in its environment, as it explored, and measure which neurons are dormant.",
        epilog=EXAMPLES + "\nAgents and zoo runs are pickles: open only those that you trust.",
        formatter_class=formatter_class,
    )
    inspect.set_defaults(run=_inspect)
    inspect.add_argument(
        "path",
        metavar="PATH",
        type=Path,
        help="a saved agent (zip), or the folder of a zoo run, from which algorithm, environment, wrappers, frame "
        "stack and normalisation are read",
    )
    inspect.add_argument(
        "--algo", help="the zoo's name of the algorithm, where the zip does not tell: ppo, a2c, td3, ..."
    )
    inspect.add_argument("--env", metavar="ID", help="the environment, where it is not that of a zoo run")
    inspect.add_argument("--env-kwargs", nargs="+", metavar="KEY:VALUE", help="for the environment, as the zoo's")
    inspect.add_argument("--gym-packages", nargs="+", default=[], metavar="MODULE", help="that register environments")
    inspect.add_argument("--n-samples", type=int, default=5000, metavar="N", help="observations (default: %(default)s)")
    inspect.add_argument(
        "--dormancy-threshold",
        type=float,
        default=0.1,
        metavar="T",
        help="dormant when the score is at most this (default: %(default)s)",
    )
    inspect.add_argument("--csv", type=Path, metavar="FILE", help="write a row per layer")
    inspect.add_argument("--plot", type=Path, metavar="FILE", help="draw a bar per layer (.png, .svg or .pdf)")
    inspect.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
    inspect.add_argument("--quiet", action="store_true", help="no progress bar")


def _inspect(arguments: argparse.Namespace) -> None:
    _check(arguments)
    report = _measure(arguments)
    if arguments.csv is not None:
        report.to_frame().to_csv(arguments.csv, index=False)
    if arguments.plot is not None:
        from sb3_redo.dormancy.plots import figure_of

        figure_of(report.layers, report.dormancy_threshold, report.observations).savefig(arguments.plot, dpi=150)
    print(report)


def _check(arguments: argparse.Namespace) -> None:
    """All that can be told to be wrong before anything is loaded."""
    try:
        positive_integer("--n-samples", arguments.n_samples)
        non_negative_number("--dormancy-threshold", arguments.dormancy_threshold)
        non_negative_integer("--seed", arguments.seed)
    except ValueError as error:
        raise UsageError(str(error)) from None
    for option, target in (("--csv", arguments.csv), ("--plot", arguments.plot)):
        if target is not None:
            _check_writable(option, target)
    if arguments.csv is not None:
        with needs("plots", "--csv"):
            import pandas  # noqa: F401
    if arguments.plot is not None:
        import sb3_redo.dormancy.plots  # noqa: F401  or say that matplotlib is missing

        if arguments.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise UsageError(f"--plot must end in .png, .svg or .pdf, got {arguments.plot}")


def _check_writable(option: str, target: Path) -> None:
    if target.is_dir():
        raise UsageError(f"{option} needs a file, {target} is a folder")
    if not target.parent.is_dir():
        raise UsageError(f"{option} cannot be written: there is no folder {target.parent}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UsageError(f"{option} cannot be written: no permission for {target}")


def _measure(arguments: argparse.Namespace) -> "DormancyReport":
    with needs("zoo", "sb3-redo inspect"):
        from tqdm import tqdm

    from sb3_redo.sb3.gathering import gather_batch
    from sb3_redo.sb3.measuring import measure_on

    # SB3, the zoo and environments print what they do, and stdout is for the report alone.
    with redirect_stdout(sys.stderr):
        model = _load(arguments)
        env = model.get_env()
        try:
            # disable=None: shown only where someone is watching
            disable = True if arguments.quiet else None
            with tqdm(total=arguments.n_samples, unit="obs", desc="gathering", file=sys.stderr, disable=disable) as bar:
                batch = gather_batch(model, arguments.n_samples, arguments.seed, progress=bar.update)
            return measure_on(model, batch, arguments.dormancy_threshold)
        finally:
            if env is not None:
                env.close()


def _load(arguments: argparse.Namespace) -> "BaseAlgorithm":
    from sb3_redo.sb3.agents import agent_of
    from sb3_redo.zoo.loading import algorithm_of, find_model, load_agent

    # As python -m has it: wrappers and environments of a project lie where its commands are typed.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    env_kwargs = _env_kwargs(arguments.env_kwargs or [])
    source = find_model(arguments.path)
    try:
        algorithm = algorithm_of(source, arguments.algo)
        model = load_agent(source, algorithm, arguments.env, env_kwargs, arguments.gym_packages)
    except (LookupError, AttributeError, TypeError, EOFError) as error:  # of pickles, policies and environments
        raise RuntimeError(f"{source.model} cannot be loaded: {type(error).__name__}: {error}") from error
    try:
        agent_of(model)
    except RuntimeError as error:
        raise UsageError(str(error)) from None
    if not arguments.quiet:
        print(f"{type(model).__name__} from {source.model}", file=sys.stderr)
    return model


def _env_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments from ``key:value``, the values as Python writes them."""
    found = {}
    for pair in pairs:
        key, _, value = pair.partition(":")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            hint = "the value is a Python number, True, None or a text with quotes of its own, \"mode:'hard'\""
            raise UsageError(f"--env-kwargs takes key:value, got {pair!r}; {hint}") from None
    return found
