"""Data sets, augmentation, and batches.

`load("digits")` returns (train, test) data sets, `splits` all parts by name. `from_arrays` creates a data set of your
own arrays, also of lazy ones (`LazyArray`), `MapDataset` of an object with a length and items. `Dataset.to` copies one
to a device, and `Loader` iterates over it in batches. `DATASETS` lists the names for `load`, `AUGMENTATIONS` the
functions that distort images, with the random numbers of `Draws`.
"""

from xcnn.data.augment import (
    AUGMENTATIONS,
    Augmentation,
    affine,
    color_jitter,
    crop,
    cutmix,
    cutout,
    flip,
    gaussian_noise,
    mixup,
    rand_augment,
    random_erasing,
    random_resized_crop,
    rotate,
    shift,
    zoom,
)
from xcnn.data.catalog import DATASETS, Entry, load, splits
from xcnn.data.dataset import Dataset, from_arrays, to_float
from xcnn.data.draws import Draws
from xcnn.data.files import ImageFiles
from xcnn.data.images import read_image
from xcnn.data.lazy import LazyArray
from xcnn.data.loader import Loader
from xcnn.data.mapped import MapDataset, split
from xcnn.data.statistics import channel_statistics

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augmentation",
    "Dataset",
    "Draws",
    "Entry",
    "ImageFiles",
    "LazyArray",
    "Loader",
    "MapDataset",
    "affine",
    "channel_statistics",
    "color_jitter",
    "crop",
    "cutmix",
    "cutout",
    "flip",
    "from_arrays",
    "gaussian_noise",
    "load",
    "mixup",
    "rand_augment",
    "random_erasing",
    "random_resized_crop",
    "read_image",
    "rotate",
    "shift",
    "split",
    "splits",
    "to_float",
    "zoom",
]
