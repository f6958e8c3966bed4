"""Readers of MNIST's and CIFAR-10's files: every layout, and nothing that is not such a file."""

import os
import pickle

import numpy as np
import pytest

from sb3_redo.environments.cifar import read_binary_batch, read_cifar10, read_python_batch
from sb3_redo.environments.idx import read_idx, read_mnist
from sb3_redo.environments.images import LabelledImages, load_images
from tests.helpers.image_files import (
    MNIST_IMAGES,
    MNIST_LABELS,
    binary_batch,
    idx,
    labels_of,
    pixels,
    python_2_batch,
    write_mnist,
)

IMAGES, LABELS = pixels(12, 28, 28), labels_of(12)
DATA = pixels(60, 3072)
CLASSES = labels_of(60)


# MNIST


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("place", [".", "MNIST/raw"])
def test_mnist_is_read_in_every_layout(tmp_path, zipped, dotted, place):
    write_mnist(tmp_path / place, IMAGES, LABELS, zipped, dotted)
    images, labels = read_mnist(tmp_path)
    assert images.shape == (12, 28, 28, 1)
    assert np.array_equal(images[..., 0], IMAGES)
    assert np.array_equal(labels, LABELS)


def test_rows_come_before_columns(tmp_path):
    (tmp_path / "array").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    assert read_idx(tmp_path / "array").tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file of unsigned bytes: it begins with b''"),
        (b"<html>", "no IDX file of unsigned bytes: it begins with b'<htm'"),
        (bytes([0, 0, 13, 1]) + idx(LABELS)[4:], "no IDX file of unsigned bytes"),  # floats
        (idx(LABELS)[:-1], "has 19 bytes, and by its first ones 20: is it whole"),
        (idx(LABELS) + b"0", "has 21 bytes, and by its first ones 20"),
        (idx(IMAGES)[:12], "is it whole"),
        (b"\x1f\x8b\x08 no gzip", "cannot be unzipped"),
    ],
)
def test_files_of_another_format_are_refused(tmp_path, content, message):
    (tmp_path / "array").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/array .*{message}"):
        read_idx(tmp_path / "array")


def test_a_truncated_archive_is_refused(tmp_path):
    write_mnist(tmp_path, IMAGES, LABELS, zipped=True)
    path = tmp_path / f"{MNIST_LABELS}.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte.gz cannot be unzipped .*: is it whole"):
        read_mnist(tmp_path)


def test_images_and_labels_that_do_not_belong_together_are_refused(tmp_path):
    write_mnist(tmp_path, IMAGES, LABELS[:-1])
    with pytest.raises(ValueError, match=r"images of shape \(12, 28, 28\) and labels of shape \(11,\)"):
        read_mnist(tmp_path)
    (tmp_path / MNIST_IMAGES).write_bytes(idx(LABELS))
    with pytest.raises(ValueError, match=r"images of shape \(12,\) and"):
        read_mnist(tmp_path)


# CIFAR-10


def expected_images():
    images = np.empty((60, 32, 32, 3), np.uint8)
    for row, column, channel in np.ndindex(32, 32, 3):
        images[:, row, column, channel] = DATA[:, channel * 1024 + row * 32 + column]
    return images


def batches(folder, write, ending=""):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(5):
        part = slice(12 * number, 12 * number + 12)
        (folder / f"data_batch_{number + 1}{ending}").write_bytes(write(DATA[part], CLASSES[part]))


def repickled(data, labels):
    content = {"labels": labels.tolist(), "data": data.copy(), "batch_label": "a batch"}
    return pickle.dumps(content, protocol=2)


def repickled_lately(data, labels):
    return pickle.dumps({"labels": labels.tolist(), "data": data.copy()}, protocol=5)


@pytest.mark.parametrize(
    ("write", "ending", "name"),
    [
        (python_2_batch, "", "cifar-10-batches-py"),
        (repickled, "", "cifar-10-batches-py"),
        (repickled_lately, "", "cifar-10-batches-py"),
        (binary_batch, ".bin", "cifar-10-batches-bin"),
    ],
)
def test_cifar_is_read_in_every_layout(tmp_path, write, ending, name):
    batches(tmp_path / "root" / name, write, ending)
    for folder in (tmp_path / "root", tmp_path / "root" / name):
        images, labels = read_cifar10(folder)
        assert np.array_equal(images, expected_images())
        assert labels.tolist() == CLASSES.tolist()


def test_what_python_2_wrote_is_what_is_tested():
    content = pickle.loads(python_2_batch(DATA[:3], CLASSES[:3]), encoding="bytes")
    assert np.array_equal(content[b"data"], DATA[:3])
    assert content[b"labels"] == CLASSES[:3].tolist()


class Evil:
    def __reduce__(self):
        return os.mkdir, (self.path,)


class Encoded:
    def __reduce__(self):
        import _codecs

        return _codecs.encode, ("x", "zip")


