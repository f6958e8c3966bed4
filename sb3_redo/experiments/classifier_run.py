"""Trains one classifier into a run folder:

    python -m sb3_redo.experiments.classifier_run --folder runs/one --seed 0 --settings '{"targets": "shuffled"}'

A stopped training starts again from the beginning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sb3_redo.experiments.classifier import TASK_ACCURACY, train_classifier
from sb3_redo.experiments.classifier_reader import CLASSIFIER
from sb3_redo.experiments.classifier_settings import ClassifierSettings
from sb3_redo.experiments.program import program_parser, write_program_run


def main(argv: Sequence[str] | None = None) -> None:
    """Train into a folder."""
    options = program_parser(__doc__, ClassifierSettings).parse_args(argv)
    torch.set_num_threads(options.num_threads)
    run_classifier(options.folder, options.settings, options.seed, options.condition)


def run_classifier(
    folder: Path, settings: ClassifierSettings, seed: int, condition: dict[str, Any] | None = None
) -> None:
    """Train into a folder.

    :param condition: the condition of a run outside a sweep
    :raises RuntimeError: when the folder has a finished run, or another run
    """
    about = {"environment": settings.data, "algorithm": CLASSIFIER, "condition": dict(condition or {}), "seed": seed}
    last_of = {"final_accuracy": TASK_ACCURACY, "recycled_total": "redo/recycled_total"}
    write_program_run(folder, about, train_classifier(settings, seed), settings.gradient_steps, last_of)


if __name__ == "__main__":
    main()
