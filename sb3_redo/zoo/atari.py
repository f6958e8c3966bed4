"""Atari games, which are registered only where their package is installed."""

from sb3_redo.validation import needs


def check_atari(environment: str) -> None:
    """Check that the packages of Atari are installed, if an environment is one of its games.

    :param environment: its id
    :raises MissingPackageError: when one is not
    """
    if environment.startswith("ALE/") or "NoFrameskip-v" in environment:
        with needs("atari", "an Atari game"):
            import ale_py  # noqa: F401
            import cv2  # noqa: F401  without it SB3's wrappers fail at the first observation
