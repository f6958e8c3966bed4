"""One training on stored transitions, into a run folder as those of agents have it:

    python -m sb3_redo.experiments.offline_run --folder runs/one --seed 0 \\
        --settings '{"agent": "agent.zip", "replay_buffer": "replay_buffer.pkl", "targets": "fixed"}'

A training that was stopped begins anew.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sb3_redo.experiments.offline import LOSS, train
from sb3_redo.experiments.offline_reader import OFFLINE
from sb3_redo.experiments.offline_settings import OfflineSettings
from sb3_redo.experiments.program import write_program_run
from sb3_redo.validation import UsageError


def main(argv: Sequence[str] | None = None) -> None:
    """Train into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of this run alone; made if need be")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)d)")
    parser.add_argument("--settings", type=json.loads, required=True, help="as JSON; see OfflineSettings")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that the settings' paths start from")
    parser.add_argument("--environment", default="stored", help="what the transitions are of (default: %(default)s)")
    parser.add_argument("--condition", type=json.loads, default={}, help="as JSON: what it differs in from others")
    parser.add_argument("--num-threads", type=int, default=1, help="of PyTorch (default: %(default)d)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.num_threads)
    try:
        settings = OfflineSettings.of(options.settings)
        run(options.folder, settings, options.seed, options.root, options.environment, options.condition)
    except (TypeError, ValueError, UsageError) as error:
        parser.error(str(error))


def run(
    folder: Path,
    settings: OfflineSettings,
    seed: int,
    root: Path = Path(),
    environment: str = "stored",
    condition: dict[str, Any] | None = None,
) -> None:
    """Train into a folder; nothing is computed again in one that holds a finished run.

    :param root: folder that the settings' paths start from
    :param environment: what the transitions are of, for a run that no sweep has described
    :param condition: the same
    :raises RuntimeError: where the run was finished before
    :raises UsageError: when something stored is missing or does not fit
    """
    about = {"environment": environment, "algorithm": OFFLINE, "condition": dict(condition or {}), "seed": seed}
    write_program_run(folder, about, train(settings, seed, root), settings.gradient_steps, {"final_loss": LOSS})


if __name__ == "__main__":
    main()
