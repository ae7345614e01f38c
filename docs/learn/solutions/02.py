"""Solutions of the exercises of chapter 2: padding, stride and pooling."""

import numpy as np


def output_size(size: int, window: int, padding: int, stride: int) -> int:
    """Return the height of the map by the formula of the chapter, rounded down.

    output_size(28, 3, 1, 2) is 14.
    """
    return (size - window + 2 * padding) // stride + 1


def pad(image: np.ndarray, width: int) -> np.ndarray:
    """Return the image (rows, columns) with `width` rows and columns of zeros on every side."""
    result = np.zeros((image.shape[0] + 2 * width, image.shape[1] + 2 * width))
    result[width : width + image.shape[0], width : width + image.shape[1]] = image
    return result


def max_pool(image: np.ndarray, size: int) -> np.ndarray:
    """Return the largest number of each window of `size` x `size` pixels; the windows do not overlap.

    Rows and columns that are left over at the end, as with 5 rows and size 2, are in no window.
    """
    rows, columns = image.shape[0] // size, image.shape[1] // size
    result = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            result[i, j] = image[size * i : size * i + size, size * j : size * j + size].max()
    return result
