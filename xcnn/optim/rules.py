"""The update rules, with PyTorch's names, defaults, argument order and arithmetic.

The arithmetic of each rule is a body, see `_dispatch.py`. A body takes lists with one array per parameter, all of one
library, dtype and device, or None in place of state that does not exist. It yields the new arrays of each parameter in
turn. A kernel may update the arrays in place, and many parameters at once.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from types import ModuleType
from typing import Any

from xcnn._array import Array, namespace_of, zeros
from xcnn._dispatch import body
from xcnn.errors import UsageError
from xcnn.optim.optimizer import Group, Optimizer, Params, States

__all__ = ["OPTIMIZERS", "SGD", "Adam", "AdamW", "RMSprop"]


def _lr(group: Group) -> float:
    return float(group["lr"])  # a NumPy float64 would widen float32 parameters


def _kept(name: str, states: States, data: list[Array]) -> list[Array]:
    """Return the arrays stored under a name in the states, or zeros at the first step."""
    if name in states[0]:
        return [state[name] for state in states]
    return [zeros(namespace_of(w), w.shape, w) for w in data]


def _stored(updated: Iterable[tuple[Array, ...]], states: States, **lists: list[Array] | None) -> Iterator[Array]:
    """Yield the new data of each parameter, and store the other new arrays in its state.

    `lists` are the arguments of the body by their names in the state. A new array replaces the old one in its list at
    once, so that the memory of the old one is free for the next parameter.
    """
    kept = [(place, name, arrays) for place, (name, arrays) in enumerate(lists.items(), 1)]
    for index, new in enumerate(updated):
        for place, name, arrays in kept:
            if (array := new[place]) is not None:
                states[index][name] = array
                if arrays is not None:
                    arrays[index] = array
        yield new[0]


@body
def _sgd(
    xp: ModuleType,
    data: list[Array],
    grads: list[Array],
    velocities: list[Array] | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> Iterable[tuple[Array, Array | None]]:
    """Yield the new data and velocity (None without momentum); `velocities` is None at the first step."""
    for w, grad, velocity in zip(data, grads, velocities or repeat(None), strict=False):
        if weight_decay:
            grad = grad + weight_decay * w
        if momentum:
            velocity = xp.asarray(grad, copy=True) if velocity is None else momentum * velocity + (1 - dampening) * grad
            grad = grad + momentum * velocity if nesterov else velocity
        yield w - lr * grad, velocity


class SGD(Optimizer):
    """Stochastic gradient descent.

    With g the gradient plus `weight_decay * data`: `b = momentum * b + (1 - dampening) * g`, where the first b is g,
    and `data -= lr * b`; with `nesterov`, `data -= lr * (g + momentum * b)`; without momentum `data -= lr * g`.

    Parameters
    ----------
    params : iterable of Parameter or of group dicts, see `Optimizer`.
    lr : learning rate.
    momentum : factor of the previous step's direction in the next one.
    dampening : share of the gradient that is left out of the momentum.
    weight_decay : L2 penalty.
    nesterov : whether to use Nesterov momentum; needs momentum above 0 and no dampening.

    References
    ----------
    Sutskever et al. 2013, On the importance of initialization and momentum in deep learning. As in PyTorch, lr also
    multiplies the momentum.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov
        )

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super().check_options(options)
        if checked["nesterov"] and (checked["momentum"] == 0 or checked["dampening"] != 0):
            raise UsageError("SGD: nesterov needs a momentum above 0 and no dampening")
        return checked

    def update(self, data: list[Array], grads: list[Array], states: States, group: Group) -> Iterable[Array]:
        begun = group["momentum"] and "momentum_buffer" in states[0]
        velocities = _kept("momentum_buffer", states, data) if begun else None
        options = _lr(group), group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"]
        updated = _sgd(namespace_of(data[0]), data, grads, velocities, *options)
        return _stored(updated, states, momentum_buffer=velocities)


