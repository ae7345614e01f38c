"""Solutions of the exercises of chapter 5: initialisation."""

import numpy as np


def terms(shape: tuple[int, ...]) -> int:
    """Return how many products a filter adds up for one number of its map.

    shape is that of the weights: (filters, channels, rows, columns), or (outputs, inputs) of a fully connected layer.
    """
    return int(np.prod(shape[1:]))


def kaiming(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw weights with the mean 0 and the spread of Kaiming's rule, by rng.normal(...)."""
    return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)


def dead_share(maps: np.ndarray) -> float:
    """Return the share of dead filters among the maps after a ReLU, (images, filters, rows, columns).

    A filter is dead if its numbers are 0 everywhere in all images: no gradient passes it, and it cannot learn.
    """
    return float((maps <= 0).all(axis=(0, 2, 3)).mean())
