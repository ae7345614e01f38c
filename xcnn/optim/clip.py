"""Clip gradients between the backward pass and the optimizer step, without synchronizing with a device."""

import math
from collections.abc import Iterable

from xcnn._array import Array, full, namespace_of, zeros
from xcnn._check import number
from xcnn.errors import explained
from xcnn.optim.optimizer import parameters
from xcnn.parameter import Parameter

__all__ = ["clip_grad_norm_", "clip_grad_value_"]


@explained
def clip_grad_norm_(params: Iterable[Parameter] | Parameter, max_norm: float, norm_type: float = 2.0) -> Array:
    """Scale all gradients by one factor so that their total norm is at most `max_norm`.

    The factor is `min(1, max_norm / (norm + 1e-6))`, as in PyTorch.

    Parameters
    ----------
    params : the parameters; those without a gradient are skipped.
    max_norm : the largest norm allowed.
    norm_type : p of the p-norm, above 0; `math.inf` for the largest absolute value.

    Returns
    -------
    The norm before scaling, a 0-d array on the device of the first parameter; 0 if no parameter has a gradient.

    Raises
    ------
    UsageError
        If a number is out of range, or there are no parameters.

    References
    ----------
    Pascanu et al. 2013, On the difficulty of training recurrent neural networks.
    """
    found = parameters("clip_grad_norm_", params)
    max_norm = number("clip_grad_norm_", "max_norm", max_norm, "[0, inf)")
    p = norm_type if norm_type == math.inf else number("clip_grad_norm_", "norm_type", norm_type, "(0, inf)")
    like = found[0].data
    xp, norm = namespace_of(like), zeros(namespace_of(like), (), like)
    grads = [parameter.grad for parameter in found if parameter.grad is not None]
    for grad in grads:
        size = xp.abs(grad)
        norm = xp.maximum(norm, xp.max(size)) if p == math.inf else norm + xp.sum(size**p)
    if p != math.inf:
        norm = norm ** (1 / p)
    factor = max_norm / (norm + 1e-6)
    factor = xp.minimum(factor, xp.ones_like(factor))
    for parameter in found:
        if parameter.grad is not None:
            parameter.grad = parameter.grad * xp.astype(factor, parameter.grad.dtype)
    return norm


@explained
def clip_grad_value_(params: Iterable[Parameter] | Parameter, clip_value: float) -> None:
    """Clamp every element of every gradient to the interval from -clip_value to clip_value.

    Parameters
    ----------
    params : the parameters; those without a gradient are skipped.
    clip_value : the largest absolute value allowed.

    Raises
    ------
    UsageError
        If `clip_value` is out of range, or there are no parameters.
    """
    found = parameters("clip_grad_value_", params)
    bound = number("clip_grad_value_", "clip_value", clip_value, "[0, inf)")
    for parameter in found:
        if parameter.grad is not None:
            xp = namespace_of(parameter.grad)
            limit = full(xp, (), bound, parameter.grad)
            parameter.grad = xp.minimum(xp.maximum(parameter.grad, -limit), limit)