def test_pickles_that_run_something_are_refused_and_do_not_run(tmp_path):
    evil = Evil()
    evil.path = str(tmp_path / "made")
    path = tmp_path / "data_batch_1"
    for content in ({"data": DATA, "labels": [evil]}, evil):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=r"data_batch_1 is not a batch .*asks for (posix|nt)\.mkdir, and batches"):
            read_python_batch(path)
    assert not (tmp_path / "made").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "made").exists()  # it would have run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.array([[None]]), "labels": [0]}, "it has an array of 'O8', and batches have bytes"),
        ({"data": DATA.astype(np.float32), "labels": [0]}, "it has an array of 'f4'"),
        ({"data": DATA, "labels": [Encoded()]}, "it has bytes in the encoding 'zip'"),
        ({"data": np.array, "labels": []}, r"asks for numpy\.array"),
        ({"data": DATA, "labels": CLASSES[:-1].tolist()}, "has no array of 59 x 3072 bytes"),
        ({"data": DATA[:, :-1].copy(), "labels": CLASSES.tolist()}, "has no array of 60 x 3072 bytes"),
        ({"data": "text", "labels": CLASSES.tolist()}, "has no array of 60 x 3072 bytes"),
        ({"data": DATA}, "KeyError.*labels"),
        ([1, 2], "AttributeError"),
    ],
)
def test_pickles_of_anything_else_are_refused(tmp_path, content, message):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=f"data_batch_1 .*{message}"):
        read_python_batch(path)


def test_a_class_of_arrays_cannot_be_called(tmp_path):
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x02cnumpy\nndarray\nK\x03\x85R.")
    with pytest.raises(ValueError, match="'NoneType' object is not callable"):
        read_python_batch(path)


@pytest.mark.parametrize("content", [b"", b"no pickle", python_2_batch(DATA[:2], CLASSES[:2])[:-900]])
def test_what_is_no_pickle_is_refused(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_1 is not a batch of CIFAR-10's Python version"):
        read_python_batch(tmp_path / "data_batch_1")


@pytest.mark.parametrize("size", [0, 3072, 3074])
def test_half_records_are_refused(tmp_path, size):
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=f"has {size} bytes, which is not a multiple of 3073"):
        read_binary_batch(tmp_path / "data_batch_1.bin")


# What is missing


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("mnist", r"no MNIST in .*train-images-idx3-ubyte.*https://yann\.lecun\.com.*Nothing is downloaded"),
        ("cifar10", r"no CIFAR-10 in .*data_batch_1 .*https://www\.cs\.toronto\.edu.*Nothing is downloaded"),
    ],
)
def test_missing_files_are_told_with_where_they_are(tmp_path, data, message):
    with pytest.raises(FileNotFoundError, match=f"(?s){message}"):
        load_images(data, tmp_path)


def test_half_of_the_files_are_not_enough(tmp_path):
    write_mnist(tmp_path / "mnist", IMAGES, LABELS)
    (tmp_path / "mnist" / MNIST_LABELS).unlink()
    with pytest.raises(FileNotFoundError, match="no MNIST"):
        load_images("mnist", tmp_path / "mnist")
    batches(tmp_path / "cifar", python_2_batch)
    (tmp_path / "cifar" / "data_batch_5").unlink()
    with pytest.raises(FileNotFoundError, match="no CIFAR-10"):
        load_images("cifar10", tmp_path / "cifar")


# In memory


def test_what_was_read_is_shared_and_cannot_be_written_to(tmp_path):
    write_mnist(tmp_path, IMAGES, LABELS)
    first, second = (load_images("mnist", folder) for folder in (tmp_path, str(tmp_path)))
    assert first is second
    assert np.array_equal(first.images[..., 0], IMAGES)
    assert first.n_classes == 10
    with pytest.raises(ValueError, match="read-only"):
        first.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        first.labels[0] = 0


def test_digits_are_those_of_scikit_learn_on_the_scale_of_bytes():
    from sklearn.datasets import load_digits

    digits = load_digits()
    found = load_images("digits")
    assert found.images.shape == (1797, 8, 8, 1)
    assert np.abs(found.images[..., 0] / 255 - digits.images / 16).max() < 0.5 / 255 + 1e-9
    assert (found.images.min(), found.images.max()) == (0, 255)
    assert np.array_equal(found.labels, digits.target)


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (pixels(2, 3, 3, 1) / 255, [0, 1], TypeError, "images must be uint8 .* got float64"),
        (pixels(2, 3, 3, 1), [0.0, 1.0], TypeError, "labels integers, got uint8 and float64"),
        (pixels(2, 3, 3), [0, 1], ValueError, r"got \(2, 3, 3\)"),
        (pixels(2, 3, 3, 4), [0, 1], ValueError, r"1 or 3 channels\], got \(2, 3, 3, 4\)"),
        (pixels(0, 3, 3, 1), np.array([], int), ValueError, r"got \(0, 3, 3, 1\)"),
        (pixels(2, 3, 3, 1), [0, 1, 1], ValueError, r"2 images need as many labels, got \(3,\)"),
        (pixels(2, 3, 3, 1), [1, 2], ValueError, r"none left out, got \[1, 2\]"),
        (pixels(2, 3, 3, 1), [0, 2], ValueError, r"none left out, got \[0, 2\]"),
    ],
)
def test_images_without_classes_are_refused(images, labels, error, message):
    with pytest.raises(error, match=message):
        LabelledImages(images, np.asarray(labels))


@pytest.mark.parametrize(
    ("data", "folder", "error", "message"),
    [
        ("minst", "x", ValueError, "data must be one of 'digits', .*did you mean 'mnist'"),
        (3, None, TypeError, "data must be one of"),
        ("mnist", None, ValueError, "data='mnist' is read from files: give folder, where they are"),
        ("digits", "x", ValueError, "folder='x' is for 'mnist' and 'cifar10'"),
    ],
)
def test_senseless_sources_are_refused(data, folder, error, message):
    with pytest.raises(error, match=message):
        load_images(data, folder)
