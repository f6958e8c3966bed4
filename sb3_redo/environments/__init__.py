"""Environments of Lyle et al. 2023 (section 3.2), registered with Gymnasium when this is imported.

>>> import gymnasium
>>> import sb3_redo.environments
>>> gymnasium.make("sb3_redo/BlockMDP-true-label-v0").observation_space.shape
(8, 8, 1)

The zoo imports it with ``--gym-packages sb3_redo.environments``.

Experimental: names may change in any release.
"""

import gymnasium

from sb3_redo.environments.block_mdp import VARIANTS, BlockMDP
from sb3_redo.environments.images import LabelledImages

__all__ = ["EPISODE_LENGTH", "BlockMDP", "LabelledImages"]

EPISODE_LENGTH = 100
"""Steps after which a registered environment is truncated. Our choice: the paper states none."""

for _variant in VARIANTS:
    gymnasium.register(
        f"sb3_redo/BlockMDP-{_variant}-v0",
        entry_point="sb3_redo.environments.block_mdp:BlockMDP",
        kwargs={"variant": _variant},
        max_episode_steps=EPISODE_LENGTH,
    )
