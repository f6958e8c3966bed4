"""``python -m sb3_redo.zoo``: the RL Zoo's ``train`` command, with our algorithms among its own."""

import sb3_redo.algorithms  # noqa: F401  registers them


def main() -> None:
    """Train as ``python -m rl_zoo3.train`` does."""
    from rl_zoo3.train import train

    train()


if __name__ == "__main__":
    main()
