"""The handwritten digits that are part of the package: 1,797 images of 8x8 pixels, for first runs and tests.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, licence CC BY 4.0. The files beside this module were made from the test part of that
set, as scikit-learn's `load_digits` returns it (values 0..16), by `round(value * 255 / 16)` and `write_idx`.
"""

from pathlib import Path

import numpy as np

from xcnn.data.dataset import Dataset
from xcnn.data.idx import read_idx
from xcnn.errors import UsageError

__all__ = ["load_digits"]

_FILES = Path(__file__).with_name("files")


def load_digits(data_dir: Path | None = None) -> tuple[Dataset, Dataset]:
    """Return (train, test): 1,437 and 360 images of (1, 8, 8). Every fifth image, from the first on, is a test image.

    Raises
    ------
    UsageError
        If `data_dir` is not None: the files are part of the package.
    """
    if data_dir is not None:
        raise UsageError(f"load: digits is part of the package; omit data_dir ({data_dir})")
    images = read_idx(_FILES / "digits-images-idx3-ubyte.gz", 3)[:, None]
    labels = read_idx(_FILES / "digits-labels-idx1-ubyte.gz", 1).astype(np.int64)
    everything = Dataset(images, labels, tuple("0123456789"), "digits")
    held_out = np.arange(len(everything)) % 5 == 0
    return everything[~held_out], everything[held_out]
