"""Optimizer steps in one pass over memory, in place. Each number of a result is that of the portable code, bit for bit.

What a rule does not keep, such as a velocity without momentum, is None; Numba compiles the branches on it away.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._share import share, supports

__all__ = ["adam", "rmsprop", "sgd"]

_FEW = 10_000
"""Numbers that take a few microseconds."""


@compiled
def _range(array, begin, end):
    """Give some numbers of an array in C order; an index that starts at 0 compiles to vector instructions."""
    return array.reshape(array.size)[begin:end]


@compiled
def _sgd(data, grad, velocity, lr, decay, momentum, gain, nesterov, begin, end):
    number = data.dtype.type
    lr, decay, momentum, gain = number(lr), number(decay), number(momentum), number(gain)
    w, grads = _range(data, begin, end), _range(grad, begin, end)
    v = w if velocity is None else _range(velocity, begin, end)
    for i in range(w.size):
        g = grads[i] + decay * w[i] if decay else grads[i]
        if velocity is not None:
            v[i] = momentum * v[i] + gain * g
            g = g + momentum * v[i] if nesterov else v[i]
        w[i] -= lr * g


@compiled
def _adam(data, grad, mean, square, lr, shrink, decay, keep1, keep2, root, eps, begin, end):
    number = data.dtype.type
    take1, take2, one = number(1 - keep1), number(1 - keep2), number(1)
    lr, shrink, decay, keep2 = number(lr), number(shrink), number(decay), number(keep2)
    root, eps = number(root), number(eps)
    w, grads = _range(data, begin, end), _range(grad, begin, end)
    m, s = _range(mean, begin, end), _range(square, begin, end)
    for i in range(w.size):
        value = shrink * w[i] if shrink != one else w[i]
        g = grads[i] + decay * value if decay else grads[i]
        m[i] += take1 * (g - m[i])
        s[i] = keep2 * s[i] + take2 * (g * g)
        w[i] = value - lr * (m[i] / (np.sqrt(s[i]) / root + eps))


@compiled
def _rmsprop(data, grad, square, mean, velocity, lr, alpha, eps, decay, momentum, begin, end):
    number = data.dtype.type
    take, alpha = number(1 - alpha), number(alpha)
    lr, eps, decay, momentum = number(lr), number(eps), number(decay), number(momentum)
    w, grads, s = _range(data, begin, end), _range(grad, begin, end), _range(square, begin, end)
    m = w if mean is None else _range(mean, begin, end)
    v = w if velocity is None else _range(velocity, begin, end)
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


def _takes(data: np.ndarray, grad: np.ndarray, *state: np.ndarray | None) -> bool:
    """Say whether arrays can be read, and what changes be written, one number after the other."""
    for array in (data, *state):
        if array is None:
            continue
        if type(array) is not np.ndarray or not array.flags.carray or array.dtype != data.dtype:  # or NumPy's scalars
            return False
    return supports(data) and type(grad) is np.ndarray and grad.flags.c_contiguous


def _update(function: Callable[..., object], work: int, data: np.ndarray, *arguments: Any) -> None:
    """Call a function for all numbers of its arrays; those of most parameters are too few to be shared out."""
    if data.size < _FEW:
        function(data, *arguments, 0, data.size)
    else:
        share(function, work * data.size, data, *arguments, n=data.size)


@kernel(np)
def sgd(
    data: np.ndarray,
    grad: np.ndarray,
    velocity: np.ndarray | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> Any:
    """Update data and velocity, which starts as the first gradient."""
    if not _takes(data, grad, velocity):
        return NotImplemented
    gain = 1.0 if velocity is None else 1 - dampening
    if momentum and velocity is None:
        velocity = np.zeros_like(data)
    numbers = lr, weight_decay, momentum, gain, nesterov
    _update(_sgd, 5, data, grad, velocity if momentum else None, *numbers)
    return data, velocity


@kernel(np)
def adam(
    data: np.ndarray,
    grad: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Any:
    """Update data, mean and square."""
    if not _takes(data, grad, mean, square):
        return NotImplemented
    beta1, beta2 = betas
    decays = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    numbers = lr / (1 - beta1**step), *decays, beta1, beta2, math.sqrt(1 - beta2**step), eps
    _update(_adam, 12, data, grad, mean, square, *numbers)
    return data, mean, square


@kernel(np)
def rmsprop(
    data: np.ndarray,
    grad: np.ndarray,
    square: np.ndarray,
    mean: np.ndarray | None,
    velocity: np.ndarray | None,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
) -> Any:
    """Update data and what there is of square, mean and velocity."""
    if not _takes(data, grad, square, mean, velocity):
        return NotImplemented
    numbers = lr, alpha, eps, weight_decay, momentum
    _update(_rmsprop, 12, data, grad, square, mean, velocity, *numbers)
    return data, square, mean, velocity
