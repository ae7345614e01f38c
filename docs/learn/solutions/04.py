"""Solutions of the exercises of chapter 4: the first network.

A batch has scores (images, classes) and labels (images,).
"""

import numpy as np


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose highest score is that of their label."""
    return float((scores.argmax(axis=1) == labels).mean())


def mean_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of the cross-entropies of the images."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    p = powers / powers.sum(axis=1, keepdims=True)
    return float(-np.log(p[np.arange(len(labels)), labels]).mean())


def mean_loss_gradient(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the gradient of `mean_loss` at the scores: (images, classes)."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    gradient = powers / powers.sum(axis=1, keepdims=True)
    gradient[np.arange(len(labels)), labels] -= 1
    return gradient / len(labels)


def step(weights: list[np.ndarray], gradients: list[np.ndarray], rate: float) -> list[np.ndarray]:
    """Return the weights after one step of gradient descent; each array has its gradient in the other list."""
    return [weight - rate * gradient for weight, gradient in zip(weights, gradients, strict=True)]
