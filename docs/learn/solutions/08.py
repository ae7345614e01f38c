"""Solutions of the exercises of chapter 8: mistakes.

In a confusion matrix, a row is a true class and a column a predicted one.
"""

import numpy as np


def recall(confusion: np.ndarray) -> np.ndarray:
    """Return for each class the share of its images that were found."""
    return np.diag(confusion) / confusion.sum(axis=1)


def most_confused(confusion: np.ndarray) -> tuple[int, int]:
    """Return (true class, predicted class) of the most frequent mistake."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    return int(true), int(predicted)


def attack(x: np.ndarray, dx: np.ndarray, epsilon: float) -> np.ndarray:
    """Return the images x, from 0 to 1, after an attack by the gradient dx of the loss: FGSM.

    No pixel moves by more than epsilon, and none leaves 0 to 1.
    """
    return np.clip(x + epsilon * np.sign(dx), 0, 1)
