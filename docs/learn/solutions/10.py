"""Solutions of the exercises of chapter 10: a residual network."""

from collections.abc import Callable
from typing import Any

import numpy as np


def residual(x: np.ndarray, body: Callable[[np.ndarray], Any]) -> tuple[np.ndarray, Any]:
    """Return y = body(x) + x and its backward, a function of dy that returns dx.

    body(x) returns its y and its backward: `y, body_backward = body(x)`, then `dx = body_backward(dy)`.
    """
    y, body_backward = body(x)
    return y + x, lambda dy: body_backward(dy) + dy


def weights(inputs: int, outputs: int, window: int, bias: bool) -> int:
    """Return the number of weights of a convolution, from the numbers of channels and the width of its square window.

    With a bias, there is one more number for each filter.
    """
    return outputs * (inputs * window * window + bias)


def seen(layers: list[tuple[int, int]]) -> int:
    """Return how many rows of the image one number at the end depends on: its receptive field.

    layers has (window, stride) of each convolution or pooling, from first to last. seen([(3, 1), (3, 1)]) is 5, and
    seen([(2, 2), (3, 1)]) is 6: after a stride of 2, neighbours in the map are 2 rows of the image apart.
    """
    size, jump = 1, 1
    for window, stride in layers:
        size, jump = size + (window - 1) * jump, jump * stride
    return size
