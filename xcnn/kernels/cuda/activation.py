"""ReLU in one pass each way."""

from collections.abc import Sequence
from typing import Any

from xcnn._dispatch import kernel
from xcnn.kernels.cuda._launch import launch, supports
from xcnn.kernels.cuda._library import empty, namespace

__all__ = ["elementwise"]


@kernel(namespace)
def elementwise(x: Any, activation: tuple[Any, ...]) -> Any:
    """Set negative numbers to 0; the gradient passes where y is not 0."""
    if activation != ("relu",) or not supports(x):
        return NotImplemented
    y = namespace.maximum(x, 0.0)

    def backward(dy: Any, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        dx = empty(dy.shape, dy.dtype)
        launch("mask", dx.size, dy, y, dx, dx.size)
        return (dx,)

    return y, backward
