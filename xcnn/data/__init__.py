"""Data sets, augmentation, and batches.

`load("digits")` returns (train, test) data sets, `from_arrays` creates a data set of your own arrays, `Dataset.to`
copies it to a device, and `Loader` iterates over it in batches. `DATASETS` lists the names for `load`, `AUGMENTATIONS`
the functions that distort images.
"""

from xcnn.data.augment import AUGMENTATIONS, crop, cutout, flip, rotate, shift
from xcnn.data.catalog import DATASETS, Entry, load
from xcnn.data.dataset import Dataset, from_arrays, split, to_float
from xcnn.data.draws import Draws
from xcnn.data.folder import read_image
from xcnn.data.loader import Loader

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Dataset",
    "Draws",
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
