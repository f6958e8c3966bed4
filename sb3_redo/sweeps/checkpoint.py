"""Saves the state of a training, and restores it in a new model with the same settings."""

import logging
import os
import pickle
import random
import shutil
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, recursive_setattr

from sb3_redo.sweeps.files import CHECKPOINT, read_json, set_aside, write_json

# Taken from the command that continues, not from the stopped one: a new episode begins, and clocks start.
_OF_THE_PROCESS = frozenset(
    (
        *("policy_class", "policy_kwargs", "observation_space", "action_space", "tensorboard_log", "verbose", "seed"),
        *("start_time", "_total_timesteps", "_last_obs", "_last_original_obs", "_last_episode_starts"),
        *("learning_rate", "lr_schedule", "exploration_schedule", "clip_range", "clip_range_vf", "_last_lstm_states"),
        *("replay_buffer_class", "replay_buffer_kwargs", "rollout_buffer_class", "rollout_buffer_kwargs"),
    )
)
_OF_A_BUFFER = frozenset(("observation_space", "action_space", "device", "env"))


_LOG = logging.getLogger(__name__)


def save_checkpoint(folder: Path, model: BaseAlgorithm, notes: dict[str, Any], *, buffer: bool = True) -> None:
    """Write a training's state. The previous state is kept too; older ones are removed.

    :param folder: the run's folder :param notes: other values to restore
    :param buffer: whether to save the replay buffer too
    :raises OSError: when it cannot be written; the previous one stays valid
    """
    previous = read_json(folder / CHECKPOINT)
    target = folder / f"checkpoint_{model.num_timesteps}"
    if previous is not None and previous["folder"] == target.name:
        return
    # Removed before the new one is written, because a full replay buffer takes gigabytes.
    _remove_checkpoints(folder, but=previous)
    target.mkdir(parents=True)
    try:
        model.save(target / "model.zip")
        with open(target / "state.pkl", "wb") as file:
            pickle.dump({"random": _random_states(model), "statistics": _statistics(model)}, file)
        with open(target / "replay_buffer.pkl", "wb") as file:
            stored = getattr(model, "replay_buffer", None) if buffer else None
            pickle.dump(None if stored is None else _filled(vars(stored), stored), file, protocol=5)
        for path in target.iterdir():
            with open(path, "r+b") as written:  # opened for writing, because Windows flushes no other files
                os.fsync(written.fileno())
        # From here on the new one is valid. A kill before leaves the old one valid; the next save removes the rest.
        before = previous and {**previous, "previous": None}
        about = {"folder": target.name, **notes, "checksums": _checksums(target), "previous": before}
        write_json(folder / CHECKPOINT, about)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)  # the partial checkpoint may have filled the disk
        raise


def _remove_checkpoints(folder: Path, but: dict[str, Any] | None) -> None:
    for other in folder.glob("checkpoint_*"):
        if but is None or other.name != but["folder"]:
            shutil.rmtree(other, ignore_errors=True)


def _checksums(folder: Path) -> dict[str, int]:
    """Return a checksum of every file, because pickles do not detect a changed byte."""
    sums = {}
    for path in sorted(folder.iterdir()):
        sums[path.name] = 0
        with open(path, "rb") as file:
            while block := file.read(2**20):
                sums[path.name] = zlib.crc32(block, sums[path.name])
    return sums


