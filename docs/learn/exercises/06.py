"""Exercises of chapter 6: batch norm. Maps are (images, channels, rows, columns).

Replace each `raise NotImplementedError`, and check: python docs/learn/check.py docs/learn/exercises/06.py
"""

import numpy as np


def batch_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Normalise each channel of the maps x over the batch; then multiply by its weight and add its bias.

    weight and bias have one number per channel. The spread is sqrt(variance + eps).
    """
    raise NotImplementedError


def update(average: float, batch: float, momentum: float) -> float:
    """Return the average after a batch whose mean is `batch`; momentum is the share of the new number in the result.

    update(0, 10, 0.1) is 1.
    """
    raise NotImplementedError


def batch_norm_after_training(
    x: np.ndarray, mean: np.ndarray, variance: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float
) -> np.ndarray:
    """Do the same with the averages `mean` and `variance`, one number per channel, instead of those of the batch."""
    raise NotImplementedError


def normalise_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the gradient of the vector x, where y = (x - x.mean()) / x.std() and dy is the gradient of y.

    This one is hard; leave it for the end. The mean and the spread depend on every number of x, so that a change of
    one number changes all of y.
    """
    raise NotImplementedError
