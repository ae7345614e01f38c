"""The update rules, with PyTorch's names, defaults, argument order and arithmetic.

To add one: a class that hands its options to `Optimizer.__init__` and gives `_update`, a line in `named.OPTIMIZERS`.
The arithmetic of each is a body. It takes lists with an array of each parameter, all of one library, dtype and device,
or None where no parameter has such an array, and gives the new arrays of one parameter after the other. A kernel may
write to those that it is given instead, and update many parameters at once.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from xcnn._array import Array, namespace_of, zeros
from xcnn._dispatch import body
from xcnn.errors import UsageError
from xcnn.optim.optimizer import Optimizer
from xcnn.parameter import Parameter

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]

Params = Iterable[Parameter] | Iterable[Mapping[str, Any]]


def _each(*lists: list[Array] | None) -> Iterator[list[Any]]:
    """Give the arrays of one parameter after the other, and let go of them: new ones may need their memory."""
    for _ in range(len(lists[0] or ())):
        yield [None if arrays is None else arrays.pop(0) for arrays in lists]


def _kept(name: str, states: list[dict[str, Any]], data: list[Array]) -> list[Array]:
    """Return what is kept of each parameter under a name, zeros at first."""
    if name in states[0]:
        return [state[name] for state in states]
    return [zeros(namespace_of(w), w.shape, w) for w in data]


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
    """Give the new data and velocity (None without momentum); there is none at first."""
    for w, grad, velocity in _each(data, grads, velocities):
        if weight_decay:
            grad = grad + weight_decay * w
        if momentum:
            velocity = xp.asarray(grad, copy=True) if velocity is None else momentum * velocity + (1 - dampening) * grad
            grad = grad + momentum * velocity if nesterov else velocity
        yield w - lr * grad, velocity


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

    def _update(
        self, data: list[Array], grads: list[Array], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> Iterable[Array]:
        begun = group["momentum"] and "momentum_buffer" in states[0]
        updated = _sgd(
            namespace_of(data[0]),
            data,
            grads,
            [state["momentum_buffer"] for state in states] if begun else None,
            float(group["lr"]),  # a NumPy float64 here would widen float32 parameters
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
        )
        for state, (w, velocity) in zip(states, updated, strict=True):
            if velocity is not None:
                state["momentum_buffer"] = velocity
            yield w


@body
def _adam(
    xp: ModuleType,
    data: list[Array],
    grads: list[Array],
    means: list[Array],
    squares: list[Array],
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Iterable[tuple[Array, Array, Array]]:
    """Give the new data, mean and mean square; `step` is 1 at first."""
    beta1, beta2 = betas
    for w, grad, mean, square in _each(data, grads, means, squares):
        if weight_decay and decoupled:
            w = (1 - lr * weight_decay) * w
        elif weight_decay:
            grad = grad + weight_decay * w
        mean = mean + (1 - beta1) * (grad - mean)
        square = beta2 * square + (1 - beta2) * (grad * grad)
        root = xp.sqrt(square) / math.sqrt(1 - beta2**step)
        yield w - lr / (1 - beta1**step) * (mean / (root + eps)), mean, square


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

    def _update(
        self, data: list[Array], grads: list[Array], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> Iterable[Array]:
        step = states[0].get("step", 0) + 1
        updated = _adam(
            namespace_of(data[0]),
            data,
            grads,
            _kept("exp_avg", states, data),
            _kept("exp_avg_sq", states, data),
            step,
            float(group["lr"]),
            group["betas"],
            group["eps"],
            group["weight_decay"],
            self._decoupled,
        )
        for state, (w, mean, square) in zip(states, updated, strict=True):
            state["exp_avg"], state["exp_avg_sq"], state["step"] = mean, square, step
            yield w


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
    """Give the new data, mean square, mean (None unless centered) and velocity (None without momentum)."""
    for w, grad, square, mean, velocity in _each(data, grads, squares, means, velocities):
        if weight_decay:
            grad = grad + weight_decay * w
        square = spread = alpha * square + (1 - alpha) * (grad * grad)
        if mean is not None:
            mean = mean + (1 - alpha) * (grad - mean)
            spread = xp.abs(square - mean * mean)  # rounding can take a variance near 0 below it
        update = grad / (xp.sqrt(spread) + eps)
        if velocity is not None:
            velocity = update = momentum * velocity + update
        yield w - lr * update, square, mean, velocity


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

    def _update(
        self, data: list[Array], grads: list[Array], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> Iterable[Array]:
        updated = _rmsprop(
            namespace_of(data[0]),
            data,
            grads,
            _kept("square_avg", states, data),
            _kept("grad_avg", states, data) if group["centered"] else None,
            _kept("momentum_buffer", states, data) if group["momentum"] else None,
            float(group["lr"]),
            group["alpha"],
            group["eps"],
            group["weight_decay"],
            group["momentum"],
        )
        for state, (w, square, mean, velocity) in zip(states, updated, strict=True):
            arrays = {"square_avg": square, "grad_avg": mean, "momentum_buffer": velocity}
            state.update({name: array for name, array in arrays.items() if array is not None})
            yield w
