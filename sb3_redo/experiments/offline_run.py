"""Trains once on stored transitions, into a run folder:

    python -m sb3_redo.experiments.offline_run --folder runs/one --seed 0 \\
        --settings '{"agent": "agent.zip", "replay_buffer": "replay_buffer.pkl", "targets": "fixed"}'

A stopped training starts again from the beginning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sb3_redo.experiments.offline import train_offline
from sb3_redo.experiments.offline_reader import OFFLINE
from sb3_redo.experiments.offline_settings import OfflineSettings
from sb3_redo.experiments.program import program_parser, write_program_run
from sb3_redo.reports.curves import LOSS
from sb3_redo.validation import UsageError


def main(argv: Sequence[str] | None = None) -> None:
    """Train into a folder."""
    parser = program_parser(__doc__, OfflineSettings)
    parser.add_argument("--root", type=Path, default=Path(), help="folder that the settings' paths start from")
    parser.add_argument("--environment", default="stored", help="environment of the transitions (default: %(default)s)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.num_threads)
    try:
        run_offline(
            options.folder, options.settings, options.seed, options.root, options.environment, options.condition
        )
    except UsageError as error:
        parser.error(str(error))


def run_offline(
    folder: Path,
    settings: OfflineSettings,
    seed: int,
    root: Path = Path(),
    environment: str = "stored",
    condition: dict[str, Any] | None = None,
) -> None:
    """Train into a folder.

    :param root: root of the settings' paths
    :param environment: the environment of the transitions, for a run outside a sweep
    :param condition: the condition of a run outside a sweep
    :raises RuntimeError: when the folder has a finished run, or another run
    :raises UsageError: when a stored file is missing or does not fit
    """
    about = {"environment": environment, "algorithm": OFFLINE, "condition": dict(condition or {}), "seed": seed}
    write_program_run(folder, about, train_offline(settings, seed, root), settings.gradient_steps, {"final_loss": LOSS})


if __name__ == "__main__":
    main()
