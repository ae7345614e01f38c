"""Exercises of chapter 10: a residual network.

Replace each `raise NotImplementedError`, and check: python docs/learn/check.py docs/learn/exercises/10.py
"""

from collections.abc import Callable
from typing import Any

import numpy as np


def residual(x: np.ndarray, body: Callable[[np.ndarray], Any]) -> tuple[np.ndarray, Any]:
    """Return y = body(x) + x and its backward, a function of dy that returns dx.

    body(x) returns its y and its backward: `y, body_backward = body(x)`, then `dx = body_backward(dy)`.
    """
    raise NotImplementedError


def weights(inputs: int, outputs: int, window: int, bias: bool) -> int:
    """Return the number of weights of a convolution, from the numbers of channels and the width of its square window.

    With a bias, there is one more number for each filter.
    """
    raise NotImplementedError


def seen(layers: list[tuple[int, int]]) -> int:
    """Return how many rows of the image one number at the end depends on: its receptive field.

    layers has (window, stride) of each convolution or pooling, from first to last. seen([(3, 1), (3, 1)]) is 5, and
    seen([(2, 2), (3, 1)]) is 6: after a stride of 2, neighbours in the map are 2 rows of the image apart.
    """
    raise NotImplementedError
