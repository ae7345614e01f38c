"""Solutions of the exercises of chapter 7: overfitting and augmentation."""

import numpy as np


def best_epoch(losses: list[float]) -> int:
    """Return the epoch with the lowest validation loss; losses[0] is that of epoch 1."""
    return 1 + int(np.argmin(losses))


def move(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Move an image (rows, columns) down and to the right; where nothing comes from is 0. Numbers below 0 move back."""
    rows, columns = image.shape
    result = np.zeros((rows, columns))
    top, left = max(down, 0), max(right, 0)
    part = image[max(-down, 0) : rows - top, max(-right, 0) : columns - left]
    result[top : top + part.shape[0], left : left + part.shape[1]] = part
    return result


def stop_epoch(losses: list[float], patience: int) -> int:
    """Return the epoch after which training stops early.

    It stops when the lowest validation loss so far is `patience` epochs old, or else after the last epoch:
    stop_epoch([0.9, 0.5, 0.6, 0.4, 0.5, 0.6, 0.7], 2) is 6, as the lowest loss, 0.4, is that of epoch 4.
    """
    best = 0
    for epoch, loss in enumerate(losses):
        if loss < losses[best]:
            best = epoch
        if epoch - best >= patience:
            return epoch + 1
    return len(losses)
