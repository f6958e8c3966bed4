"""Loads stored agents and replay buffers, in the formats of Stable-Baselines3.

Both contain pickles: open only trusted files.
"""

from pathlib import Path

from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_redo.validation import UsageError
from sb3_redo.zoo.saved_agents import algorithm_of
from sb3_redo.zoo.sources import find_model

REPLAY_BUFFER = "replay_buffer.pkl"
"""The zoo's file name."""

_READABLE = ("dqn", "double_dqn")


def find_agent(path: Path) -> Path:
    """Find a path's zip: itself, or the newest final agent of a zoo training below it.

    :raises UsageError: when there is none, with a remedy
    """
    if not path.is_dir():
        _see_that_it_is_there(path, path.with_name(f"{path.name}.zip"))
        return find_model(path).model
    runs = [(file.parents[1], file.parent.name) for file in path.glob("**/args.yml")]
    return _newest(path, [run / f"{name}.zip" for run, name in runs], "agent")


def find_replay_buffer(path: Path) -> Path:
    """Find a path's pickle: itself, or the newest ``replay_buffer.pkl`` below a folder.

    :raises UsageError: when there is none, with a remedy
    """
    if not path.is_dir():
        _see_that_it_is_there(path)
        return path
    # Checkpoints of a running training have files of the same name with other contents.
    files = [file for file in path.glob(f"**/{REPLAY_BUFFER}") if not file.parent.name.startswith("checkpoint_")]
    return _newest(path, files, REPLAY_BUFFER)


def _see_that_it_is_there(*paths: Path) -> None:
    if not any(path.exists() for path in paths):
        raise UsageError(f"there is no {paths[0]}: {_WHAT_TO_DO}")


def _newest(folder: Path, candidates: list[Path], what: str) -> Path:
    files = [file for file in candidates if file.is_file()]
    if not files:
        raise UsageError(f"there is no {what} below {folder}: {_WHAT_TO_DO}")
    return max(files, key=lambda file: (file.stat().st_mtime_ns, str(file)))


_WHAT_TO_DO = (
    "first train the sweep that stores it, into the parent folder of this sweep, for transitions with "
    "`save_replay_buffer: true` (remove runs finished without), or name a file in the settings"
)


def load_dqn(path: Path) -> DQN:
    """Load a saved DQN without an environment, on SB3's default device.

    :param path: see :func:`find_agent`
    :raises UsageError: when there is none, or it is of another algorithm, or was trained on normalised observations
    """
    file = find_agent(path)
    source = find_model(file)
    try:
        algorithm = algorithm_of(source, None)
    except UsageError as error:
        told = str(error).partition("; ")[2]
        raise UsageError(
            f"{file} does not tell its algorithm ({told}): take one that the zoo has saved, or one of a "
            "policy of SB3's or of sb3_redo.networks"
        ) from None
    if algorithm not in _READABLE:
        raise UsageError(f"{file} is an agent of {algorithm}, and offline training takes only {' or '.join(_READABLE)}")
    if source.settings is not None and (source.settings / "vecnormalize.pkl").exists():
        raise UsageError(f"{file} saw observations that VecNormalize had normalised: offline training does not do that")
    # A full replay buffer may not fit into memory beside the stored one.
    return DQN.load(file, buffer_size=1, optimize_memory_usage=False, replay_buffer_class=None, replay_buffer_kwargs={})


def load_transitions(path: Path, model: DQN) -> ReplayBuffer:
    """Load stored transitions, on the device of a model.

    :param path: see :func:`find_replay_buffer`
    :param model: the model to train on them
    :raises UsageError: when there are none, or they are of another environment than the model
    """
    file = find_replay_buffer(path)
    buffer = load_from_pkl(file)
    if not isinstance(buffer, ReplayBuffer) or isinstance(buffer, HerReplayBuffer):
        raise UsageError(f"{file} holds a {type(buffer).__name__}, and no replay buffer that can be sampled by itself")
    for name in ("observation_space", "action_space"):
        if getattr(buffer, name) != getattr(model, name):
            raise UsageError(
                f"{file} has another {name.replace('_', ' ')} than the agent: {getattr(buffer, name)} and "
                f"{getattr(model, name)}"
            )
    if buffer.size() == 0:
        raise UsageError(f"{file} holds no transition")
    buffer.device = model.device
    return buffer
