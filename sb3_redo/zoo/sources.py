"""Finds a saved agent and the files beside it: settings, statistics, evaluations."""

import os
import re
import reprlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np

from sb3_redo.validation import UsageError, needs, non_negative_integer

with needs("zoo", "a saved agent"):
    import yaml

_CHECKPOINT = re.compile(r"rl_model_(\d+)_steps")
_STATISTICS = ("vecnormalize.pkl", "vec_normalize.pkl")
_UNPACKED = (".zip", ".yml", ".pkl", ".npz")
"""Endings of the files of a zipped folder that are needed."""
MOST_BYTES = 2**30
"""An archive that expands to more bytes, and to more than a hundred times its size, is refused."""


@dataclass(frozen=True)
class Source:
    """The location of an agent and of the files saved beside it.

    :param model: the zip
    :param settings: the folder of the agent's ``args.yml`` and ``config.yml``, if any
    :param safe: whether settings are read without unpickling
    """

    model: Path
    settings: Path | None
    safe: bool = False

    @property
    def run(self) -> Path | None:
        """The folder of the agent's zoo run, if any."""
        return self.settings.parent if self.settings is not None and self.settings != self.model.parent else None

    @property
    def environment(self) -> str | None:
        """The environment of training, from the settings or their folder's name."""
        return self.arguments.get("env") or (self.settings.name if self.run is not None and self.settings else None)

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """The command line of the run. Those of its settings that are read here are of the right type."""
        return self._yaml("args.yml", algo=_text, env=_text, env_kwargs=_named, gym_packages=_texts)

    @cached_property
    def hyperparameters(self) -> Mapping[str, Any]:
        """The resolved hyperparameters of the zoo. Those that are read here are of the right type."""
        checks = {"env_kwargs": _named, "env_wrapper": _wrappers, "vec_env_wrapper": _wrappers}
        return self._yaml("config.yml", **checks, frame_stack=non_negative_integer)

    @cached_property
    def env_kwargs(self) -> Mapping[str, Any]:
        """The keyword arguments of the environment."""
        of_config = self.hyperparameters.get("env_kwargs")
        given = self.arguments.get("env_kwargs")
        return {**(of_config or {}), **self._yaml("env_kwargs.yml"), **(given or {})}

    @property
    def needs_statistics(self) -> bool:
        """Whether the settings say that observations were normalised."""
        return bool(self.hyperparameters.get("normalize", False))

    @property
    def statistics(self) -> Path | None:
        """The agent's ``VecNormalize`` statistics, if any."""
        step = _CHECKPOINT.fullmatch(self.model.stem)
        names = [f"rl_model_vecnormalize_{step[1]}_steps.pkl"] if step else []
        names += [f"{self.model.stem}_{name}" for name in _STATISTICS]
        own = [self.model.with_name(name) for name in names]
        saved = [self.settings / name for name in _STATISTICS] if self.settings is not None else []
        beside = [self.model.with_name(name) for name in _STATISTICS if self._is_alone]
        return next((path for path in (*own, *saved, *beside) if path.is_file()), None)

    @property
    def saved_return(self) -> float | None:
        """The mean return of the last saved evaluation, or ``None``."""
        folders = [self.model.parent] if self.settings is not None or self._is_alone else []
        folders += [self.settings.parent] if self.settings is not None else []
        for path in (folder / "evaluations.npz" for folder in folders):
            if path.is_file():
                try:
                    with path.open("rb") as file, np.load(file) as saved:
                        check_size(file, path)
                        return float(np.mean(saved["results"][-1]))
                except Exception:  # damaged files raise errors of many kinds
                    return None
        return None

    @property
    def _is_alone(self) -> bool:
        """Whether the files beside the zip are its own. In a folder of several agents, it is unknown whose they are."""
        return len(_agents_beside(self.model.parent)) == 1 or self.settings == self.model.parent

    def _yaml(self, name: str, **checks: Callable[[str, Any], Any]) -> dict[str, Any]:
        """Read settings. Those with a check are ``None`` or as the check returns them."""
        path = self.settings / name if self.settings is not None else None
        if path is None or not path.is_file():
            return {}
        loader = _SafeLoader if self.safe else _Loader
        content = path.read_bytes()
        try:
            try:
                found = yaml.load(content, loader)
            except yaml.reader.ReaderError:  # old editors of Windows do not write UTF-8
                found = yaml.load(content.decode("latin-1"), loader)
        except Exception as error:  # constructors of objects raise errors of any kind
            raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise UsageError(f"{path} must hold settings by name, it holds {type(found).__name__}")
        try:
            given = [key for key in checks if found.get(key) is not None]
            return {**found, **{key: checks[key](key, found[key]) for key in given}}
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path} cannot be used: {error}") from None


