"""Saves the state of a training, and restores it in a model that was made anew from the same settings."""

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

# Of the command that goes on, not of the one that was stopped: the environment begins a new episode, and clocks start.
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
    """Write a training's state. The one before is kept too, and what is older is removed.

    :param folder: of the run
    :param notes: what else has to be known when it goes on
    :param buffer: whether to save the replay buffer too
    :raises OSError: when it cannot be written; the one before counts then
    """
    previous = read_json(folder / CHECKPOINT)
    target = folder / f"checkpoint_{model.num_timesteps}"
    if previous is not None and previous["folder"] == target.name:
        return
    # Before the new one is written: a full replay buffer takes gigabytes.
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
            with open(path, "r+b") as written:  # or Windows would not flush it
                os.fsync(written.fileno())
        # From here on the new one counts. A kill before leaves the old one, and a folder that the next one removes.
        before = previous and {**previous, "previous": None}
        about = {"folder": target.name, **notes, "checksums": _checksums(target), "previous": before}
        write_json(folder / CHECKPOINT, about)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)  # it may be what fills the disk
        raise


def _remove_checkpoints(folder: Path, but: dict[str, Any] | None) -> None:
    for other in folder.glob("checkpoint_*"):
        if but is None or other.name != but["folder"]:
            shutil.rmtree(other, ignore_errors=True)


def _checksums(folder: Path) -> dict[str, int]:
    """Return a checksum of every file: pickles do not notice a changed byte."""
    sums = {}
    for path in sorted(folder.iterdir()):
        sums[path.name] = 0
        with open(path, "rb") as file:
            while block := file.read(2**20):
                sums[path.name] = zlib.crc32(block, sums[path.name])
    return sums


def _sound_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return what is known of the last checkpoint that can be read; those that cannot are set aside."""
    try:
        pointer = read_json(folder / CHECKPOINT)
        while pointer is not None:
            source = folder / pointer["folder"]
            try:
                if _checksums(source) == pointer["checksums"]:
                    return pointer
            except OSError:  # gone, or on a part of the disk that cannot be read
                pass
            set_aside(source)
            before = pointer["previous"]
            place = f"the one before it, {before['folder']}" if before else "the start"
            _LOG.warning("%s cannot be read: it was set aside, and training goes on from %s", source, place)
            pointer = before
            if pointer is not None:
                write_json(folder / CHECKPOINT, pointer)
    except (ValueError, TypeError, KeyError) as error:  # of the file that says which one counts
        _LOG.warning("%s: it was set aside, and training goes on from the start", error)
    set_aside(folder / CHECKPOINT)
    return None


def restore_checkpoint(folder: Path, model: BaseAlgorithm) -> dict[str, Any] | None:
    """Bring a fresh model to where the run was when it was last saved. A new episode begins.

    Changes the model, its buffer, the statistics of its ``VecNormalize`` and all random streams of the process.

    :param folder: of the run
    :param model: made from the same settings, about to learn
    :return: the notes that were saved with it, or ``None`` where nothing was saved or nothing of it can be read
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
    """Return what a buffer holds, without the empty rows. They are most of a large buffer at first."""
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
    """Mark the last transition as the end of its episode. What is stored next belongs to another one."""
    if hasattr(buffer, "truncate_last_trajectory"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns of what is wanted here
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
    """Begin an episode, with the statistics that were restored."""
    env = model.env
    assert env is not None
    # Or the environment would begin the run's first episodes once more: its own random streams cannot be saved.
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
