"""Reference scores of environments, which put returns on one scale: 0 is the reference's low end, 1 its high end."""

import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

FRAMES_PER_STEP = 4


@dataclass(frozen=True)
class Reference:
    """What returns of one environment are normalised with, and where it is from."""

    low: float
    high: float
    source: str

    def normalise(self, returns: np.ndarray) -> np.ndarray:
        """Returns on the scale from 0 to 1: ``(return - low) / (high - low)``."""
        scaled: np.ndarray = (np.asarray(returns, dtype=np.float64) - self.low) / (self.high - self.low)
        return scaled


ATARI_SOURCE = "random play and a human player, 30 no-op starts (Mnih et al. 2015; Wang et al. 2016)"

# Random play and human player. The zoo's table has the 26 games of Atari 100K in a comment only; here are those and
# the others of the 17 games that ReDo was published on.
_ATARI = {
    "Alien": (227.8, 7127.7),
    "Amidar": (5.8, 1719.5),
    "Assault": (222.4, 742.0),
    "Asterix": (210.0, 8503.3),
    "BankHeist": (14.2, 753.1),
    "BattleZone": (2360.0, 37187.5),
    "BeamRider": (363.9, 16926.5),
    "Boxing": (0.1, 12.1),
    "Breakout": (1.7, 30.5),
    "ChopperCommand": (811.0, 7387.8),
    "CrazyClimber": (10780.5, 35829.4),
    "DemonAttack": (152.1, 1971.0),
    "DoubleDunk": (-18.6, -16.4),
    "Enduro": (0.0, 860.5),
    "Freeway": (0.0, 29.6),
    "Frostbite": (65.2, 4334.7),
    "Gopher": (257.6, 2412.5),
    "Hero": (1027.0, 30826.4),
    "IceHockey": (-11.2, 0.9),
    "Jamesbond": (29.0, 302.8),
    "Kangaroo": (52.0, 3035.0),
    "Krull": (1598.0, 2665.5),
    "KungFuMaster": (258.5, 22736.3),
    "MsPacman": (307.3, 6951.6),
    "Pong": (-20.7, 14.6),
    "PrivateEye": (24.9, 69571.3),
    "Qbert": (163.9, 13455.0),
    "RoadRunner": (11.5, 7845.0),
    "Seaquest": (68.4, 42054.7),
    "SpaceInvaders": (148.0, 1668.7),
    "UpNDown": (533.4, 11693.2),
    "WizardOfWor": (563.5, 4756.5),
    "YarsRevenge": (3092.9, 54576.9),
    "Zaxxon": (32.5, 9173.3),
}


def reference_of(environment: str) -> Reference | None:
    """The reference scores of an environment, or nothing where there are none.

    >>> reference_of("PongNoFrameskip-v4").normalise([-20.7, 14.6]).tolist()
    [0.0, 1.0]
    """
    game = atari_game(environment)
    if game in _ATARI:
        return Reference(*_ATARI[game], ATARI_SOURCE)
    return zoo_references().get(environment)


def atari_game(environment: str) -> str | None:
    """``Pong`` for ``PongNoFrameskip-v4`` and ``ALE/Pong-v5``; nothing for what is not an Atari game.

    >>> atari_game("PongNoFrameskip-v4"), atari_game("ALE/Pong-v5"), atari_game("CartPole-v1")
    ('Pong', 'Pong', None)
    """
    found = re.fullmatch(r"ALE/(\w+)-v\d+|(\w+?)NoFrameskip-v\d+", environment)
    return (found[1] or found[2]) if found else None


def game_of(environment: str) -> str:
    """Return what numbers of an environment are published under.

    >>> game_of("PongNoFrameskip-v4"), game_of("Ant-v4")
    ('Pong', 'Ant')
    """
    return atari_game(environment) or environment.split("-")[0]


def frames_per_step(environment: str) -> int:
    """Frames of the game in an environment step: 4 for Atari, where an action is repeated, else 1."""
    return 1 if atari_game(environment) is None else FRAMES_PER_STEP


@cache
def zoo_references() -> dict[str, Reference]:
    """The zoo's own table, by environment; empty where the zoo is not installed.

    Its file is run by itself: importing the package would import torch.
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