@body
def _adam(
    xp: ModuleType,
    data: list[Array],
    grads: list[Array],
    means: list[Array],
    squares: list[Array],
    lr: float,
    rate: float,
    root: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Iterable[tuple[Array, Array, Array]]:
    """Yield the new data, mean and mean square; in step t, rate is lr / (1 - beta1^t) and root sqrt(1 - beta2^t)."""
    for w, grad, mean, square in zip(data, grads, means, squares, strict=True):
        if weight_decay and decoupled:
            w = (1 - lr * weight_decay) * w
        elif weight_decay:
            grad = grad + weight_decay * w
        mean = mean + (1 - beta1) * (grad - mean)
        square = beta2 * square + (1 - beta2) * (grad * grad)
        yield w - rate * (mean / (xp.sqrt(square) / root + eps)), mean, square


class Adam(Optimizer):
    """Adam, adaptive moment estimation: steps of about `lr`, independent of the scale of the gradients.

    With g the gradient plus `weight_decay * data`, m and v the running means of g and g^2 and t the step:
    `data -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)`.

    Parameters
    ----------
    params : iterable of Parameter or of group dicts, see `Optimizer`.
    lr : learning rate.
    betas : decay rates of m and v, in [0, 1).
    eps : added to the denominator.
    weight_decay : L2 penalty.

    References
    ----------
    Kingma and Ba 2015, Adam: a method for stochastic optimization.
    """

    _decoupled = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, data: list[Array], grads: list[Array], states: States, group: Group) -> Iterable[Array]:
        step = states[0].get("step", 0) + 1
        means, squares = (_kept(name, states, data) for name in ("exp_avg", "exp_avg_sq"))
        lr, (beta1, beta2) = _lr(group), group["betas"]
        numbers = lr, lr / (1 - beta1**step), math.sqrt(1 - beta2**step), beta1, beta2
        options = *numbers, group["eps"], group["weight_decay"], self._decoupled
        updated = _adam(namespace_of(data[0]), data, grads, means, squares, *options)
        for state, w in zip(states, _stored(updated, states, exp_avg=means, exp_avg_sq=squares), strict=True):
            state["step"] = step
            yield w


class AdamW(Adam):
    """Adam with decoupled weight decay: `data *= 1 - lr * weight_decay` before a step on the plain gradient.

    Parameters
    ----------
    params, lr, betas, eps : as in `Adam`.
    weight_decay : each step multiplies the parameters by `1 - lr * weight_decay`; the running means do not scale it.

    References
    ----------
    Loshchilov and Hutter 2019, Decoupled weight decay regularization.
    """

    _decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


@body
def _rmsprop(
    xp: ModuleType,
    data: list[Array],
    grads: list[Array],
    squares: list[Array],
    means: list[Array] | None,
    velocities: list[Array] | None,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
) -> Iterable[tuple[Array, Array, Array | None, Array | None]]:
    """Yield the new data, mean square, mean (None unless centered) and velocity (None without momentum)."""
    kept = squares, means or repeat(None), velocities or repeat(None)
    for w, grad, square, mean, velocity in zip(data, grads, *kept, strict=False):
        if weight_decay:
            grad = grad + weight_decay * w
        square = spread = alpha * square + (1 - alpha) * (grad * grad)
        if mean is not None:
            mean = mean + (1 - alpha) * (grad - mean)
            spread = xp.abs(square - mean * mean)  # rounding can make a variance near 0 negative
        update = grad / (xp.sqrt(spread) + eps)
        if velocity is not None:
            velocity = update = momentum * velocity + update
        yield w - lr * update, square, mean, velocity


class RMSprop(Optimizer):
    """RMSprop: steps along the gradient divided by its running root mean square.

    With g the gradient plus `weight_decay * data` and v the running mean of g^2 (if centered, minus the square of the
    running mean of g): `u = g / (sqrt(v) + eps)`, `b = momentum * b + u`, `data -= lr * b`.

    Parameters
    ----------
    params : iterable of Parameter or of group dicts, see `Optimizer`.
    lr : learning rate.
    alpha : decay rate of the running means.
    eps : added to the denominator.
    weight_decay : L2 penalty.
    momentum : factor of the previous step's direction in the next one.
    centered : whether to divide by the standard deviation of the gradient instead of its root mean square.

    References
    ----------
    Tieleman and Hinton 2012, Lecture 6.5; Graves 2013, Generating sequences with recurrent neural networks (centered).
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )

    def update(self, data: list[Array], grads: list[Array], states: States, group: Group) -> Iterable[Array]:
        squares = _kept("square_avg", states, data)
        means = _kept("grad_avg", states, data) if group["centered"] else None
        velocities = _kept("momentum_buffer", states, data) if group["momentum"] else None
        options = _lr(group), group["alpha"], group["eps"], group["weight_decay"], group["momentum"]
        updated = _rmsprop(namespace_of(data[0]), data, grads, squares, means, velocities, *options)
        return _stored(updated, states, square_avg=squares, grad_avg=means, momentum_buffer=velocities)


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}
"""Every update rule, by its name in settings."""
