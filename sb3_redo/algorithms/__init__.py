"""Agents of the two papers that Stable-Baselines3 lacks. Each file holds what differs from SB3's DQN.

Importing this registers them with the RL Zoo, as ``double_dqn``, ``drq`` and ``categorical_dqn``. On the command line
use ``python -m sb3_redo.zoo`` in place of ``python -m rl_zoo3.train``, and ``python -m sb3_redo.zoo enjoy`` in place of
``python -m rl_zoo3.enjoy``: the zoo itself imports nothing before it reads ``--algo``.

Experimental: names may change in any release.
"""

from contextlib import suppress

from sb3_redo.algorithms.categorical_dqn import CategoricalDQN
from sb3_redo.algorithms.double_dqn import DoubleDQN
from sb3_redo.algorithms.drq import DrQ

__all__ = ["ALGORITHMS", "CategoricalDQN", "DoubleDQN", "DrQ"]

ALGORITHMS = {"double_dqn": DoubleDQN, "drq": DrQ, "categorical_dqn": CategoricalDQN}
"""The zoo's names to algorithms."""

with suppress(ImportError):  # without the zoo there is nothing to register with
    from rl_zoo3.utils import ALGOS as _ALGOS

    _ALGOS.update(ALGORITHMS)
