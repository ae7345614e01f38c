"""Exercises of chapter 7: overfitting and augmentation.

Replace each `raise NotImplementedError`, and check: python docs/learn/check.py docs/learn/exercises/07.py
"""

import numpy as np


def best_epoch(losses: list[float]) -> int:
    """Return the epoch with the lowest validation loss; losses[0] is that of epoch 1."""
    raise NotImplementedError


def move(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Move an image (rows, columns) down and to the right; where nothing comes from is 0. Numbers below 0 move back."""
    raise NotImplementedError


def stop_epoch(losses: list[float], patience: int) -> int:
    """Return the epoch after which training stops early.

    It stops when the lowest validation loss so far is `patience` epochs old, or else after the last epoch:
    stop_epoch([0.9, 0.5, 0.6, 0.4, 0.5, 0.6, 0.7], 2) is 6, as the lowest loss, 0.4, is that of epoch 4.
    """
    raise NotImplementedError
