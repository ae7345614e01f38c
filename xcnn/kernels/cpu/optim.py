"""Optimizer steps in one pass over memory, in place. Results equal those of the portable code bit for bit.

State that a rule does not need, such as the velocity without momentum, is None; Numba removes the branches on it.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._share import share

__all__ = ["adam", "rmsprop", "sgd"]

_FEW = 10_000
"""Parameters with fewer numbers take only microseconds and are not split."""

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


@compiled
def _sgd(grad, data, velocity, lr, decay, momentum, gain, nesterov, begin, end):
    number = data.dtype.type
    lr, decay, momentum, gain = number(lr), number(decay), number(momentum), number(gain)
    w, grads = data[begin:end], grad[begin:end]
    v = w if velocity is None else velocity[begin:end]
    for i in range(w.size):
        g = grads[i] + decay * w[i] if decay else grads[i]
        if velocity is not None:
            v[i] = momentum * v[i] + gain * g
            g = g + momentum * v[i] if nesterov else v[i]
        w[i] -= lr * g


@compiled
def _adam(grad, data, mean, square, lr, shrink, decay, keep1, keep2, root, eps, begin, end):
    number = data.dtype.type
    take1, take2, one = number(1 - keep1), number(1 - keep2), number(1)
    lr, shrink, decay, keep2 = number(lr), number(shrink), number(decay), number(keep2)
    root, eps = number(root), number(eps)
    w, grads = data[begin:end], grad[begin:end]
    m, s = mean[begin:end], square[begin:end]
    for i in range(w.size):
        value = shrink * w[i] if shrink != one else w[i]
        g = grads[i] + decay * value if decay else grads[i]
        m[i] += take1 * (g - m[i])
        s[i] = keep2 * s[i] + take2 * (g * g)
        w[i] = value - lr * (m[i] / (np.sqrt(s[i]) / root + eps))


@compiled
def _rmsprop(grad, data, square, mean, velocity, lr, alpha, eps, decay, momentum, begin, end):
    number = data.dtype.type
    take, alpha = number(1 - alpha), number(alpha)
    lr, eps, decay, momentum = number(lr), number(eps), number(decay), number(momentum)
    w, grads, s = data[begin:end], grad[begin:end], square[begin:end]
    m = w if mean is None else mean[begin:end]
    v = w if velocity is None else velocity[begin:end]
    for i in range(w.size):
        g = grads[i] + decay * w[i] if decay else grads[i]
        s[i] = alpha * s[i] + take * (g * g)
        spread = s[i]
        if mean is not None:
            m[i] += take * (g - m[i])
            spread = abs(spread - m[i] * m[i])
        update = g / (np.sqrt(spread) + eps)
        if velocity is not None:
            update += momentum * v[i]
            v[i] = update
        w[i] -= lr * update


def _updated(function: Callable[..., object], work: int, numbers: tuple[Any, ...], *lists: list[Any]) -> Iterator[Any]:
    """Call a function for each parameter in turn; yield the parameter's arrays, except the gradient.

    Parameters
    ----------
    work : work per number, see `share`; most parameters are too small for several threads.
    lists : the function's first arguments for each parameter: gradient, data, and state or None.
    """
    for arrays in zip(*lists, strict=True):
        for a in arrays:
            if a is not None and (type(a) is not np.ndarray or not a.flags.carray):
                arrays = tuple(map(_plain, arrays))
                break
        flat: Any = arrays
        if arrays[0].ndim != 1:  # each rank is compiled anew
            flat = [None if a is None else a.ravel() for a in arrays]
        size = len(flat[0])
        if size < _FEW:
            function(*flat, *numbers, 0, size)
        else:
            share(function, work * size, *flat, *numbers, n=size)
        yield arrays[1:]


def _plain(a: Any) -> Any:
    """Return an array itself if it is contiguous and writable, otherwise a copy, also of scalars and memory maps."""
    return a if a is None or (type(a) is np.ndarray and a.flags.carray) else np.array(a, order="C")


@kernel(np)
def sgd(
    data: list[np.ndarray],
    grads: list[np.ndarray],
    velocities: list[np.ndarray] | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> Any:
    """Update data and velocities, which start as the first gradients."""
    if data[0].dtype not in _DTYPES:
        return NotImplemented
    gain = 1.0 if velocities is None else 1 - dampening
    kept: list[Any] | None = velocities
    if kept is None:
        kept = [np.zeros(w.shape, w.dtype) if momentum else None for w in data]
    return _updated(_sgd, 5, (lr, weight_decay, momentum, gain, nesterov), grads, data, kept)


@kernel(np)
def adam(
    data: list[np.ndarray],
    grads: list[np.ndarray],
    means: list[np.ndarray],
    squares: list[np.ndarray],
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Any:
    """Update data, means and squares."""
    if data[0].dtype not in _DTYPES:
        return NotImplemented
    beta1, beta2 = betas
    decays = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    numbers = lr / (1 - beta1**step), *decays, beta1, beta2, math.sqrt(1 - beta2**step), eps
    return _updated(_adam, 12, numbers, grads, data, means, squares)


@kernel(np)
def rmsprop(
    data: list[np.ndarray],
    grads: list[np.ndarray],
    squares: list[np.ndarray],
    means: list[np.ndarray] | None,
    velocities: list[np.ndarray] | None,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
) -> Any:
    """Update data and the squares, means and velocities that exist."""
    if data[0].dtype not in _DTYPES:
        return NotImplemented
    nothing: list[Any] = [None] * len(data)
    kept = squares, means or nothing, velocities or nothing
    return _updated(_rmsprop, 12, (lr, alpha, eps, weight_decay, momentum), grads, data, *kept)
