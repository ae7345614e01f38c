"""Local response normalisation: each pixel divided by a power of the mean square of neighbouring channels."""

import math
from collections.abc import Sequence

from xcnn._array import Array, namespace
from xcnn._check import integer, number
from xcnn.errors import ShapeError
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops.pool import avg_pool2d

__all__ = ["check_options", "local_response_norm"]


def check_options(caller: str, size: int, alpha: float, beta: float, k: float) -> tuple[int, float, float, float]:
    """Return the checked options of the op, which the layer has too."""
    return (
        integer(caller, "size", size, 1, 2**31 - 1),
        number(caller, "alpha", alpha, "[0, inf)"),
        number(caller, "beta", beta, "[0, 100]"),  # powers beyond overflow
        number(caller, "k", k, "(0, inf)"),  # with 0, y would be NaN where x is 0
    )


@op("x", saves="x", samples=[sample({"x": (2, 4, 3)}, size=3, alpha=0.5, k=0.7)], apart=True)
def local_response_norm(x: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Result:
    """Divide by `d = (k + alpha * m) ** beta`, m the mean of the squares of `size` neighbouring channels.

    Parameters
    ----------
    x : floating-point array (n, c, ...).
    size : number of channels, from `size // 2` before to `(size - 1) // 2` after; those that x lacks count as zeros.
    alpha, beta, k : a number of at least 0, one from 0 to 100, and one above 0.

    Returns
    -------
    y : the shape of x.
    backward : dy -> (dx,). It keeps x and computes the means again.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If x has fewer than two axes or is not a floating-point array, or an option is out of range.

    Notes
    -----
    A. Krizhevsky, I. Sutskever and G. E. Hinton, ImageNet classification with deep convolutional neural networks, 2012.
    As in PyTorch, alpha is divided by `size`, which the paper does not do.
    """
    name = "local_response_norm"
    xp = namespace(name, x=x)
    size, alpha, beta, k = check_options(name, size, alpha, beta, k)
    if x.ndim < 2:
        raise ShapeError(f"{name}: x must be (n, c, ...), got {tuple(x.shape)}")
    if 0 in x.shape:
        return x, lambda dy, needs: (dy if needs[0] else None,)
    shape = x.shape
    image = (*shape[:2], math.prod(shape[2:]))
    reach = min(size // 2, shape[1] - 1), min((size - 1) // 2, shape[1] - 1)  # beyond are only zeros
    window = reach[0] + 1 + reach[1]
    alpha *= window / size  # times the mean over the window, for that over `size` channels

    def mean(a: Array) -> Result:
        y, backward = avg_pool2d(xp.reshape(a, image), (window, 1), 1, (reach, (0, 0)))
        return xp.reshape(y, shape), lambda dy: xp.reshape(backward(xp.reshape(dy, image))[0], shape)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if not needs[0]:
            return (None,)
        m, mean_backward = mean(x * x)
        base = k + alpha * m
        scaled = dy * base**-beta
        return (scaled - 2.0 * alpha * beta * x * mean_backward(scaled * x / base),)

    return x * (k + alpha * mean(x * x)[0]) ** -beta, backward
