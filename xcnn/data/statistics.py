"""The mean and standard deviation of each channel of a data set, for `nn.Normalize`."""

import math
from typing import Any

import numpy as np

from xcnn.data.dataset import to_float
from xcnn.data.mapped import dataset_of
from xcnn.devices import to_numpy
from xcnn.errors import DataError, explained

__all__ = ["channel_statistics"]

_CHUNK = 1 << 20
"""Numbers to read at a time."""

_NEGLIGIBLE = 1e-14
"""A standard deviation relative to the mean that is due to rounding alone."""


@explained
def channel_statistics(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel (axis 1 of x) over all examples and positions.

    They are those of the numbers that a network gets, uint8 divided by 255, and computed in float64. The data set is
    read in parts, so that one on disk does not have to fit into memory.

    Parameters
    ----------
    dataset : the training data, without the examples for validation and test, as a `Loader` takes them.

    Returns
    -------
    mean, std : tuples of one number per channel. The variance divides by the number N of values. A channel whose values
        are all equal has std 1, so that it can be divided by it.

    Raises
    ------
    UsageError
        If `dataset` is no such data.
    DataError
        If a channel holds NaN or infinity.

    Notes
    -----
    The statistics of two parts are combined as in T. F. Chan, G. H. Golub and R. J. LeVeque, Algorithms for computing
    the sample variance, 1983.

    Examples
    --------
    >>> from xcnn.data import load
    >>> train, test = load("digits")
    >>> mean, std = channel_statistics(train)
    >>> print(f"{mean[0]:.3f} {std[0]:.3f}")
    0.305 0.376
    """
    dataset = dataset_of("channel_statistics", dataset)
    step = max(1, _CHUNK // math.prod(dataset.shape))
    count, mean, squares = 0, np.zeros(dataset.shape[0]), np.zeros(dataset.shape[0])
    for start in range(0, len(dataset), step):
        x, _ = dataset.gather(np.arange(start, min(start + step, len(dataset))))
        part = np.moveaxis(to_numpy(to_float(x)).astype(np.float64), 1, 0).reshape(len(mean), -1)  # (c, values)
        more, centre = part.shape[1], part.mean(axis=1)
        shift = centre - mean
        squares += np.square(part - centre[:, None]).sum(axis=1) + shift**2 * (count * more / (count + more))
        mean += shift * (more / (count + more))
        count += more
    std = np.sqrt(squares / count)
    for channel, number in enumerate(std):
        if not math.isfinite(number):
            raise DataError(f"{dataset.name}: channel {channel} holds NaN or infinity, so it has no mean")
    std[std <= _NEGLIGIBLE * np.abs(mean)] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())
