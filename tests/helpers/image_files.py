"""Writes small files in the formats of MNIST and CIFAR-10, byte by byte as their pages describe them."""

import gzip
import struct

import numpy as np

MNIST_IMAGES, MNIST_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def labels_of(number, seed=0):
    """Every class at least once, in a random order."""
    return np.random.default_rng(seed).permutation(np.arange(number) % 10).astype(np.uint8)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_mnist(folder, images, labels, zipped=False, dotted=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((MNIST_IMAGES, images), (MNIST_LABELS, labels)):
        name = name.replace("-idx", ".idx") if dotted else name
        content = gzip.compress(idx(array)) if zipped else idx(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(content)


def python_2_batch(data, labels):
    """A batch of CIFAR-10's Python version as Python 2 pickled it, with protocol 2 and strings of bytes."""

    def string(text):
        return b"U" + bytes([len(text)]) + text

    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    size = b"M" + struct.pack("<H", len(data))
    width = b"M" + struct.pack("<H", data.shape[1])
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    array += b"(K\x01" + size + width + b"\x86" + dtype + b"\x89"
    array += b"T" + struct.pack("<I", data.size) + data.tobytes() + b"tb"
    items = string(b"batch_label") + string(b"training batch 1 of 5")
    items += (
        string(b"labels") + listed + string(b"data") + array + string(b"filenames") + b"](" + string(b"a.png") + b"e"
    )
    return b"\x80\x02}(" + items + b"u."


def binary_batch(data, labels):
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, data, strict=True))
