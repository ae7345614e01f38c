"""Data sets, batches and augmentation, all on the host in NumPy arrays.

`load("digits")` gives (train, test) data sets, `from_arrays` makes one of your own arrays, `Loader` gives one in
batches. The names that `load` knows are in `catalog.py`; the functions that distort images are in `augment.py`.
"""

from xcnn.data.catalog import DATASETS, load
from xcnn.data.dataset import Dataset, from_arrays, split, to_float
from xcnn.data.loader import Loader

__all__ = ["DATASETS", "Dataset", "Loader", "from_arrays", "load", "split", "to_float"]
