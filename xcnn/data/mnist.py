"""MNIST and Fashion-MNIST: data sets of four IDX files.

MNIST: Y. LeCun, C. Cortes and C. J. C. Burges, http://yann.lecun.com/exdb/mnist/. Fashion-MNIST: H. Xiao, K. Rasul and
R. Vollgraf, arXiv:1708.07747.
"""

from pathlib import Path

import numpy as np

from xcnn.data._stream import blaming
from xcnn.data.dataset import Dataset
from xcnn.data.idx import read_idx
from xcnn.errors import DataError

__all__ = ["FILES", "load_fashion_mnist", "load_mnist"]

_CLOTHES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""Names of the files, which may be gzipped and then end in `.gz`."""


def load_mnist(data_dir: Path) -> tuple[Dataset, Dataset]:
    """Return (train, test): 60,000 and 10,000 handwritten digits of (1, 28, 28). Errors as in `data.load`."""
    return _load("mnist", data_dir, tuple("0123456789"))


def load_fashion_mnist(data_dir: Path) -> tuple[Dataset, Dataset]:
    """Return (train, test): 60,000 and 10,000 pieces of clothing of (1, 28, 28). Errors as in `data.load`."""
    return _load("fashion-mnist", data_dir, _CLOTHES)


def _load(name: str, folder: Path, classes: tuple[str, ...]) -> tuple[Dataset, Dataset]:
    with blaming(f"load: {name}", folder):
        paths = [path for file in FILES for path in (folder / f"{file}.gz", folder / file) if path.is_file()]
    found = {path.name.removesuffix(".gz"): path for path in paths}
    if missing := [file for file in FILES if file not in found]:
        raise DataError(f"load: {name}: {folder} has no {', '.join(missing)} (with or without .gz)")
    train_images, train_labels, test_images, test_labels = (found[file] for file in FILES)
    return _read(name, train_images, train_labels, classes), _read(name, test_images, test_labels, classes)


def _read(name: str, images_path: Path, labels_path: Path, classes: tuple[str, ...]) -> Dataset:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(labels) != len(images):
        raise DataError(f"load: {name}: {labels_path} has {len(labels)} labels for {len(images)} images")
    return Dataset(images[:, None], labels.astype(np.int64), classes, name)
