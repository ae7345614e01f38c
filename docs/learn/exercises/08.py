"""Exercises of chapter 8: mistakes.

In a confusion matrix, a row is a true class and a column a predicted one.

Replace each `raise NotImplementedError`, and check: python docs/learn/check.py docs/learn/exercises/08.py
"""

import numpy as np


def recall(confusion: np.ndarray) -> np.ndarray:
    """Return for each class the share of its images that were found."""
    raise NotImplementedError


def most_confused(confusion: np.ndarray) -> tuple[int, int]:
    """Return (true class, predicted class) of the most frequent mistake."""
    raise NotImplementedError


def attack(x: np.ndarray, dx: np.ndarray, epsilon: float) -> np.ndarray:
    """Return the images x, from 0 to 1, after an attack by the gradient dx of the loss: FGSM.

    No pixel moves by more than epsilon, and none leaves 0 to 1.
    """
    raise NotImplementedError
