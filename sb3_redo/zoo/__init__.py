"""The RL Zoo: its saved agents, its names of policies, its commands with our algorithms, and our configurations."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# A wheel has the folder inside the package. In a clone it lies beside the package.
_INSIDE, _BESIDE = _PACKAGE / "zoo_configs", _PACKAGE.with_name("zoo_configs")

CONFIGS = _INSIDE if _INSIDE.is_dir() else _BESIDE
"""The folder of the configurations that come with this package."""
