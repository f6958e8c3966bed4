"""One training of a classifier, into a run folder as those of agents have it:

    python -m sb3_redo.experiments.classifier_run --folder runs/one --seed 0 --settings '{"targets": "shuffled"}'

A training that was stopped begins anew.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sb3_redo.experiments.classifier import TASK_ACCURACY, train
from sb3_redo.experiments.classifier_reader import CLASSIFIER
from sb3_redo.experiments.classifier_settings import ClassifierSettings
from sb3_redo.experiments.program import write_program_run


def main(argv: Sequence[str] | None = None) -> None:
    """Train into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of this run alone; made if need be")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)d)")
    parser.add_argument("--settings", type=json.loads, default={}, help="as JSON; see ClassifierSettings")
    parser.add_argument("--condition", type=json.loads, default={}, help="as JSON: what it differs in from others")
    parser.add_argument("--num-threads", type=int, default=1, help="of PyTorch (default: %(default)d)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.num_threads)
    run(options.folder, ClassifierSettings.of(options.settings), options.seed, options.condition)


def run(folder: Path, settings: ClassifierSettings, seed: int, condition: dict[str, Any] | None = None) -> None:
    """Train into a folder; nothing is computed again in one that holds a finished run.

    :param condition: of a run that no sweep has described
    :raises RuntimeError: where the run was finished before
    """
    about = {"environment": settings.data, "algorithm": CLASSIFIER, "condition": dict(condition or {}), "seed": seed}
    last_of = {"final_accuracy": TASK_ACCURACY, "recycled_total": "redo/recycled_total"}
    write_program_run(folder, about, train(settings, seed), settings.all_steps, last_of)


if __name__ == "__main__":
    main()
