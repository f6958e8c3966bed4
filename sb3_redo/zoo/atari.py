"""Checks for the packages of Atari games."""

from sb3_redo.validation import needs


def check_atari(environment: str) -> None:
    """Check that the Atari packages are installed, if an environment is an Atari game.

    :param environment: its id
    :raises MissingPackageError: when one is not
    """
    if environment.startswith("ALE/") or "NoFrameskip-v" in environment:
        with needs("atari", "an Atari game"):
            import ale_py  # noqa: F401
            import cv2  # noqa: F401  without it SB3's wrappers fail at the first observation
