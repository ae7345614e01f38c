"""The update rules, with PyTorch's names, defaults, argument order and arithmetic.

To add one: a class that hands its options to `Optimizer.__init__` and gives `_update`, and a line in `OPTIMIZERS`.
Nothing is updated in place: whoever still holds an old array keeps its numbers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from xcnn._array import Array, namespace_of
from xcnn.errors import UsageError
from xcnn.optim.optimizer import Optimizer
from xcnn.parameter import Parameter

__all__ = ["OPTIMIZERS", "SGD"]

Params = Iterable[Parameter] | Iterable[Mapping[str, Any]]


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
        momentum = group["momentum"]
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * data
        if momentum:
            velocity = state.get("momentum_buffer")
            if velocity is None:
                velocity = namespace_of(grad).asarray(grad, copy=True)
            else:
                velocity = momentum * velocity + (1 - group["dampening"]) * grad
            state["momentum_buffer"] = velocity
            grad = grad + momentum * velocity if group["nesterov"] else velocity
        return data - float(group["lr"]) * grad  # a NumPy float64 here would widen float32 parameters


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD}
"""Every update rule by its name on the command line."""
