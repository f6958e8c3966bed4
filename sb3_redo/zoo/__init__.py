"""The RL Zoo: saved agents, policy names, commands with our algorithms, and our configurations."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# A wheel has the folder inside the package, a clone beside it.
_INSIDE, _BESIDE = _PACKAGE / "zoo_configs", _PACKAGE.with_name("zoo_configs")

CONFIGS = _INSIDE if _INSIDE.is_dir() else _BESIDE
"""The folder of the configurations that come with this package."""
