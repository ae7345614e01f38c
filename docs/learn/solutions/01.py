"""Solutions of the exercises of chapter 1: one filter."""

import numpy as np


def map_size(size: int, window: int) -> int:
    """Return the height of the map: the image has `size` rows, the filter `window` rows.

    map_size(3, 2) is 2.
    """
    return size - window + 1


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Slide one filter over an image with several channels, and return the map.

    image: (channels, rows, columns). kernel: (channels, rows, columns), smaller, with as many channels.
    The products of all channels go into one sum, so the map is (rows, columns). Use loops, as in the chapter.
    """
    rows, columns = image.shape[1] - kernel.shape[1] + 1, image.shape[2] - kernel.shape[2] + 1
    result = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            result[i, j] = (image[:, i : i + kernel.shape[1], j : j + kernel.shape[2]] * kernel).sum()
    return result


def bright_below() -> np.ndarray:
    """Return a filter of 3 x 3 numbers that answers where it is dark above and bright below.

    Its answer must be above 0 there, below 0 where it is bright above and dark below, and 0 where the image has the
    same brightness everywhere or changes only from left to right.
    """
    return np.array([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]])
