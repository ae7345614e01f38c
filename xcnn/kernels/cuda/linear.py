"""Products of rows with a matrix; bias and ReLU are applied in one pass over the product."""

from collections.abc import Sequence
from typing import Any

from xcnn._dispatch import kernel
from xcnn.kernels.cuda._launch import launch, supports
from xcnn.kernels.cuda._library import empty, matmul, namespace
from xcnn.kernels.cuda._maps import column_sums

__all__ = ["linear"]


@kernel(namespace)
def linear(x: Any, weight: Any, bias: Any | None, activation: tuple[Any, ...] | None) -> Any:
    """Multiply, and apply bias and ReLU in place."""
    if not supports(x, weight) or activation not in (None, ("relu",)):
        return NotImplemented
    shape, has_bias, relu = x.shape, bias is not None, activation is not None
    x = x.reshape(-1, shape[-1])
    result = matmul(x, weight.T)  # (n, o)
    if has_bias or relu:
        launch("finish_rows", result.size, result, bias, result.size, result.shape[1], relu)
    y = result if relu else None  # backward keeps it

    def backward(dy: Any, needs: Sequence[bool]) -> tuple[Any, ...]:
        dy = dy.reshape(len(x), -1)
        masked = None if y is None else empty(dy.shape, dy.dtype)
        dbias = None
        if needs[2] and has_bias:
            dbias = column_sums(dy, y, masked)
        elif masked is not None:
            launch("mask", masked.size, dy, y, masked, masked.size)
        dy = dy if masked is None else masked
        dx = matmul(dy, weight).reshape(shape) if needs[0] else None
        dweight = matmul(dy.T, x) if needs[1] else None
        return dx, dweight, dbias

    return result.reshape(*shape[:-1], -1), backward
