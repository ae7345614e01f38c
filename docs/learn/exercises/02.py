"""Exercises of chapter 2: padding, stride and pooling.

Replace each `raise NotImplementedError`, and check: python docs/learn/check.py docs/learn/exercises/02.py
"""

import numpy as np


def output_size(size: int, window: int, padding: int, stride: int) -> int:
    """Return the height of the map by the formula of the chapter, rounded down.

    output_size(28, 3, 1, 2) is 14.
    """
    raise NotImplementedError


def pad(image: np.ndarray, width: int) -> np.ndarray:
    """Return the image (rows, columns) with `width` rows and columns of zeros on every side."""
    raise NotImplementedError


def max_pool(image: np.ndarray, size: int) -> np.ndarray:
    """Return the largest number of each window of `size` x `size` pixels; the windows do not overlap.

    Rows and columns that are left over at the end, as with 5 rows and size 2, are in no window.
    """
    raise NotImplementedError
