"""The losses that a network can be trained with: one table, by PyTorch's functional names."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xcnn import ops
from xcnn._array import Array, namespace_of
from xcnn.errors import UsageError, unknown

__all__ = ["LOSSES", "Loss", "loss_named"]


@dataclass(frozen=True)
class Loss:
    """A loss and what it says about the network's output.

    Attributes
    ----------
    function : `loss, backward = function(output, target)`; `backward()` returns the gradient of output first.
    activation : turns the network's output into what `Trainer.predict` returns: probabilities, or the output itself.
    classifies : whether the target is a class index per image, so that accuracy means something.
    """

    function: Callable[..., Any]
    activation: Callable[[Array], Array]
    classifies: bool = False


# Functions with names, so that a Loss can be pickled.


def _identity(output: Array) -> Array:
    return output


def _exp(output: Array) -> Array:
    return namespace_of(output).exp(output)


def _softmax(output: Array) -> Array:
    return ops.softmax(output, dim=1)[0]


def _sigmoid(output: Array) -> Array:
    return ops.sigmoid(output)[0]


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(ops.cross_entropy, _softmax, classifies=True),
    "nll_loss": Loss(ops.nll_loss, _exp, classifies=True),
    "mse_loss": Loss(ops.mse_loss, _identity),
    "l1_loss": Loss(ops.l1_loss, _identity),
    "binary_cross_entropy_with_logits": Loss(ops.binary_cross_entropy_with_logits, _sigmoid),
}
"""Every loss by name."""


def loss_named(loss: str | Loss | Callable[..., Any], **options: Any) -> Loss:
    """Return a loss by its name with options such as `label_smoothing=0.1`; wrap a function of your own.

    Raises
    ------
    UsageError
        If the name is unknown; the message names the nearest.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise unknown("loss", loss, LOSSES)
        loss = LOSSES[loss]
    elif not isinstance(loss, Loss):
        if not callable(loss):
            raise UsageError(f"loss takes a name, a Loss or a function (output, target), got {loss!r}")
        loss = Loss(loss, _identity)
    if not options:
        return loss
    return Loss(functools.partial(loss.function, **options), loss.activation, loss.classifies)
