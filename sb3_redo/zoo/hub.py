"""Downloads agents from the Hugging Face Hub."""

import re
from pathlib import Path

from sb3_redo.validation import UsageError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ["*.zip", "*.yml", "*.pkl", "*.npz"]


def downloaded(path: Path) -> Path:
    """Return an existing path, or the folder of a Hub repository, downloaded if needed.

    :param path: a file or folder, or ``owner/name`` of a repository
    :raises UsageError: when there is neither a file nor a repository of that name
    """
    if path.exists() or path.with_name(path.name + ".zip").is_file() or not _REPOSITORY.fullmatch(str(path)):
        return path
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        return path
    try:
        return Path(snapshot_download(str(path), allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        why = str(error).split("\n")[0]
        raise UsageError(f"there is no file or folder {path}, and nothing of that name on the Hub: {why}") from error
