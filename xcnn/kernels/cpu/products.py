"""The portable code of matrix products on one thread of BLAS, for arguments that no other kernel here handles."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import BODIES, kernel
from xcnn.kernels.cpu._blas import one_blas_thread

__all__ = ["conv", "conv_inference", "conv_transpose", "linear", "matmul"]


def _held(body: Callable[..., Any], *arguments: Any) -> Any:
    with one_blas_thread:
        result, backward = body(np, *arguments)

    def held_backward(dy: np.ndarray, needs: Sequence[bool]) -> Any:
        with one_blas_thread:
            return backward(dy, needs)

    return result, held_backward


@kernel(np)
def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    axes: tuple[Any, ...],
    groups: int,
    activation: tuple[Any, ...] | None,
) -> Any:
    """Convolve."""
    return _held(BODIES["conv"], x, weight, bias, axes, groups, activation)


@kernel(np)
def conv_inference(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    norm: tuple[Any, ...] | None,
    residual: np.ndarray | None,
    activation: tuple[Any, ...] | None,
    axes: tuple[Any, ...],
    groups: int,
) -> Any:
    """Convolve, and apply what follows."""
    with one_blas_thread:
        return BODIES["conv_inference"](np, x, weight, bias, norm, residual, activation, axes, groups)


@kernel(np)
def conv_transpose(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, axes: tuple[Any, ...], groups: int
) -> Any:
    """Convolve with x and y exchanged."""
    return _held(BODIES["conv_transpose"], x, weight, bias, axes, groups)


@kernel(np)
def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, activation: tuple[Any, ...] | None) -> Any:
    """Multiply rows by a matrix."""
    return _held(BODIES["linear"], x, weight, bias, activation)


@kernel(np)
def matmul(x: np.ndarray, other: np.ndarray) -> Any:
    """Multiply stacks of matrices."""
    return _held(BODIES["matmul"], x, other)
