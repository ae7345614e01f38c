"""The losses that a network can be trained with: one table, by PyTorch's functional names."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from xcnn import ops
from xcnn._array import Array, namespace_of
from xcnn._plugins import find
from xcnn.errors import UsageError, explained, wrong_call

__all__ = ["LOSSES", "Loss", "count_classes", "exp", "identity", "loss_named", "sigmoid", "softmax"]


def identity(output: Array) -> Array:
    """Return the output unchanged."""
    return output


def exp(output: Array) -> Array:
    """Return the probabilities of log-probabilities (n, classes, ...)."""
    return namespace_of(output).exp(output)


def sigmoid(output: Array) -> Array:
    """Return one probability per score, for scores of any shape."""
    return ops.sigmoid(output)[0]


def softmax(output: Array) -> Array:
    """Return the probabilities of scores (n, classes, ...)."""
    return ops.softmax(output, dim=1)[0]


def count_classes(output: Array, target: Array) -> Array | None:
    """Return the number of rows of an output (n, classes) whose largest entry is at the target (n,).

    The number is a 0-d array on the device of the output, or an integer. For other ranks, return None.
    """
    if output.ndim != 2 or target.ndim != 1:
        return None
    xp = namespace_of(output)
    return xp.count_nonzero(xp.argmax(output, axis=1) == target)


@dataclass(frozen=True)
class Loss:
    """A loss, and how it interprets the output of the network.

    Attributes
    ----------
    function : `loss, backward = function(output, target)`. The loss is a mean over the images, a 0-d array. The first
        value that `backward()` returns is the gradient of the output.
    activation : function that turns the network's output into what `Trainer.predict` returns, such as probabilities.
    correct : function `(output, target)` that returns the number of correct predictions in a batch, a 0-d array; None
        if the loss has no accuracy.
    """

    function: Callable[..., Any]
    activation: Callable[[Array], Array] = identity
    correct: Callable[[Array, Array], Array | None] | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise UsageError(f"Loss: function must be a function (output, target), got {self.function!r}")

    @property
    def classifies(self) -> bool:
        """Whether the target is a class index per image."""
        return self.correct is count_classes

    def count_correct(self, output: Array, target: Array) -> Array | None:
        """Return the number of correct answers, an integer or a 0-d array on the device; None without an accuracy."""
        return None if self.correct is None else self.correct(output, target)


Loss.__init__ = explained(Loss.__init__)  # type: ignore[method-assign]


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(ops.cross_entropy, softmax, count_classes),
    "nll_loss": Loss(ops.nll_loss, exp, count_classes),
    "mse_loss": Loss(ops.mse_loss),
    "l1_loss": Loss(ops.l1_loss),
    "binary_cross_entropy_with_logits": Loss(ops.binary_cross_entropy_with_logits, sigmoid),
}
"""Every loss by name."""


def loss_named(loss: str | Loss | Callable[..., Any], **options: Any) -> Loss:
    """Return a loss by its name, with options such as `label_smoothing=0.1`. A function is wrapped in a `Loss`.

    Raises
    ------
    UsageError
        If the name is unknown, or the loss has no such option; the error suggests the nearest.
    """
    name = loss if isinstance(loss, str) else "loss"
    if isinstance(loss, str):
        loss = find("loss", loss, LOSSES)
    if not isinstance(loss, Loss):
        if not callable(loss):
            raise UsageError(f"loss must be a name, a Loss or a function (output, target), got {loss!r}")
        loss = Loss(loss)
    if wrong := wrong_call(name, loss.function, (None, None), options):
        raise wrong
    return replace(loss, function=functools.partial(loss.function, **options)) if options else loss