class _SafeLoader(yaml.SafeLoader):
    """Reads the zoo's YAML, with ``None`` for any other Python object."""


class _Loader(yaml.UnsafeLoader):
    """Reads the zoo's YAML, including Python objects. It can run code, like a pickle: open only trusted files."""


def _ordered(loader: Any, node: Any) -> dict[str, Any]:
    (pairs,) = loader.construct_sequence(node, deep=True)
    return dict(pairs)


def _tuple(loader: Any, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


def _nothing(loader: Any, suffix: str, node: Any) -> None:
    return None


_SafeLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered)
_SafeLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
_SafeLoader.add_multi_constructor("tag:yaml.org,2002:python/", _nothing)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, got {reprlib.repr(value)}")
    return value


def _texts(name: str, value: Any) -> list[str]:
    return [_text(name, each) for each in (value if isinstance(value, (list, tuple)) else [value])]


def _named(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be settings by name, got {reprlib.repr(value)}")
    return value


def _wrappers(name: str, value: Any) -> Any:
    """Return wrappers of the zoo: a path, a class, a path with keyword arguments, or a list of these."""
    for wrapper in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(wrapper, Mapping) and len(wrapper) == 1:
            ((wrapper, kwargs),) = wrapper.items()
            _named(f"{name}'s {wrapper}", kwargs)
        if not isinstance(wrapper, (str, type)):
            raise TypeError(f"{name} must be the path of a wrapper, or a list of paths, got {reprlib.repr(value)}")
    return value


def find_model(path: Path, *, safe: bool = False) -> Source:
    """Find the agent of a path: a zip, or a folder's final agent, else its best, else its latest checkpoint.

    The folder may be a zoo run, a run of a sweep, or in the layout of the Hugging Face Hub.

    :param path: a zip or a folder
    :param safe: whether to read settings without unpickling
    :raises UsageError: when there is none, or more than one
    """
    path = _ended(path)
    if not path.exists():
        raise UsageError(f"there is no file or folder {path}")
    if path.is_file():
        return Source(_checked(path), _settings_of(path, safe), safe)
    # 1. A folder in the Hub's layout: settings and agent lie side by side.
    if (path / "args.yml").is_file() and (flat := _flat_model(path, safe)) is not None:
        return Source(_checked(flat), path, safe)
    # 2. A zoo run, or the folder of its settings.
    run = path.parent if (path / "args.yml").is_file() else path
    settings = _settings_in(run)
    if settings is not None:
        checkpoints = sorted((file for file in run.glob("*.zip") if _CHECKPOINT.fullmatch(file.stem)), key=_step)
        for candidate in (run / f"{settings.name}.zip", run / "best_model.zip", *reversed(checkpoints)):
            if candidate.is_file():
                return Source(_checked(candidate), settings, safe)
        raise UsageError(f"no model in {run}: neither {settings.name}.zip nor best_model.zip nor rl_model_*_steps.zip")
    # 3. A folder without settings that holds a single zip.
    found = _agents_beside(path) or sorted(path.glob("*.zip"))
    if len(found) == 1:
        return Source(_checked(found[0]), None, safe)
    # 4. A folder with a single run inside, as in a sweep.
    inner = list(agents_in(path, follow_links=False))
    if len(inner) == 1:
        return find_model(inner[0], safe=safe)
    hint = f"; did you mean one of the runs in it, such as {inner[-1]}? --recursive takes them all" if inner else ""
    raise UsageError(f"{path} is not the folder of a zoo run (it has no */args.yml) and holds no single agent{hint}")


def agents_in(folder: Path, *, follow_links: bool = True) -> Iterator[Path]:
    """Yield all agents below a folder: the folders of runs, and the paths of other zips.

    :param folder: the folder to search
    :param follow_links: whether to search linked folders, too
    """
    claimed: set[Path] = set()
    files = sorted(_files_in(folder, follow_links))
    for file in (file for file in files if file.name == "args.yml"):
        is_flat = any(file.parent.glob("*.zip"))
        run = file.parent if is_flat else file.parent.parent
        is_one = is_flat or _settings_in(run) is not None
        if is_one and run not in claimed and any(run.glob("*.zip")):
            claimed.add(run)
            yield run
    for file in files:
        if file.suffix == ".zip" and file.parent not in claimed and (_is_agent(file) or _is_folder(file)):
            yield file


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a path. If it is the zip of a whole folder, yield a temporary folder with its files instead.

    :param path: a zip or a folder
    :raises UsageError: when the zip is damaged, or expands too much
    """
    path = _ended(path)
    if not _is_folder(path):
        yield path
        return
    with TemporaryDirectory() as folder:
        inside = Path(folder) / path.stem
        try:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                check_size(file, path)
                archive.extractall(inside, [name for name in archive.namelist() if name.endswith(_UNPACKED)])
        except UsageError:
            raise
        except Exception as error:  # damaged files raise errors of many kinds
            raise UsageError(f"{path} cannot be unpacked: {error}") from error
        try:
            yield inside
        except UsageError as error:
            raise UsageError(str(error).replace(str(inside), str(path))) from error


def _ended(path: Path) -> Path:
    """Return a path, with ``.zip`` added if it was left out."""
    path = path if path.name not in ("", "..") else path.resolve()  # "." has no name and no parent
    is_short = not path.exists() and path.with_name(path.name + ".zip").is_file()
    return path.with_name(path.name + ".zip") if is_short else path


def _files_in(folder: Path, follow_links: bool) -> Iterator[Path]:
    """Yield all files below a folder. Each linked folder is searched once."""
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=follow_links):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(here) / name for name in files)


def _agents_beside(folder: Path) -> list[Path]:
    """Return the agents of a folder. Repositories of the Hub have other zips, such as ``train_eval_metrics.zip``."""
    return [path for path in sorted(folder.glob("*.zip")) if _is_agent(path)]


def _name_of(folder: Path, safe: bool) -> str:
    """Return the Hub's name of the agent whose settings are in a folder."""
    arguments = Source(folder, folder, safe).arguments
    return f"{arguments.get('algo')}-{arguments.get('env')}".replace("/", "-")


def _is_agent(path: Path) -> bool:
    return "data" in _names_in(path)


def _is_folder(path: Path) -> bool:
    """Return whether a path is the zip of a whole folder with agents, not an agent."""
    names = _names_in(path)
    return "data" not in names and any(name.endswith(".zip") for name in names)


def _names_in(path: Path) -> list[str]:
    """Return the names in a zip, or none if it is not a zip."""
    if not path.is_file():  # see _checked
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # damaged files raise errors of many kinds
        return []


def _step(checkpoint: Path) -> int:
    found = _CHECKPOINT.fullmatch(checkpoint.stem)
    return int(found[1]) if found else 0


def _settings_in(run: Path) -> Path | None:
    """Return the folder of a run's settings. Old zoo releases did not save ``args.yml``."""
    for name in ("args.yml", "config.yml"):
        found = [file.parent for file in run.glob(f"*/{name}")]
        found = [folder for folder in found if not any(folder.glob("*.zip"))]  # not one of the Hub
        if len(found) == 1:
            return found[0]
    return None


def _flat_model(folder: Path, safe: bool) -> Path | None:
    """Return the agent of a folder that contains ``args.yml``: the one with the expected name, or the only one."""
    named = folder / f"{_name_of(folder, safe)}.zip"
    found = _agents_beside(folder) or sorted(folder.glob("*.zip"))
    return named if named.is_file() else found[0] if len(found) == 1 else None


def _settings_of(path: Path, safe: bool) -> Path | None:
    """Return the folder of the settings that belong to a zip.

    Settings of another agent may lie beside it, so names must match the zoo's. The settings' folder is named after the
    environment, and the zip after the environment or a checkpoint.
    """
    if (path.parent / "args.yml").is_file():
        return path.parent if path.stem == _name_of(path.parent, safe) else None
    named = path.parent / path.stem  # if a folder has several agents
    settings = named if (named / "args.yml").is_file() else _settings_in(path.parent)
    if settings is None:
        return None
    env = str(Source(path, settings, safe).environment).replace("/", "-")
    is_of_run = path.stem in (settings.name, "best_model") or _CHECKPOINT.fullmatch(path.stem) is not None
    return settings if settings.name == env and is_of_run else None


def _checked(path: Path) -> Path:
    """Return the path of a zip that looks like a saved agent.

    :raises UsageError: when it is no agent
    """
    try:
        if not path.is_file():
            raise OSError("it is not a file")  # opening a pipe would wait for its writer
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # damaged files raise errors of many kinds
        raise UsageError(f"{path} is not a readable zip file, the format of saved agents ({error})") from error
    if not any(entry.filename == "data" for entry in entries):
        raise UsageError(f"{path} is a zip file, but not an agent that Stable-Baselines3 saved (no 'data' in it)")
    outside = [entry.filename for entry in entries if entry.filename.startswith(("/", "\\")) or ".." in entry.filename]
    if outside:
        raise UsageError(f"{path} is not opened: {outside[0]!r} in it lies outside of it")
    with path.open("rb") as file:
        check_size(file, path)
    return path


def check_size(file: IO[bytes], path: Path) -> None:
    """Check that a zip does not expand to an excessive size. Other files pass.

    :param file: a zip or another file
    :param path: its path, for the message
    :raises UsageError: when it expands too much
    """
    compressed = file.seek(0, os.SEEK_END)
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > max(MOST_BYTES, 100 * compressed):
        raise UsageError(f"{path} is not opened: it would expand to {size / 2**30:.0f} GiB, over 100 times its size")
