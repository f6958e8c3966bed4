"""``python -m sb3_redo.zoo``: the RL Zoo's commands, including our algorithms."""

import runpy
import sys
from typing import Any

from sb3_redo.algorithms import ALGORITHMS
from sb3_redo.validation import needs


def main() -> None:
    """Train as ``python -m rl_zoo3.train`` does, or run the zoo module of the first argument, such as ``enjoy``."""
    with needs("zoo", "python -m sb3_redo.zoo"):
        from rl_zoo3 import hyperparams_opt

    # With -optimize, our algorithms use DQN's search space.
    registries: tuple[dict[str, Any], ...] = hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER
    for registry in registries:
        registry.update(dict.fromkeys(ALGORITHMS, registry["dqn"]))
    is_named = len(sys.argv) > 1 and not sys.argv[1].startswith("-")
    module = sys.argv.pop(1) if is_named else "train"
    runpy.run_module(f"rl_zoo3.{module}", run_name="__main__")


if __name__ == "__main__":
    main()
