"""Exercises of chapter 4: the first network.

A batch has scores (images, classes) and labels (images,).

Replace each `raise NotImplementedError`, and check: python docs/learn/check.py docs/learn/exercises/04.py
"""

import numpy as np


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose highest score is that of their label."""
    raise NotImplementedError


def mean_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of the cross-entropies of the images."""
    raise NotImplementedError


def mean_loss_gradient(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the gradient of `mean_loss` at the scores: (images, classes)."""
    raise NotImplementedError


def step(weights: list[np.ndarray], gradients: list[np.ndarray], rate: float) -> list[np.ndarray]:
    """Return the weights after one step of gradient descent; each array has its gradient in the other list."""
    raise NotImplementedError
