"""Exercises of chapter 3: gradients.

Replace each `raise NotImplementedError`, and check: python docs/learn/check.py docs/learn/exercises/03.py
"""

import numpy as np


def softmax(z: np.ndarray) -> np.ndarray:
    """Return the probabilities of the scores z (classes,). It must work for scores of 1000, too."""
    raise NotImplementedError


def cross_entropy(p: np.ndarray, label: int) -> float:
    """Return the loss of the probabilities p (classes,), if `label` is the number of the right class."""
    raise NotImplementedError


def relu_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the gradient of x, where y = max(0, x) and dy is the gradient of y. The shapes are equal."""
    raise NotImplementedError


def linear_backward(dz: np.ndarray, x: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dx, dW, db) of z = W x + b. x is (inputs,), W is (outputs, inputs), dz is (outputs,)."""
    raise NotImplementedError


def convolve_backward(dy: np.ndarray, image: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (dimage, dkernel) of a convolution without padding, with stride 1. All arrays are (rows, columns).

    dy, the gradient of the map, has one number for each place where the filter lay.
    """
    raise NotImplementedError
