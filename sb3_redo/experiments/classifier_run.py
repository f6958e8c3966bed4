"""One training of a classifier, into a run folder as those of agents have it:

    python -m sb3_redo.experiments.classifier_run --folder runs/one --seed 0 --settings '{"targets": "shuffled"}'

A training that was stopped begins anew.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import configure

from sb3_redo.experiments.classifier import TASK_ACCURACY, train
from sb3_redo.experiments.classifier_file import CLASSIFIER
from sb3_redo.experiments.classifier_settings import ClassifierSettings
from sb3_redo.experiments.folders import OUTCOME, PROGRESS, RESULT, RUN, locked, write_json
from sb3_redo.experiments.runs import describe_run
from sb3_redo.tensorboard import write_point


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
    with locked(folder):
        if (folder / RESULT).exists():
            raise RuntimeError(f"{folder} holds a finished run: remove it to train again")
        if not (folder / RUN).exists():
            describe_run(
                folder, environment=settings.data, algorithm=CLASSIFIER, condition=dict(condition or {}), seed=seed
            )
        for file in (folder / OUTCOME, *folder.glob("events.out.tfevents.*")):
            file.unlink(missing_ok=True)
        write_json(folder / OUTCOME, _train(folder, settings, seed))


def _train(folder: Path, settings: ClassifierSettings, seed: int) -> dict[str, Any]:
    """Write all points, and return what came out."""
    started, steps = time.monotonic(), settings.all_steps
    logger = configure(str(folder), ["tensorboard"])
    last: dict[str, Any] = {}
    try:
        for point in train(settings, seed):
            write_point(logger, point.values, point.step)
            last |= point.values
            if TASK_ACCURACY in point.values or point.step == 0:
                told = {"num_timesteps": point.step, "of": steps, "seconds": time.monotonic() - started}
                write_json(folder / PROGRESS, told)
    finally:
        logger.close()
    seconds = time.monotonic() - started
    return {
        "num_timesteps": steps,
        "gradient_steps": steps,
        "seconds": seconds,
        "steps_per_second": steps / seconds,
        "final_return": None,
        "final_dormant_fraction": last["dormancy/fraction"],
        "final_accuracy": last[TASK_ACCURACY],
        "recycled_total": last.get("redo/recycled_total"),
    }


if __name__ == "__main__":
    main()
