"""CIFAR-10's training images, from its Python or its binary version (https://www.cs.toronto.edu/~kriz/cifar.html).

The Python version consists of pickles, which may run any code. This reader builds only arrays of bytes.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIXELS = 32 * 32 * 3
_BATCHES = range(1, 6)

_HELP = """\
no CIFAR-10 in {folder}: put data_batch_1 to data_batch_5 there (the Python version) or data_batch_1.bin to
data_batch_5.bin (the binary version), or the folder that cifar-10-python.tar.gz or cifar-10-binary.tar.gz unpacks to.
They are at https://www.cs.toronto.edu/~kriz/cifar.html, and torchvision.datasets.CIFAR10(folder, download=True) brings
the first. Nothing is downloaded here."""


def read_cifar10(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images, [images, 32, 32, 3], and labels, [images], of all five training batches.

    :param folder: folder of the batches, or its parent
    :raises FileNotFoundError: naming what is missing; :raises ValueError: on files of another format
    """
    for kind, ending, read in (("py", "", read_python_batch), ("bin", ".bin", read_binary_batch)):
        for place in (folder, folder / f"cifar-10-batches-{kind}"):
            paths = [place / f"data_batch_{number}{ending}" for number in _BATCHES]
            if all(path.is_file() for path in paths):
                images, labels = zip(*map(read, paths), strict=True)
                return np.concatenate(images), np.concatenate(labels)
    raise FileNotFoundError(_HELP.format(folder=folder))


def read_binary_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read records of one byte for the class and 3,072 for the image; :raises ValueError: on anything else"""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if not len(content) or len(content) % (1 + _PIXELS):
        raise ValueError(f"{path} has {len(content)} bytes, which is not a multiple of {1 + _PIXELS}")
    records = content.reshape(-1, 1 + _PIXELS)
    return _images(records[:, 1:]), records[:, 0].astype(np.int64)


def read_python_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read a pickled dictionary of ``data``, bytes, and ``labels``. :raises ValueError: on anything else, unread"""
    try:
        # Python 2 wrote these files: its strings are bytes.
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        named = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        data, labels = named["data"], np.array([int(label) for label in named["labels"]], np.int64)
    except Exception as error:
        raise ValueError(f"{path} is not a batch of CIFAR-10's Python version: {error!r}") from error
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), _PIXELS):
        raise ValueError(f"{path} has no array of {len(labels)} x {_PIXELS} bytes, as many as labels, for data")
    return _images(data), labels


def _images(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # Row by row of the red channel, then of the green one, then of the blue one.
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays of bytes from a pickle, and refuses to look up any other name."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy", "ndarray"): None,  # the class that _reconstruct builds
            ("numpy", "dtype"): _bytes_dtype,
            # Before and since NumPy 2.
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            # With pickle's protocol 5.
            ("numpy.core.numeric", "_frombuffer"): _array_of_buffer,
            ("numpy._core.numeric", "_frombuffer"): _array_of_buffer,
            # How Python 3 writes bytes for Python 2.
            ("_codecs", "encode"): _latin_bytes,
        }
        if (module, name) in known:
            return known[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and batches are made of arrays of bytes alone")


def _bytes_dtype(code: Any, *_: Any) -> np.dtype[np.uint8]:
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"it has an array of {code!r}, and batches have bytes")
    return np.dtype(np.uint8, copy=True)


def _empty_array(*_: Any) -> NDArray[np.uint8]:
    return np.empty(0, np.uint8)


def _array_of_buffer(buffer: Any, dtype: np.dtype[np.uint8], shape: tuple[int, ...], order: Any) -> NDArray[np.uint8]:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _latin_bytes(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it has bytes in the encoding {encoding!r}")
    return text.encode("latin1")
