"""Transposed convolution on the CPU.

As in `ops/conv.py`, it uses the input gradient of a convolution as its forward pass, and vice versa.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._layout import skips
from xcnn.kernels.cpu._share import supports
from xcnn.kernels.cpu.conv import convolution
from xcnn.kernels.cpu.conv_gradients import bias_gradients
from xcnn.kernels.cpu.input_gradients import input_gradients
from xcnn.kernels.cpu.weight_gradients import weight_gradients

__all__ = ["conv_transpose"]


@kernel(np)
def conv_transpose(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, axes: tuple[Any, ...], groups: int
) -> Any:
    """Spread x over the kernels: this is the input gradient of the convolution with these axes."""
    if not supports(x) or skips(axes):
        return NotImplemented
    has_bias = bias is not None
    y = input_gradients(x, None, weight, bias, axes, groups)

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        dx = convolution(dy, weight, None, None, None, None, axes, groups) if needs[0] else None
        dweight = weight_gradients(dy, x, None, weight, axes, groups) if needs[1] else None
        dbias = bias_gradients(dy) if needs[2] and has_bias else None
        return dx, dweight, dbias

    return y, backward
