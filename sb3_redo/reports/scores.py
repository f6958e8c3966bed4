"""Holds reference scores of environments, which scale returns: 0 for the low score, 1 for the high one."""

import csv
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

FRAMES_PER_STEP = 4


@dataclass(frozen=True)
class Reference:
    """Holds the reference scores of one environment, and their source."""

    low: float
    high: float
    source: str

    def normalise(self, returns: np.ndarray) -> np.ndarray:
        """Return returns on the scale from 0 to 1: ``(return - low) / (high - low)``."""
        scaled: np.ndarray = (np.asarray(returns, dtype=np.float64) - self.low) / (self.high - self.low)
        return scaled


ATARI_SOURCE = "random play and a human player, 30 no-op starts (Mnih et al. 2015; Wang et al. 2016)"


def reference_of(environment: str) -> Reference | None:
    """Return the reference scores of an environment, or ``None``.

    >>> reference_of("PongNoFrameskip-v4").normalise([-20.7, 14.6]).tolist()
    [0.0, 1.0]
    """
    return atari_references().get(atari_game(environment) or "") or zoo_references().get(environment)


def atari_game(environment: str) -> str | None:
    """Return ``Pong`` for ``PongNoFrameskip-v4`` and ``ALE/Pong-v5``, ``None`` for other environments.

    >>> atari_game("PongNoFrameskip-v4"), atari_game("ALE/Pong-v5"), atari_game("CartPole-v1")
    ('Pong', 'Pong', None)
    """
    found = re.fullmatch(r"ALE/(\w+)-v\d+|(\w+?)NoFrameskip-v\d+", environment)
    return (found[1] or found[2]) if found else None


def game_of(environment: str) -> str:
    """Return the published name of an environment.

    >>> game_of("PongNoFrameskip-v4"), game_of("Ant-v4")
    ('Pong', 'Ant')
    """
    return atari_game(environment) or environment.split("-")[0]


def frames_per_step(environment: str) -> int:
    """Return the frames per environment step: 4 for Atari with its action repeat, else 1."""
    return 1 if atari_game(environment) is None else FRAMES_PER_STEP


@cache
def atari_references() -> dict[str, Reference]:
    """Return the scores of ``atari_scores.csv`` by game.

    The zoo lists the 26 games of Atari 100K only in a comment. The file has these, and the rest of the 17 games of the
    ReDo paper.
    """
    with Path(__file__).with_name("atari_scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {row["game"]: Reference(float(row["random"]), float(row["human"]), ATARI_SOURCE) for row in rows}


@cache
def zoo_references() -> dict[str, Reference]:
    """Return the zoo's own table, by environment; empty if the zoo is not installed.

    Only this file is executed, because importing the package would import torch.
    """
    package = importlib.util.find_spec("rl_zoo3")
    if package is None or package.origin is None:
        return {}
    path = Path(package.origin).parent / "plots" / "score_normalization.py"
    spec = importlib.util.spec_from_file_location("_zoo_score_normalization", path)
    if not path.exists() or spec is None or spec.loader is None:
        return {}
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {score.env_id: Reference(score.min, score.max, "the zoo's table") for score in module.reference_scores}
