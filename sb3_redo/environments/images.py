"""Labelled images from scikit-learn or from local files."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_redo.environments import cifar, idx
from sb3_redo.validation import needs, one_of

SOURCES = ("digits", "mnist", "cifar10")


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their classes, both read-only.

    :param images: [images, height, width, channels], uint8, with 1 or 3 channels
    :param labels: [images], integers from 0 to the number of classes less 1, each of them at least once
    :raises TypeError, ValueError: on anything else
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.dtype != np.uint8 or not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"images must be uint8 and labels integers, got {images.dtype} and {labels.dtype}")
        if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
            raise ValueError(f"images must be [images, height, width, 1 or 3 channels], got {images.shape}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images need as many labels, got {labels.shape}")
        classes = np.unique(labels)
        if not np.array_equal(classes, np.arange(len(classes))):
            raise ValueError(f"labels must be 0, 1, 2 and so on, none left out, got {classes.tolist()}")
        for name, array in (("images", images), ("labels", labels.astype(np.int64))):
            array = array.view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def n_classes(self) -> int:
        return int(self.labels.max()) + 1


def load_images(data: str | LabelledImages, folder: Any = None) -> LabelledImages:
    """Return the images of a name, or given ones. Parallel environments share them.

    :param folder: folder of the files of ``mnist`` or ``cifar10``
    """
    if isinstance(data, LabelledImages) or one_of("data", data, SOURCES) == "digits":
        if folder is not None:
            raise ValueError(f"folder={folder!r} is for 'mnist' and 'cifar10': no other images are read from files")
        return data if isinstance(data, LabelledImages) else _digits()
    if folder is None:
        raise ValueError(f"data={data!r} is read from files: give folder, where they are")
    return _read(data, Path(folder).expanduser().resolve())


@lru_cache(maxsize=2)
def _read(data: str, folder: Path) -> LabelledImages:
    return LabelledImages(*{"mnist": idx.read_mnist, "cifar10": cifar.read_cifar10}[data](folder))


@lru_cache(maxsize=1)
def _digits() -> LabelledImages:
    instead = "give data='mnist' or data='cifar10' and the folder where you have it"
    with needs("environments", "data='digits'", instead):
        from sklearn.datasets import load_digits
    digits = load_digits()
    # Integers from 0 to 16.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return LabelledImages(images[..., None], digits.target)
