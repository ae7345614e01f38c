"""Data sets, augmentation, and batches.

`load("digits")` returns (train, test) data sets, `from_arrays` makes one of your own arrays, `Dataset.to` moves one to
a device, and `Loader` iterates over one in batches, where it is. The names that `load` knows are in `catalog.py`; the
functions that distort images are in `augment.py`.
"""

from xcnn.data.augment import AUGMENTATIONS, crop, cutout, flip, rotate, shift
from xcnn.data.catalog import DATASETS, Entry, load
from xcnn.data.dataset import Dataset, from_arrays, split, to_float
from xcnn.data.folder import read_image
from xcnn.data.loader import Loader

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Dataset",
    "Entry",
    "Loader",
    "crop",
    "cutout",
    "flip",
    "from_arrays",
    "load",
    "read_image",
    "rotate",
    "shift",
    "split",
    "to_float",
]
