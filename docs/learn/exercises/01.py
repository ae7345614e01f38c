"""Exercises of chapter 1: one filter.

Replace each `raise NotImplementedError`, and check: python docs/learn/check.py docs/learn/exercises/01.py
"""

import numpy as np


def map_size(size: int, window: int) -> int:
    """Return the height of the map: the image has `size` rows, the filter `window` rows.

    map_size(3, 2) is 2.
    """
    raise NotImplementedError


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Slide one filter over an image with several channels, and return the map.

    image: (channels, rows, columns). kernel: (channels, rows, columns), smaller, with as many channels.
    The products of all channels go into one sum, so the map is (rows, columns). Use loops, as in the chapter.
    """
    raise NotImplementedError


def bright_below() -> np.ndarray:
    """Return a filter of 3 x 3 numbers that answers where it is dark above and bright below.

    Its answer must be above 0 there, below 0 where it is bright above and dark below, and 0 where the image has the
    same brightness everywhere or changes only from left to right.
    """
    raise NotImplementedError
