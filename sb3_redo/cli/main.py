"""The command line, ``sb3-redo``."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from sb3_redo import __version__
from sb3_redo.cli.experiment import add_experiment
from sb3_redo.cli.inspect import EXAMPLES, add_inspect
from sb3_redo.cli.sweep import add_report, add_sweep
from sb3_redo.validation import UsageError, printable


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leaves examples as they are, and breaks all other lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        broken = (line if line.startswith(" ") else textwrap.fill(line, width) for line in text.splitlines())
        return "\n".join(broken)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Results go to stdout, everything else to stderr.

    :param argv: the arguments. Default: those of the process.
    :return: the exit code: 0, 1 for a failure, 2 for a usage error, 130 when interrupted
    """
    try:
        arguments, unknown = _parser().parse_known_args(argv)
        if unknown:
            raise UsageError(f"unrecognized arguments: {' '.join(unknown)} (see sb3-redo {arguments.command} --help)")
        return int(arguments.run(arguments) or 0)
    except UsageError as error:
        return _failed(str(error), 2)
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        return _failed(str(error) or type(error).__name__, 1)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)


def _failed(message: str, code: int) -> int:
    print(f"sb3-redo: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("sb3-redo", description="Dormant neurons in agents.", epilog=EXAMPLES, formatter_class=_Help)
    parser.add_argument("--version", action="version", version=f"sb3-redo {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    add_inspect(commands, formatter_class=_Help)
    add_sweep(commands, formatter_class=_Help)
    add_report(commands, formatter_class=_Help)
    add_experiment(commands, formatter_class=_Help)
    return parser
