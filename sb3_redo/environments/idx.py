"""MNIST's training images from files in the IDX format, which Yann LeCun's page on MNIST describes."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_UNSIGNED_BYTE = 8

_HELP = """\
no MNIST in {folder}: put train-images-idx3-ubyte and train-labels-idx1-ubyte there, gzipped (.gz) or not. They are at
https://yann.lecun.com/exdb/mnist and https://storage.googleapis.com/cvdf-datasets/mnist, and
torchvision.datasets.MNIST(folder, download=True) brings them too. Nothing is downloaded here."""


def read_mnist(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images, [images, 28, 28, 1], and labels, [images], of MNIST's training files.

    :param folder: folder of the files, or the one given to torchvision
    :raises FileNotFoundError: naming what is missing; :raises ValueError: on files of another format
    """
    images = read_idx(_find(folder, "train-images", "idx3-ubyte"))
    labels = read_idx(_find(folder, "train-labels", "idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder} has images of shape {images.shape} and labels of shape {labels.shape}")
    return images[..., None], labels.astype(np.int64)


def _find(folder: Path, name: str, kind: str) -> Path:
    for place in (folder, folder / "MNIST" / "raw"):
        # Some programs unpack with a dot instead of the last hyphen.
        for file in (f"{name}-{kind}", f"{name}.{kind}"):
            for path in (place / file, place / f"{file}.gz"):
                if path.is_file():
                    return path
    raise FileNotFoundError(_HELP.format(folder=folder))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of unsigned bytes in an IDX file, gzipped or not.

    The format: two zero bytes, the type, the number of axes, 4 bytes for the length of each, big-endian; the elements.

    :raises ValueError: when the file is not of this format, or shorter or longer than it says
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} cannot be unzipped ({error}): is it whole?") from error
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise ValueError(f"{path} is no IDX file of unsigned bytes: it begins with {content[:4]!r}")
    start = 4 + 4 * content[3]
    shape = [int(size) for size in np.frombuffer(content[4:start], ">u4")]
    expected = start + int(np.prod(shape, dtype=object))
    if len(shape) != content[3] or len(content) != expected:
        raise ValueError(f"{path} has {len(content)} bytes, and by its first ones {expected}: is it whole?")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
