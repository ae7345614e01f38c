"""The update rules, with PyTorch's names, defaults, argument order and arithmetic.

To add one: a class that hands its options to `Optimizer.__init__` and gives `_update`, a line in `named.OPTIMIZERS`.
The arithmetic of each is a body, which makes new arrays; a kernel may write to those that it is given instead.
"""

import math
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from xcnn._array import Array, namespace_of
from xcnn._dispatch import body
from xcnn.errors import UsageError
from xcnn.optim.optimizer import Optimizer
from xcnn.parameter import Parameter

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]

Params = Iterable[Parameter] | Iterable[Mapping[str, Any]]


@body
def _sgd(
    xp: ModuleType,
    data: Array,
    grad: Array,
    velocity: Array | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> tuple[Array, Array | None]:
    """Return the new data and velocity."""
    if weight_decay:
        grad = grad + weight_decay * data
    if momentum:
        velocity = xp.asarray(grad, copy=True) if velocity is None else momentum * velocity + (1 - dampening) * grad
        grad = grad + momentum * velocity if nesterov else velocity
    return data - lr * grad, velocity


class SGD(Optimizer):
    """Stochastic gradient descent.

    With g the gradient plus `weight_decay * data`: `b = momentum * b + (1 - dampening) * g`, where the first b is g,
    and `data -= lr * b`; under Nesterov `data -= lr * (g + momentum * b)`; without momentum `data -= lr * g`.

    Parameters
    ----------
    params : iterable of Parameter or of group dicts, see `Optimizer`.
    lr : learning rate.
    momentum : share of the last step's direction that is kept.
    dampening : share of the gradient that momentum leaves out.
    weight_decay : L2 penalty.
    nesterov : look ahead along the momentum; needs momentum and no dampening.

    References
    ----------
    Sutskever et al. 2013, On the importance of initialization and momentum in deep learning (with PyTorch's convention,
    in which lr multiplies the momentum too).
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

    def _options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super()._options(options)
        if checked["nesterov"] and (checked["momentum"] == 0 or checked["dampening"] != 0):
            raise UsageError("SGD: nesterov needs a momentum above 0 and no dampening")
        return checked

    def _update(self, data: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]) -> Array:
        data, velocity = _sgd(
            namespace_of(data),
            data,
            grad,
            state.get("momentum_buffer"),
            float(group["lr"]),  # a NumPy float64 here would widen float32 parameters
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
        )
        if velocity is not None:
            state["momentum_buffer"] = velocity
        return data


@body
def _adam(
    xp: ModuleType,
    data: Array,
    grad: Array,
    mean: Array,
    square: Array,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> tuple[Array, Array, Array]:
    """Return the new data, mean and mean square."""
    beta1, beta2 = betas
    if weight_decay and decoupled:
        data = (1 - lr * weight_decay) * data
    elif weight_decay:
        grad = grad + weight_decay * data
    mean = mean + (1 - beta1) * (grad - mean)
    square = beta2 * square + (1 - beta2) * (grad * grad)
    root = xp.sqrt(square) / math.sqrt(1 - beta2**step)
    return data - lr / (1 - beta1**step) * (mean / (root + eps)), mean, square


class Adam(Optimizer):
    """Adaptive moments: steps of about `lr`, whatever the size of the gradients.

    With g the gradient plus `weight_decay * data`, m and v the running means of g and g^2 and t the step:
    `data -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)`.

    Parameters
    ----------
    params : iterable of Parameter or of group dicts, see `Optimizer`.
    lr : learning rate.
    betas : shares of m and of v that are kept each step.
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

    def _update(self, data: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]) -> Array:
        xp = namespace_of(data)
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in state:
                state[name] = xp.zeros_like(data)
        state["step"] = state.get("step", 0) + 1
        data, state["exp_avg"], state["exp_avg_sq"] = _adam(
            xp,
            data,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["step"],
            float(group["lr"]),
            group["betas"],
            group["eps"],
            group["weight_decay"],
            self._decoupled,
        )
        return data


class AdamW(Adam):
    """Adam with decoupled weight decay: `data *= 1 - lr * weight_decay` before a step on the bare gradient.

    Parameters
    ----------
    params, lr, betas, eps : as in `Adam`.
    weight_decay : shrinks the parameters directly, unscaled by the running means.

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
    data: Array,
    grad: Array,
    square: Array,
    mean: Array | None,
    velocity: Array | None,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
) -> tuple[Array, Array, Array | None, Array | None]:
    """Return the new data, mean square, mean (None unless centered) and velocity (None without momentum)."""
    if weight_decay:
        grad = grad + weight_decay * data
    square = spread = alpha * square + (1 - alpha) * (grad * grad)
    if mean is not None:
        mean = mean + (1 - alpha) * (grad - mean)
        spread = xp.abs(square - mean * mean)  # rounding can take a variance near 0 below it
    update = grad / (xp.sqrt(spread) + eps)
    if velocity is not None:
        velocity = update = momentum * velocity + update
    return data - lr * update, square, mean, velocity


class RMSprop(Optimizer):
    """Gradient divided by its running root mean square.

    With g the gradient plus `weight_decay * data` and v the running mean of g^2 (if centered, less the square of the
    running mean of g): `u = g / (sqrt(v) + eps)`, `b = momentum * b + u`, `data -= lr * b`.

    Parameters
    ----------
    params : iterable of Parameter or of group dicts, see `Optimizer`.
    lr : learning rate.
    alpha : share of the running means that is kept each step.
    eps : added to the denominator.
    weight_decay : L2 penalty.
    momentum : share of the last step's direction that is kept.
    centered : divide by the standard deviation of the gradient in place of its root mean square.

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

    def _update(self, data: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]) -> Array:
        xp = namespace_of(data)
        wanted = {"square_avg": True, "grad_avg": group["centered"], "momentum_buffer": group["momentum"] > 0}
        for name, want in wanted.items():
            if want and name not in state:
                state[name] = xp.zeros_like(data)
        square, mean, velocity = (state[name] if want else None for name, want in wanted.items())
        data, *arrays = _rmsprop(
            xp,
            data,
            grad,
            square,
            mean,
            velocity,
            float(group["lr"]),
            group["alpha"],
            group["eps"],
            group["weight_decay"],
            group["momentum"],
        )
        state.update({name: array for name, array in zip(wanted, arrays, strict=True) if array is not None})
        return data