def _sound_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the notes of the last readable checkpoint. Rename unreadable ones."""
    try:
        pointer = read_json(folder / CHECKPOINT)
        while pointer is not None:
            source = folder / pointer["folder"]
            try:
                if _checksums(source) == pointer["checksums"]:
                    return pointer
            except OSError:  # missing, or on an unreadable part of the disk
                pass
            set_aside(source)
            before = pointer["previous"]
            place = f"the one before it, {before['folder']}" if before else "the start"
            _LOG.warning("%s cannot be read: it was renamed, and training continues from %s", source, place)
            pointer = before
            if pointer is not None:
                write_json(folder / CHECKPOINT, pointer)
    except (ValueError, TypeError, KeyError) as error:  # the file that names the valid checkpoint
        _LOG.warning("%s: it was renamed, and training continues from the start", error)
    set_aside(folder / CHECKPOINT)
    return None


def restore_checkpoint(folder: Path, model: BaseAlgorithm) -> dict[str, Any] | None:
    """Restore a run's last saved state in a new model. A new episode begins.

    Changes the model, its buffer, the statistics of its ``VecNormalize`` and all random generators of the process.

    :param folder: of the run
    :param model: a new model with the same settings, before learning
    :return: the saved notes, or ``None`` if there is no readable checkpoint
    """
    pointer = _sound_checkpoint(folder)
    if pointer is None:
        return None
    source = folder / pointer["folder"]
    data, parameters, variables = load_from_zip_file(source / "model.zip", device=model.device)
    assert data is not None
    kept = {name: value for name, value in data.items() if name not in _OF_THE_PROCESS and "batch_norm" not in name}
    vars(model).update(kept)
    model.set_parameters(parameters, exact_match=True, device=model.device)
    for name, value in (variables or {}).items():
        recursive_setattr(model, f"{name}.data", value.data)
    with open(source / "replay_buffer.pkl", "rb") as file:
        saved = pickle.load(file)
    buffer = getattr(model, "replay_buffer", None)
    if saved is not None and buffer is not None:
        _fill(vars(buffer), saved, buffer)
        _end_episode(buffer)
    with open(source / "state.pkl", "rb") as file:
        state = pickle.load(file)
    _restore_statistics(model, state["statistics"])
    _begin_episode(model)
    _restore_random_states(model, state["random"])
    model._num_timesteps_at_start = model.num_timesteps
    return pointer


def _filled(contents: dict[str, Any], buffer: Any) -> dict[str, Any]:
    """Return a buffer's content without empty rows, which are most of a large buffer at first."""
    size = buffer.buffer_size if buffer.full else buffer.pos
    kept: dict[str, Any] = {}
    for name, value in contents.items():
        if isinstance(value, np.ndarray) and value.ndim and len(value) == buffer.buffer_size:
            kept[name] = value[:size]
        elif isinstance(value, dict):
            kept[name] = _filled(value, buffer)
        elif name not in _OF_A_BUFFER:
            kept[name] = value
    return kept


def _fill(contents: dict[str, Any], saved: dict[str, Any], buffer: Any) -> None:
    for name, value in saved.items():
        mine = contents.get(name)
        if isinstance(mine, np.ndarray) and mine.ndim and len(mine) == buffer.buffer_size:
            mine[: len(value)] = value
        elif isinstance(mine, dict):
            _fill(mine, value, buffer)
        else:
            contents[name] = value


def _end_episode(buffer: Any) -> None:
    """Mark the last transition as the end of its episode. The next one belongs to a new episode."""
    if hasattr(buffer, "truncate_last_trajectory"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # its warning is about an intended effect
            buffer.truncate_last_trajectory()
        return
    last = (buffer.pos - 1) % buffer.buffer_size
    cut = buffer.dones[last] == 0
    buffer.dones[last] = True
    if getattr(buffer, "handle_timeout_termination", False):
        buffer.timeouts[last][cut] = True


def _statistics(model: BaseAlgorithm) -> dict[str, Any] | None:
    env = model.get_vec_normalize_env()
    return None if env is None else {name: getattr(env, name, None) for name in ("obs_rms", "ret_rms")}


def _restore_statistics(model: BaseAlgorithm, saved: dict[str, Any] | None) -> None:
    env = model.get_vec_normalize_env()
    if env is not None and saved is not None:
        vars(env).update({name: value for name, value in saved.items() if value is not None})


def _begin_episode(model: BaseAlgorithm) -> None:
    """Begin an episode with the restored statistics."""
    env = model.env
    assert env is not None
    # Otherwise the environment would repeat the run's first episodes: its random generators cannot be saved.
    env.seed((model.seed or 0) + model.num_timesteps)
    model._last_obs = env.reset()  # type: ignore[assignment]
    statistics = model.get_vec_normalize_env()
    if statistics is not None:
        model._last_original_obs = statistics.get_original_obs()


def _generators(model: BaseAlgorithm) -> Iterator[Any]:
    yield model.action_space.np_random
    if model.env is not None and model.env.action_space is not model.action_space:
        yield model.env.action_space.np_random


def _random_states(model: BaseAlgorithm) -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "spaces": [generator.bit_generator.state for generator in _generators(model)],
    }


def _restore_random_states(model: BaseAlgorithm, states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.cuda.set_rng_state_all(states["cuda"])
    for generator, state in zip(_generators(model), states["spaces"], strict=False):
        generator.bit_generator.state = state
