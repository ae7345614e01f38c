"""Initialisers of weights: functions `(rng, shape, **options)` that return a float32 array.

The argument `init` of layers is a name of `INITS` or any function of `(rng, shape)`, such as
`functools.partial(init.normal, std=0.01)`.

A weight of shape (outputs, inputs, *kernel) has `fan_in = inputs * prod(kernel)` terms in the sum of an output, and
`fan_out = outputs * prod(kernel)` terms in the gradient of an input.
"""

import math
from collections.abc import Callable

import numpy as np

from xcnn.errors import ShapeError, UsageError, unknown

__all__ = [
    "INITS",
    "Init",
    "fan_in_uniform",
    "fans",
    "kaiming_normal",
    "kaiming_uniform",
    "normal",
    "ones",
    "orthogonal",
    "resolve",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]

Shape = tuple[int, ...]
Init = Callable[[np.random.Generator, Shape], np.ndarray]


def fans(shape: Shape) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight.

    >>> fans((16, 6, 5, 5))
    (150, 400)
    """
    if len(shape) < 2:
        raise ShapeError(f"init: a shape needs two axes or more, (outputs, inputs, ...), to have fans, got {shape}")
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def uniform(rng: np.random.Generator, shape: Shape, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Draw from U(low, high)."""
    return rng.uniform(low, high, shape).astype(np.float32)


def normal(rng: np.random.Generator, shape: Shape, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    """Draw from the normal distribution."""
    return rng.normal(mean, std, shape).astype(np.float32)


def zeros(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Return zeros."""
    return np.zeros(shape, np.float32)


def ones(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Return ones."""
    return np.ones(shape, np.float32)


def fan_in_uniform(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Draw from U(-b, b) with `b = 1 / sqrt(fan_in)`, the layers' default.

    It is PyTorch's default too, which calls it `kaiming_uniform_(a=sqrt(5))` (`torch.nn.Linear.reset_parameters`).
    """
    bound = 1 / math.sqrt(max(fans(shape)[0], 1))
    return uniform(rng, shape, -bound, bound)


def kaiming_uniform(rng: np.random.Generator, shape: Shape, a: float = 0.0, mode: str = "fan_in") -> np.ndarray:
    """Draw uniformly with the standard deviation of `kaiming_normal`."""
    bound = math.sqrt(3) * _kaiming(shape, a, mode)
    return uniform(rng, shape, -bound, bound)


def kaiming_normal(rng: np.random.Generator, shape: Shape, a: float = 0.0, mode: str = "fan_in") -> np.ndarray:
    """Draw with the standard deviation `sqrt(2 / (1 + a**2) / fan)`, which keeps the variance through (leaky) ReLUs.

    Parameters
    ----------
    rng : generator of the numbers.
    shape : shape of the weight.
    a : negative slope of the leaky ReLU that follows; 0 for ReLU.
    mode : `"fan_in"` keeps the variance of the activations, `"fan_out"` that of the gradients.

    Notes
    -----
    K. He et al., Delving deep into rectifiers, 2015, arXiv:1502.01852.
    """
    return normal(rng, shape, std=_kaiming(shape, a, mode))


def _kaiming(shape: Shape, a: float, mode: str) -> float:
    choices = dict(zip(("fan_in", "fan_out"), fans(shape), strict=True))
    if mode not in choices:
        raise unknown("mode", mode, choices)
    return math.sqrt(2 / (1 + a**2) / max(choices[mode], 1))


def xavier_uniform(rng: np.random.Generator, shape: Shape, gain: float = 1.0) -> np.ndarray:
    """Draw uniformly with the standard deviation of `xavier_normal`."""
    bound = math.sqrt(3) * _xavier(shape, gain)
    return uniform(rng, shape, -bound, bound)


def xavier_normal(rng: np.random.Generator, shape: Shape, gain: float = 1.0) -> np.ndarray:
    """Draw with the standard deviation `gain * sqrt(2 / (fan_in + fan_out))`, for tanh and similar activations.

    Notes
    -----
    X. Glorot and Y. Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    """
    return normal(rng, shape, std=_xavier(shape, gain))


def _xavier(shape: Shape, gain: float) -> float:
    return gain * math.sqrt(2 / max(sum(fans(shape)), 1))


def orthogonal(rng: np.random.Generator, shape: Shape, gain: float = 1.0) -> np.ndarray:
    """Draw a weight whose (outputs, inputs * kernel) matrix has orthonormal rows or columns, whichever are fewer.

    Notes
    -----
    A. Saxe, J. McClelland and S. Ganguli, Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks, 2014, arXiv:1312.6120. The signs are chosen so that the draw is uniform over all such matrices.
    """
    rows, columns = shape[0], fans(shape)[0]
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diagonal(r))
    return np.asarray(gain * (q if rows >= columns else q.T), np.float32).reshape(shape)


INITS: dict[str, Init] = {
    function.__name__: function
    for function in (
        fan_in_uniform,
        kaiming_uniform,
        kaiming_normal,
        xavier_uniform,
        xavier_normal,
        orthogonal,
        normal,
        uniform,
        zeros,
        ones,
    )
}
"""Every initialiser by name."""


def resolve(init: str | Init) -> Init:
    """Return the initialiser of a name, or the function itself.

    Raises
    ------
    UsageError
        If the name is unknown, or `init` is neither a name nor a function.
    """
    if callable(init):
        return init
    if not isinstance(init, str):
        raise UsageError(f"init must be a name or a function of (rng, shape), got {init!r}")
    if init not in INITS:
        raise unknown("initialiser", init, INITS)
    return INITS[init]
