"""Solutions of the exercises of chapter 3: gradients."""

import numpy as np


def softmax(z: np.ndarray) -> np.ndarray:
    """Return the probabilities of the scores z (classes,). It must work for scores of 1000, too."""
    powers = np.exp(z - z.max())
    return powers / powers.sum()


def cross_entropy(p: np.ndarray, label: int) -> float:
    """Return the loss of the probabilities p (classes,), if `label` is the number of the right class."""
    return float(-np.log(p[label]))


def relu_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the gradient of x, where y = max(0, x) and dy is the gradient of y. The shapes are equal."""
    return np.where(x > 0, dy, 0.0)


def linear_backward(dz: np.ndarray, x: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dx, dW, db) of z = W x + b. x is (inputs,), W is (outputs, inputs), dz is (outputs,)."""
    return W.T @ dz, np.outer(dz, x), dz


def convolve_backward(dy: np.ndarray, image: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (dimage, dkernel) of a convolution without padding, with stride 1. All arrays are (rows, columns).

    dy, the gradient of the map, has one number for each place where the filter lay.
    """
    dimage, dkernel = np.zeros(image.shape), np.zeros(kernel.shape)
    rows, columns = kernel.shape
    for i in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            dimage[i : i + rows, j : j + columns] += dy[i, j] * kernel
            dkernel += dy[i, j] * image[i : i + rows, j : j + columns]
    return dimage, dkernel
